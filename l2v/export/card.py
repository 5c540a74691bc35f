"""The model card of an exported encoder: what it is, where it comes from, what it scored. Nothing in it is invented."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from l2v.encoders.encoder import Encoder
from l2v.runs.files import read_json
from l2v.runs.hashes import folder_hash
from l2v.runs.lineage import AdapterRecord, Lineage
from l2v.runs.locations import Source
from l2v.runs.run import Run
from l2v.text.prompts import TEXT

Form = Literal["merged", "adapter"]

_OF_DATA = (
    "part",
    "unit",
    "files",
    "languages",
    "shares",
    "vectors",
    "folder",
    "path",
    "hub",
    "name",
    "config",
    "split",
    "revision",
    "data_files",
    "sets",
)
_OF_STAGE = (
    *(
        "global_batch_size",
        "batch_size",
        "max_steps",
        "learning_rate",
        "schedule",
        "decay_steps",
        "warmup_steps",
        "block_length",
        "max_length",
    ),
    *(
        "masking_strategy",
        "masking_probability",
        "mask_token",
        "attention_dropout",
        "temperature",
        "negatives",
        "layers",
        "pooling",
    ),
)
"""Settings that a card tells, where a stage has them."""


@dataclass(frozen=True)
class Card:
    """What a card says beside what the run says of itself."""

    name: str
    """What others load it by."""
    base: Source
    """The original decoder."""
    lineage: Lineage
    form: Form
    dtype: str
    onnx_difference: float | None = None
    """Of the vectors of ``onnx/model.onnx``; None: there is none."""


def model_card(run: Run, encoder: Encoder, card: Card) -> str:
    """``README.md`` of an exported encoder, in the form of the Hugging Face hub.

    Args:
        run: where it comes from: its config, its scores, and the runs it was trained from, as far as they are there.
        encoder: as it was written.
        card: how it was written.
    """
    runs = [*reversed(ancestors(run)), run]
    parts = [
        f"---\n{_front_matter(card)}---",
        f"# {card.name}",
        _summary(encoder, card),
        "## Use",
        *_usage(encoder, card),
        "## Lineage",
        _lineage(card),
        "## Training",
        *[_training(one) for one in runs],
        *_unknown(runs, card.lineage),
        "## Scores",
        _scores(run, card),
        "## Licence",
        "None is stated by the run: those of the base model and of the training data apply.",
    ]
    return "\n\n".join(parts) + "\n"


def ancestors(run: Run) -> list[Run]:
    """The runs that a run was trained from, youngest first, as far as they are still there with what the lineage says.

    A run names the one before it in its config only, by a path that may have moved; the hashes of the lineage tell
    whether it is the same.
    """
    lineage = run.lineage()
    hashes = {record.hash for record in _adapters(lineage)} | {record.get("hash", "") for record in lineage.history}
    found: list[Run] = []
    while (before := _before((found or [run])[-1])) is not None and before.folder not in {one.folder for one in found}:
        adapter = before.adapter.is_dir() and folder_hash(before.adapter) in hashes
        whole = before.encoder.is_dir() and "sha256:" + folder_hash(before.encoder) in _bases(lineage)
        if not (adapter or whole):
            break
        found.append(before)
    return found


def count_stages(lineage: Lineage) -> int:
    """The stages that made an encoder: as many runs, where all of them are still there."""
    return len(_adapters(lineage)) + len(lineage.history)


def _before(run: Run) -> Run | None:
    named = config_of(run).get("init_from")
    if not isinstance(named, str):
        return None
    for folder in (Path(named).expanduser(), run.folder.parent / Path(named).name):
        if (folder / "run.json").is_file() and folder.resolve() != run.folder.resolve():
            return Run(folder)
    return None


def _adapters(lineage: Lineage) -> list[AdapterRecord]:
    return [*lineage.merged, *[record for record in (lineage.initial, lineage.adapter) if record is not None]]


def _bases(lineage: Lineage) -> set[str]:
    return {lineage.base_hash, *(record.get("base_hash", "") for record in lineage.history)}


def config_of(run: Run) -> dict[str, Any]:
    """A run's config as it was saved; empty where there is none."""
    file = run.folder / "config.yaml"
    found = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    return found if isinstance(found, dict) else {}


