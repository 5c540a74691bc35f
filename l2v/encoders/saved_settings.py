"""What a saved encoder says of itself, read and written: l2v's own file, and those of sentence-transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from l2v.errors import L2VError
from l2v.pooling import POOLINGS, Pooling, PoolingName, load_pooling, load_weights
from l2v.runs.adapter_folders import POOLING_FOLDER, POOLING_WEIGHTS, SETTINGS_FILE
from l2v.runs.files import read_json, write_json
from l2v.runs.locations import Source, model_file

_TRANSFORMER, _POOLING = "sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"
_BIDIRECTIONAL_ADAPTED = "l2v.export.sentence_transformers.BidirectionalTransformer"
_OWN_POOLING = "l2v.export.sentence_transformers.OwnPooling"
"""Classes by the names under which sentence-transformers imports them."""
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


def saved_settings(place: Source) -> dict[str, Any]:
    """What a folder or hub repository says of its pooling, attention and lengths: l2v's own file, else that of
    sentence-transformers."""
    model = model_file(place, "config.json")
    if own := model_file(place, SETTINGS_FILE):
        if not isinstance(found := read_json(own), dict):
            raise L2VError(f"{own}: expected an object of settings, found {type(found).__name__}")
        return found
    modules = model_file(place, "modules.json")
    if modules and (odd := unknown_modules(modules)):
        raise L2VError(f"{modules}: {', '.join(odd)}: a module that l2v does not have; expected Transformer, Pooling")
    pooling_file = model_file(place, "1_Pooling/config.json")
    if pooling_file is None:
        return {}
    config = read_json(pooling_file)
    modes: list[PoolingName] = [ours for key, ours in _SENTENCE_TRANSFORMERS_POOLING.items() if config.get(key)]
    if config.get("pooling_mode") in _NEWER_POOLING:
        modes = [_NEWER_POOLING[config["pooling_mode"]]]
    if len(modes) != 1:
        raise L2VError(f"{pooling_file}: no pooling that l2v knows; choose one of {', '.join(POOLINGS)}")
    settings: dict[str, Any] = {"pooling": modes[0]}
    lengths = model_file(place, "sentence_bert_config.json")
    if lengths and (length := read_json(lengths).get("max_seq_length")):
        settings["max_length"] = length
    if model and read_json(model).get("is_causal") is not False:
        settings["attention"] = "causal"
    return settings


def unknown_modules(file: Path) -> list[str]:
    """The modules of sentence-transformers' ``modules.json`` that l2v has not, by the names of their classes."""
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in read_json(file)]
    # a final Normalize changes no cosine; encode(normalize=True) does the same
    return [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]


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
) -> None:
    """Write the files by which sentence-transformers gives the same vectors.

    Args:
        folder: with the weights, or with an adapter.
        settings: as :func:`saved_settings` returns them.
        dimension: of a vector.
        prompts: instructions by the name of a prompt, without separator.
        as_adapter: the folder holds an adapter, and so no config of a decoder, which would say is_causal: false.
    """
    pooling = settings["pooling"]
    by_l2v = as_adapter and settings["attention"] == "bidirectional"
    modules = [
        ("0", "", _BIDIRECTIONAL_ADAPTED if by_l2v else _TRANSFORMER),
        ("1", POOLING_FOLDER, _POOLING if isinstance(pooling, str) else _OWN_POOLING),
    ]
    write_json(
        folder / "modules.json", [{"idx": int(i), "name": i, "path": path, "type": kind} for i, path, kind in modules]
    )
    lengths = {"max_seq_length": settings["max_length"], "do_lower_case": False}
    dtype = {"model_args": {"dtype": "float32"}} if as_adapter else {}
    write_json(folder / "sentence_bert_config.json", lengths | dtype)
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
