"""Folders and hub repositories that hold an adapter: PEFT's layout, and that of the published LLM2Vec encoders.

A published encoder is one or two adapters on a decoder: ``...-mntp`` holds the first, ``...-mntp-unsup-simcse`` and
``...-mntp-supervised`` the second, trained on the decoder with the first one merged. Their ``config.json`` asks for
code that comes with them; l2v reads the decoder that ``adapter_config.json`` names instead and needs none of it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2v.errors import L2VError, first_line
from l2v.runs.files import read_json
from l2v.runs.locations import Source, locate, model_file
from l2v.text.prompts import TEXT

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SETTINGS_FILE = "l2v.json"
"""Pooling, attention, lengths and prompt, beside the weights or the adapter of a saved encoder."""
POOLING_FOLDER, POOLING_WEIGHTS = "1_Pooling", "pooling.safetensors"
"""Inside a saved encoder: sentence-transformers' folder, and the weights of a pooling of one's own in it."""
NORMALIZE_FOLDER = "2_Normalize"
"""Of sentence-transformers' last module, where vectors are scaled to length 1."""
REFERENCE_SETTINGS_FILE = "llm2vec_config.json"
"""What llm2vec writes beside an adapter, or a model whose adapters are merged."""
_OF_SENTENCE_TRANSFORMERS = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
    f"{POOLING_FOLDER}/*",
)
"""What that library writes beside an adapter of its own."""
_POOLINGS = {"mean": "mean", "weighted_mean": "weighted_mean", "eos_token": "last_token", "last_token": "last_token"}
_POOLINGS["bos_token"] = "bos"
_ON_MNTP = re.compile(r"(.+-mntp)-(?:unsup-simcse|simcse|supervised)")
# The reference chooses a template by the name of the decoder and does not save it with the encoder.
_LLAMA2 = f"[INST] {TEXT} [/INST]"
_TEMPLATES = {
    "meta-llama/Meta-Llama-3-8B-Instruct": f"<|start_header_id|>user<|end_header_id|>\n\n{TEXT}<|eot_id|>",
    "mistralai/Mistral-7B-Instruct-v0.2": _LLAMA2,
    "meta-llama/Llama-2-7b-chat-hf": _LLAMA2,
    "google/gemma-2-9b-it": f"<bos><start_of_turn>user\n{TEXT}<end_of_turn>",
    "Qwen/Qwen2-1.5B-Instruct": f"<|im_start|>user\n{TEXT}<|im_end|>",
    "Qwen/Qwen2-7B-Instruct": f"<|im_start|>user\n{TEXT}<|im_end|>",
}


@dataclass(frozen=True)
class Assembly:
    """What an encoder is put together from."""

    base: Source
    """The decoder."""
    adapters: list[Path] = field(default_factory=list)
    """Adapter folders to merge into it, in order."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Pooling, lengths and prompt, as they were saved with the last adapter that has any; empty where none has."""
    settings_place: Source | None = None
    """Where settings were saved: that adapter, else the base."""


def assemble(
    source: str,
    adapters: Sequence[str | Path] = (),
    *,
    base: str | None = None,
    revision: str | None = None,
    override: str = "model.source",
) -> Assembly:
    """The decoder and the adapters that ``source``, and ``adapters`` on it, stand for.

    Args:
        source: a model, or an adapter on the model that its ``adapter_config.json`` names.
        adapters: folders or hub ids of more adapters, each trained on what comes before it.
        base: the model of the adapter in ``source``, where ``adapter_config.json`` names another place.
        revision: of ``source``.
        override: what to name in an error.

    Raises:
        L2VError: nothing there, no adapter where one is expected, or ``base`` beside a source that is none.
    """
    first = adapter_folder(source, revision, override)
    if first is None:
        check_base(base, f"{override}={source} is no adapter")
        place = locate(source, revision, override)
    else:
        check_beginning(source, first, override)
        place = locate(base, override="base") if base else _base_of(first)
    return put_on(Assembly(place, settings_place=place), [*([] if first is None else [first]), *adapters])


def put_on(below: Assembly, adapters: Sequence[str | Path]) -> Assembly:
    """An encoder with more adapters, which may bring settings of their own.

    Raises:
        L2VError: one is no adapter.
    """
    folders, settings, beside = list(below.adapters), below.settings, below.settings_place
    for name in adapters:
        folder = name if isinstance(name, Path) else adapter_folder(name, override="adapters")
        if folder is None:
            raise L2VError(f"adapters={name}: no {ADAPTER_CONFIG}, so it holds no adapter")
        folders.append(folder)
        own = folder / SETTINGS_FILE
        if found := read_settings(own) if own.is_file() else reference_settings(folder):
            settings, beside = found, Source(str(folder), str(folder.resolve()))
    return Assembly(below.base, folders, settings, beside)


def read_settings(file: Path) -> dict[str, Any]:
    """What l2v has written of an encoder's use.

    Raises:
        L2VError: the file holds something else.
    """
    found = read_json(file)
    if not isinstance(found, dict):
        raise L2VError(f"{file}: expected an object of settings, found {type(found).__name__}")
    for name, kinds in _KINDS.items():
        if name in found and type(found[name]) not in kinds:
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise L2VError(f"{file}: {name}: expected {expected}, found {found[name]!r}")
    return found