def _front_matter(card: Card) -> str:
    """What the hub reads."""
    fields: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "sentence-similarity", "feature-extraction", "l2v"],
    }
    if not card.base.is_local:
        relation = "adapter" if card.form == "adapter" else "finetune"
        fields |= {"base_model": card.base.name, "base_model_relation": relation}
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _summary(encoder: Encoder, card: Card) -> str:
    attention = "attends both ways" if encoder.backbone.attention == "bidirectional" else "keeps its causal attention"
    what = "One LoRA adapter, which holds all that training added" if card.form == "adapter" else "A whole model"
    return (
        f"A text encoder made of the decoder `{_base_name(card)}` with l2v: the decoder {attention}, and a text's "
        f"vector of {encoder.dimension} numbers is made of its tokens' states (pooling: {encoder.pooling}). {what}, in "
        f"{card.dtype}. Texts are cut at {encoder.max_length} tokens."
    )


def _base_name(card: Card) -> str:
    """A hub id or package as it is; of a folder or file its last name."""
    base = card.base
    if base.is_local and not base.name.startswith("package:"):
        return base.gguf_file or Path(base.path).name
    return base.name


def _usage(encoder: Encoder, card: Card) -> Iterable[str]:
    separator = encoder.prompt.separator
    yield (
        f"In l2v, which puts `{separator!r}` between an instruction and its text; documents of a search get none:\n\n"
        "    from l2v import Encoder\n\n"
        f'    encoder = Encoder.from_pretrained("{card.name}")\n'
        '    encoder.encode(["A dog barks."])\n'
        '    encoder.encode(["who barks?"], instruction="Given a question, retrieve its answer")'
    )
    adapted = card.form == "adapter"
    bidirectional = encoder.backbone.attention == "bidirectional"
    by_l2v = adapted and bidirectional
    note = ", with l2v installed, whose class makes the base attend both ways" if by_l2v else ""
    yield (
        f"In sentence-transformers{note}; `config_sentence_transformers.json` has the instructions of MTEB by task:\n\n"
        "    from sentence_transformers import SentenceTransformer\n\n"
        f'    model = SentenceTransformer("{card.name}"{", trust_remote_code=True" * by_l2v})\n'
        f'    model.encode(["who barks?"], prompt={"Given a question, retrieve its answer" + separator!r})'
    )
    if differences := encoder.not_portable():
        yield f"sentence-transformers reads this otherwise, so there its vectors differ: {'; '.join(differences)}."
    if by_l2v:
        yield (
            "`AutoModel.from_pretrained` of transformers reads the config of the base, which is causal: set "
            "`model.config.is_causal = False` on the model it returns."
        )
    elif bidirectional:
        yield (
            "`AutoModel` of transformers reads `is_causal: false` in `config.json`, and attends both ways. vLLM reads "
            'it too (`LLM(model, runner="pooling")`); it was not run on this model.'
        )
    if encoder.prompt.template != TEXT:
        yield f"Around instruction and text stands the template `{encoder.prompt.template!r}`."
    if card.onnx_difference is not None:
        yield (
            "`onnx/model.onnx` maps `input_ids` and `attention_mask` to the states before pooling; on a few texts its "
            f"pooled vectors, scaled to length 1, differ by at most {card.onnx_difference:.1e} in onnxruntime."
        )


