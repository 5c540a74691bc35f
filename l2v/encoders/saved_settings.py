"""What a saved encoder says of itself, read and written: l2v's own file, and those of sentence-transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from l2v.errors import L2VError
from l2v.pooling import Pooling, PoolingName, load_pooling, load_weights
from l2v.runs.adapter_folders import (
    NORMALIZE_FOLDER,
    POOLING_FOLDER,
    POOLING_WEIGHTS,
    REFERENCE_SETTINGS_FILE,
    SETTINGS_FILE,
    Assembly,
    read_settings,
    reference_settings,
)
from l2v.runs.files import read_json, write_json
from l2v.runs.locations import Source, model_file

_TRANSFORMER, _POOLING = "sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"
_BIDIRECTIONAL_ADAPTED = "l2v.export.sentence_transformers.BidirectionalTransformer"
_OWN_POOLING = "l2v.export.sentence_transformers.OwnPooling"
"""Classes by the names under which sentence-transformers imports them."""
_NORMALIZE = "sentence_transformers.models.Normalize"
_SENTENCE_TRANSFORMERS_POOLING: dict[str, PoolingName] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last_token",
    "pooling_mode_cls_token": "bos",
}
_NEWER_POOLING: dict[str, PoolingName] = {
    "mean": "mean",
    "weightedmean": "weighted_mean",
    "lasttoken": "last_token",
    "cls": "bos",
}
_MODE = "pooling_mode_"


def settings_of(parts: Assembly) -> tuple[dict[str, Any], Source | None]:
    """What was saved of pooling, attention and lengths with the parts of an encoder, and where.

    With the last adapter that has files of l2v, the reference or sentence-transformers; else with the base.

    Raises:
        L2VError: sentence-transformers' files say what l2v does not do.
    """
    if parts.settings:
        return parts.settings, parts.settings_place
    for adapter in reversed(parts.adapters):
        place = Source(str(adapter), str(adapter.resolve()))
        if found := saved_settings(place, parts.base):
            return found, place
    return saved_settings(parts.base), parts.base


def saved_settings(place: Source, base: Source | None = None) -> dict[str, Any]:
    """What a folder or hub repository says of its pooling, attention and lengths: l2v's own file, else that of
    llm2vec, else those of sentence-transformers.

    Args:
        place: the folder or repository.
        base: the model of the adapter that lies there; None: it holds a model of its own.

    Raises:
        L2VError: sentence-transformers' files say what l2v does not do.
    """
    model = model_file(base or place, "config.json")
    if own := model_file(place, SETTINGS_FILE):
        return read_settings(own)
    if file := model_file(place, REFERENCE_SETTINGS_FILE):
        return reference_settings(file.parent)
    if model_file(place, "modules.json") is None and model_file(place, f"{POOLING_FOLDER}/config.json") is None:
        return {}
    if odd := beyond_l2v(place):
        raise L2VError(
            f"{place.name}: {', '.join(odd)}: what l2v does not do; library=sentence-transformers loads it (evaluate, "
            "encode, mine, load_encoder)"
        )
    pooling = _pooling_config(place)
    settings: dict[str, Any] = {"pooling": _NEWER_POOLING[_modes(pooling)[0]] if pooling else "mean"}
    # without the key sentence-transformers pools the prompt
    settings["pooled_tokens"] = "all" if pooling.get("include_prompt", True) else "after_prompt"
    settings["normalize"] = _kinds(place)[-1:] == ["Normalize"]
    if (length := _longest(place, base or place)) is not None:
        settings["max_length"] = length
    if model and read_json(model).get("is_causal") is not False:
        settings["attention"] = "causal"
    return settings


def beyond_l2v(place: Source) -> list[str]:
    """What the files of a folder of sentence-transformers say that l2v does not do: modules and settings by name."""
    odd = [kind for kind in _kinds(place)[:-1] if kind not in ("Transformer", "Pooling")]
    odd += [kind for kind in _kinds(place)[-1:] if kind not in ("Transformer", "Pooling", "Normalize")]
    if odd:
        return odd
    modes = _modes(_pooling_config(place))
    if len(modes) > 1 or any(mode not in _NEWER_POOLING for mode in modes):
        odd.append(f"pooling {'+'.join(modes)}")
    general = _config(place, "config_sentence_transformers.json")
    name = general.get("default_prompt_name")
    if name is not None and general.get("prompts", {}).get(name):
        odd.append(f"default_prompt_name={name}")
    if general.get("truncate_dim") is not None:
        odd.append(f"truncate_dim={general['truncate_dim']}")
    transformer = _config(place, "sentence_bert_config.json")
    if transformer.get("do_lower_case"):
        odd.append("do_lower_case=true")
    odd += [f"{key}={transformer[key]}" for key in _HANDED_ON if set(transformer.get(key) or {}) - _OF_LOADING]
    if folders := [folder for kind, folder in _modules(place) if kind.endswith(".Transformer") and folder]:
        odd.append(f"weights in the folder {folders[0]}")
    return odd


_HANDED_ON = tuple(
    f"{part}_{kind}" for part in ("model", "tokenizer", "processor", "config") for kind in ("args", "kwargs")
)
"""In ``sentence_bert_config.json``: what is handed to transformers."""
_OF_LOADING = {"dtype", "torch_dtype", "attn_implementation", "device_map", "low_cpu_mem_usage"}
"""Of it, what changes no vector by more than rounding."""


def foreign_code(place: Source) -> list[str]:
    """Classes that a ``modules.json`` names and that come neither with sentence-transformers nor with l2v."""
    return [kind for kind in _types(place) if not kind.startswith(("sentence_transformers.", "l2v."))]


def _modules(place: Source) -> list[tuple[str, str]]:
    """The modules of sentence-transformers' ``modules.json``: where a class is imported from, and its folder."""
    file = model_file(place, "modules.json")
    modules = read_json(file) if file else []
    return [(str(module.get("type", "")), str(module.get("path") or "")) for module in modules]