_KINDS: dict[str, tuple[type, ...]] = {
    "pooling": (str, dict),
    "max_length": (int,),
    "text_max_length": (int, type(None)),
    **dict.fromkeys(("attention", "template", "separator", "pooled_tokens", "special_tokens"), (str,)),
    **dict.fromkeys(("partial", "normalize"), (bool,)),
}
"""Settings of an encoder's use, and the types that they have in a file."""


def check_base(base: str | None, why_not: str) -> None:
    """Raise an L2VError where ``base`` is given beside what is not put on it."""
    if base is not None:
        raise L2VError(f"base={base}: the model of an adapter in its place, but {why_not}; leave base out")


def check_beginning(name: str, folder: Path, override: str) -> None:
    """See that an adapter that was trained on another one is not put on the bare decoder.

    Its files do not say so: the base that they name is the decoder. The names of the published ones do. What l2v has
    exported holds all that belongs under it.

    Raises:
        L2VError: naming the adapter that belongs under it.
    """
    if (folder / SETTINGS_FILE).is_file():
        return
    if found := _ON_MNTP.fullmatch(name.rstrip("/")):
        raise L2VError(
            f"{override}={name}: this adapter was trained on {found[1]}, which has to come first: "
            f"Encoder.from_pretrained({found[1]!r}, adapters=[{name!r}]), or init_from=[{found[1]},{name}]"
        )


def adapter_folder(name: str, revision: str | None = None, override: str = "model.source") -> Path | None:
    """The folder of an adapter, fetched where it is a hub id; None where there is a model instead.

    Raises:
        L2VError: neither a folder nor found on the hub.
    """
    path = Path(name).expanduser()
    if path.exists() or name.startswith("package:"):
        return path if (path / ADAPTER_CONFIG).exists() else _only_adapter_inside(path, f"{override}={name}")
    place = locate(name, revision, override)
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if not isinstance(try_to_load_from_cache(name, ADAPTER_CONFIG, revision=revision), str):
        model_file(place, "config.json", override)  # where the hub cannot be reached, this says so, and waits but once
        if model_file(place, ADAPTER_CONFIG, override) is None:
            return None
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=[
                    "adapter_*",
                    SETTINGS_FILE,
                    REFERENCE_SETTINGS_FILE,
                    "config.json",
                    *_OF_SENTENCE_TRANSFORMERS,
                ],
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise L2VError(
            f"{override}={name}: no such folder, and not found on the hub or the hub cannot be reached "
            f"({first_line(error)})"
        ) from None


def _only_adapter_inside(folder: Path, where: str) -> Path | None:
    """Of a folder that is neither model nor adapter, the one adapter in it, as PEFT writes one that has a name.

    Raises:
        L2VError: there are several.
    """
    if not folder.is_dir() or any((folder / name).exists() for name in ("config.json", "modules.json", "run.json")):
        return None
    inside = sorted(file.parent for file in folder.glob(f"*/{ADAPTER_CONFIG}"))
    if len(inside) > 1:
        names = ", ".join(adapter.name for adapter in inside)
        raise L2VError(f"{where}: a folder with several adapters ({names}); name one: {inside[0]}")
    return inside[0] if inside else None


def _base_of(adapter: Path) -> Source:
    config = read_json(adapter / ADAPTER_CONFIG)
    named = config.get("base_model_name_or_path")
    if not named:
        raise L2VError(f"{adapter / ADAPTER_CONFIG}: names no base model; give base=<the decoder it was trained on>")
    beside = adapter / named
    try:
        return locate(str(beside) if beside.is_dir() else named, config.get("revision"), override="base")
    except L2VError:
        raise L2VError(
            f"{adapter / ADAPTER_CONFIG}: its base model {named} is not there; give base=<where that decoder is now>"
        ) from None


def reference_settings(folder: Path) -> dict[str, Any]:
    """What ``llm2vec_config.json`` says, in the words of l2v; empty for other adapters.

    The MNTP adapters come without that file but with a ``config.json`` that asks for the reference's code: they have
    its defaults. The reference leaves the beginning-of-text token out of every mean, puts a space after an
    instruction, and takes its chat template from the name of the decoder.
    """
    file = folder / REFERENCE_SETTINGS_FILE
    own = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if not file.is_file() and "auto_map" not in own:
        return {}
    raw = read_json(file) if file.is_file() else {}
    pooling = raw.get("pooling_mode", "mean")
    if pooling not in _POOLINGS:
        raise L2VError(f"{file}: pooling_mode {pooling!r}; expected one of {', '.join(_POOLINGS)}")
    named = own.get("_name_or_path")
    if not named and (folder / ADAPTER_CONFIG).is_file():
        named = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    return {
        "attention": "bidirectional",
        "pooling": _POOLINGS[pooling],
        "max_length": raw.get("max_length", 512),
        "text_max_length": raw.get("doc_max_length", 400),
        "separator": " ",
        "pooled_tokens": "text" if raw.get("skip_instruction", True) else "all",
        "template": _TEMPLATES.get(str(named)),
    }