def _lineage(card: Card) -> str:
    lineage = card.lineage
    bases = [one["base_hash"] for one in lineage.history if "base_hash" in one] + [lineage.base_hash]
    rows = [("base", _base_name(card), bases.pop(0))]
    for one in lineage.history:
        whole = "base_hash" in one
        rows.append(
            ("all weights", one["stage"], bases.pop(0)) if whole else ("adapter, merged", one["stage"], one["hash"])
        )
    rows += [("adapter, merged", one.stage, one.hash) for one in lineage.merged]
    rows += [("adapter, trained on", one.stage, one.hash) for one in [lineage.initial] if one]
    rows += [("adapter", one.stage, one.hash) for one in [lineage.adapter] if one]
    table = _table(("", "stage", "hash of the weights"), [(what, _code(name), _code(h)) for what, name, h in rows])
    if lineage.others:
        own = 1 - sum(one["share"] for one in lineage.others)
        rows = [(_code(str(one["run"])), f"{one['share']:.3g}", _code(str(one["hash"]))) for one in lineage.others]
        table += (
            f"\n\nWeights of other runs are merged with them ({lineage.others[0]['method']}); the share of these is "
        )
        table += f"{own:.3g}.\n\n" + _table(("run", "share", "hash of what it trained"), rows)
    kept = [*(one["layers"] for one in lineage.history if "layers" in one), *filter(None, [lineage.layers])]
    if kept:
        table += f"\n\nOf the base's layers, the first {kept[-1]} are kept."
    if lineage.base_ratio:
        table += f"\n\nOf the weights, {lineage.base_ratio:g} are those of the base, mixed back in at the end."
    return table


def _training(run: Run) -> str:
    """A stage: its data, its settings in brief, its machine-independent facts."""
    record, config = run.record(), config_of(run)
    stage, data, lora = (config.get(key) or {} for key in ("stage", "data", "adapter"))
    lora = lora.get("lora") or {}
    settings = {key: stage[key] for key in _OF_STAGE if stage.get(key) not in (None, [])}
    settings |= {f"lora.{key}": lora[key] for key in ("rank", "alpha", "dropout", "target_modules") if key in lora}
    settings |= {"precision": (config.get("trainer") or {}).get("precision"), "seed": record.get("seed")}
    choice = (record.get("choices") or {}).get("data")
    train = data.get("train") or {}
    described = {key: _public(train[key]) for key in _OF_DATA if train.get(key)}
    versions = record.get("versions") or {}
    lines = [
        f"### {record.get('stage', run.folder.name)}",
        f"- data: {_code(choice or str(train.get('_target_', 'not known')))} {_settings(described)}".rstrip(),
        *[f"- its fingerprint: {_code(found)}" for found in (record.get("data") or [])[:1]],
        f"- settings: {_settings(settings)}",
        f"- steps done: {record.get('step')}; config {_code(str(record.get('config_hash')))}",
        f"- with {', '.join(f'{name} {version}' for name, version in versions.items())}",
    ]
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def _unknown(runs: list[Run], lineage: Lineage) -> Iterable[str]:
    """Stages of the lineage of which no run is there."""
    known = {folder_hash(run.adapter) for run in runs if run.adapter.is_dir()}
    for record in _adapters(lineage):
        if record.hash not in known:
            yield f"### {record.stage}\n\nData and settings are not known here: the adapter came without its run."


def _scores(run: Run, card: Card) -> str:
    rows = []
    for file in sorted((run.folder / "evaluation").glob("*.json")):
        suite = read_json(file)
        for score in (suite.get("scores") or {}).values() if isinstance(suite, dict) else ():
            if isinstance(value := score.get("value"), int | float):
                rows.append((file.stem, str(score.get("label", "")), str(score.get("metric", "")), f"{value:.4f}"))
    if not rows:
        return "The run was not evaluated."
    table = _table(("suite", "task", "metric", "score"), rows)
    if card.lineage.base_ratio or card.lineage.others or card.dtype != "float32":
        table += (
            "\n\nThese are the scores of the run's own encoder, before what was changed here (dtype, merged weights)."
        )
    return table


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _public(value: Any) -> Any:
    """A setting of the data for others to read: of a folder on this machine its last name, of sets their names."""
    if isinstance(value, dict):
        return "+".join(f"{key}:{one}" if isinstance(one, int | float) else key for key, one in value.items())
    if isinstance(value, list):
        return [_public(one) for one in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _code(text: str) -> str:
    return f"`{text}`"