def _types(place: Source) -> list[str]:
    return [kind for kind, _ in _modules(place)]


def _kinds(place: Source) -> list[str]:
    """The same by the names of their classes."""
    return [kind.rsplit(".", 1)[-1] for kind in _types(place)]


def _config(place: Source, name: str) -> dict[str, Any]:
    file = model_file(place, name)
    found = read_json(file) if file else {}
    return found if isinstance(found, dict) else {}


def _pooling_config(place: Source) -> dict[str, Any]:
    """What the module of pooling was saved with, in its own folder."""
    folders = [folder for kind, folder in _modules(place) if kind.endswith(".Pooling")]
    return _config(place, f"{(folders or [POOLING_FOLDER])[0]}/config.json")


def _modes(pooling: Mapping[str, Any]) -> list[str]:
    """The poolings whose vectors stand one after the other."""
    newer = pooling.get("pooling_mode")
    if newer is not None:
        return [newer] if isinstance(newer, str) else [str(mode) for mode in newer]
    older = {"mean_tokens": "mean", "weightedmean_tokens": "weightedmean", "cls_token": "cls", "max_tokens": "max"}
    found = [key.removeprefix(_MODE) for key, value in pooling.items() if key.startswith(_MODE) and value is True]
    return [older.get(key, key) for key in found] or ["mean"]


def _longest(place: Source, base: Source) -> int | None:
    """Tokens of a text: as saved, else what the tokenizer and the model (of ``base``) allow."""
    saved = _config(place, "sentence_bert_config.json").get("max_seq_length")
    if saved is not None:
        return int(saved)
    known = (
        _config(place, "tokenizer_config.json").get("model_max_length"),
        _config(base, "config.json").get("max_position_embeddings"),
    )
    return min((int(length) for length in known if isinstance(length, int | float)), default=None)


def pooling_of(settings: Mapping[str, Any], hidden_size: int, place: Source | None) -> PoolingName | Pooling:
    """The pooling of settings: by its name, or one of one's own with the weights that were saved.

    Args:
        settings: as :func:`saved_settings` returns them, or with a pooling in place of a record of one.
        hidden_size: of a token state.
        place: where the settings and the weights were saved.

    Raises:
        L2VError: its class may not be imported, or its weights are missing or do not fit.
    """
    pooling = settings.get("pooling", "mean")
    if isinstance(pooling, str):
        return cast(PoolingName, pooling)
    file = model_file(place, f"{POOLING_FOLDER}/{POOLING_WEIGHTS}") if place is not None else None
    folder, where = file and file.parent, f"{place.name if place is not None else 'the encoder'}: {SETTINGS_FILE}"
    if isinstance(pooling, dict):
        return load_pooling(pooling, hidden_size, folder, where)
    pooling.build(hidden_size)
    load_weights(pooling, folder, where)
    return pooling.eval()


def write_settings(
    folder: Path,
    settings: Mapping[str, Any],
    dimension: int,
    prompts: Mapping[str, str],
    *,
    as_adapter: bool = False,
    attn_implementation: str | None = None,
) -> None:
    """Write the files by which sentence-transformers gives the same vectors.

    Args:
        folder: with the weights, or with an adapter.
        settings: as :func:`saved_settings` returns them.
        dimension: of a vector.
        prompts: instructions by the name of a prompt, without separator.
        as_adapter: the folder holds an adapter, and so no config of a decoder, which would say is_causal: false.
        attn_implementation: that the library has to take; None: its own choice.
    """
    pooling = settings["pooling"]
    by_l2v = as_adapter and settings["attention"] == "bidirectional"
    modules = [
        ("0", "", _BIDIRECTIONAL_ADAPTED if by_l2v else _TRANSFORMER),
        ("1", POOLING_FOLDER, _POOLING if isinstance(pooling, str) else _OWN_POOLING),
        *([("2", NORMALIZE_FOLDER, _NORMALIZE)] if settings.get("normalize") else []),
    ]
    write_json(
        folder / "modules.json", [{"idx": int(i), "name": i, "path": path, "type": kind} for i, path, kind in modules]
    )
    lengths = {"max_seq_length": settings["max_length"], "do_lower_case": False}
    handed_on = {
        **({"dtype": "float32"} if as_adapter else {}),
        **({"attn_implementation": attn_implementation} if attn_implementation else {}),
    }
    write_json(folder / "sentence_bert_config.json", lengths | ({"model_args": handed_on} if handed_on else {}))
    modes = {key: ours == pooling for key, ours in _SENTENCE_TRANSFORMERS_POOLING.items()}
    write_json(
        folder / POOLING_FOLDER / "config.json",
        {
            "word_embedding_dimension": dimension,
            **modes,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "include_prompt": pooling == "bos",
        },
    )
    separator = settings["separator"]
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {name: text and text + separator for name, text in prompts.items()},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
