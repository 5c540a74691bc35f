"""A run's encoder for others: a folder for sentence-transformers, transformers and l2v."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le

from l2v.encoders.encoder import Encoder
from l2v.encoders.saved_settings import saved_settings
from l2v.errors import L2VError
from l2v.export.card import Card, Form, model_card
from l2v.export.merging import Method, blend, stack_adapters
from l2v.export.onnx import check_packages, write_onnx
from l2v.export.vectors import write_vectors
from l2v.models.backbone import Backbone
from l2v.models.compatibility import write_for_transformers_4
from l2v.models.depth import depth_of
from l2v.models.settings import DType, EncoderSettings
from l2v.models.weights import cast_weights
from l2v.progress import say
from l2v.runs.adapter_folders import ADAPTER_CONFIG
from l2v.runs.files import draft_folder, read_json, write_json, write_text
from l2v.runs.hashes import folder_hash
from l2v.runs.initialization import Initialization
from l2v.runs.lineage import encoder_hash
from l2v.runs.locations import Source
from l2v.runs.run import Run, lineage_at


@dataclass(frozen=True)
class Merge:
    """How adapters and base become one set of weights."""

    base_ratio: Annotated[float, Ge(0), Le(1)] = 0.0
    """Share of the original decoder's weights in the result. 0.5 undoes much of what adaptation forgot (BidirLM,
    arXiv 2604.02045)."""
    runs: tuple[str, ...] = ()
    """Folders of other finished runs, whose encoders' weights are merged with this one's: of other seeds, data or
    checkpoints (Qwen3-Embedding, arXiv 2506.05176; EmbeddingGemma, arXiv 2509.20354)."""
    weights: tuple[Annotated[float, Gt(0)], ...] | None = None
    """Of the run and of each of ``runs``, of any sum; None: all equal."""
    method: Method = "average"
    """The mean of the weights, or a walk along the arc between them (SLERP), from one run to the next."""

    def __post_init__(self) -> None:
        if self.weights is not None and len(self.weights) != 1 + len(self.runs):
            raise L2VError(
                f"merge.weights: expected {1 + len(self.runs)}, of the run and of each of merge.runs, found "
                f"{len(self.weights)}"
            )

    def others(self) -> list[tuple[Run, float, float]]:
        """The other runs; the share of each in what is merged when its turn comes, and in the result.

        Raises:
            L2VError: a folder is no run.
        """
        first, *weights = self.weights or (1.0,) * (1 + len(self.runs))
        sums = [first + sum(weights[: place + 1]) for place in range(len(weights))]
        opened = [Run.open(path, "merge.runs") for path in self.runs]
        return [
            (run, weight / so_far, weight / sums[-1]) for run, weight, so_far in zip(opened, weights, sums, strict=True)
        ]


_TAKEN = (
    *("pooling", "max_length", "text_max_length", "template", "separator", "pooled_tokens"),
    "special_tokens",
    *("dtype", "attn_implementation", "partial", "trust_remote_code"),
)
"""Settings of an encoder that a run can be exported with."""


@dataclass(frozen=True)
class Export:
    """What to write of a run."""

    form: Form = "merged"
    """A whole model, or one adapter on the base, whose weights stay where they are."""
    dtype: DType = "float32"
    """Of the written weights."""
    merge: Merge = field(default_factory=Merge)
    onnx: bool = False
    """Write ``onnx/model.onnx`` too."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """More instructions for sentence-transformers and mteb, by the name of a prompt, without separator."""
    encoder: EncoderSettings | None = None
    """How the encoder is used, where it is not as the run has it: pooling, max_length, template, separator, ..."""

    def check(self, run: Run) -> Initialization:
        """What the run began with.

        Raises:
            L2VError: the run is not finished, or cannot be written so. No model is loaded.
        """
        _check_finished(run, "run")
        others = [run for run, *_ in self.merge.others()]
        for other in others:
            _check_finished(other, "merge.runs")
        for name in self.encoder.differences() if self.encoder is not None else ():
            if name not in _TAKEN:
                raise L2VError(f"{name}: not used here, the run has its own; there are {', '.join(_TAKEN)}")
        _check_alike(run, others)
        start = Initialization.of(run)
        if self.onnx:
            if self.dtype != "float32" or self.form != "merged":
                raise L2VError("onnx=true: expected dtype=float32 and form=merged, which the graph is made of")
            check_packages()
        if self.form == "merged":
            return start
        if not adapters_of(run, start):
            raise L2VError(f"form=adapter: {run.folder} has no adapter, it trained all weights; choose form=merged")
        if start.base.gguf_file:
            raise L2VError(
                f"form=adapter: transformers loads no adapter on the GGUF file {start.base.name}; choose form=merged"
            )
        if start.base.layers is not None:
            raise L2VError(
                f"form=adapter: {run.folder} has kept {start.base.layers} layers of its base, and the adapter would be "
                "put on all of them; choose form=merged"
            )
        if self.dtype != "float32" or self.merge.base_ratio > 0:
            raise L2VError("form=adapter leaves the base as it is: expected dtype=float32 and merge.base_ratio=0")
        if self.merge.runs:
            raise L2VError("form=adapter: merged runs have no adapter in common; choose form=merged")
        return start


def _check_finished(run: Run, override: str) -> None:
    if not run.is_finished:
        raise L2VError(f"{override}={run.folder}: the run is not finished; go on with it first: resume={run.folder}")
    if run.exported is None:
        raise L2VError(
            f"{override}={run.folder}: the run has exported nothing; first resume={run.folder} export=adapter"
        )


def export(run: Run, folder: Path, wanted: Export | None = None, *, name: str | None = None) -> Encoder:
    """Put a run's encoder together from its parts, and write it with its lineage and a model card.

    The run's own ``encoder/`` is read for its settings only. Adapters are merged in the order of the lineage, in
    float32 whatever the dtype is.

    Args:
        run: a finished one.
        folder: where the encoder goes; what is there is replaced.
        wanted: what to write; None: a merged model in float32.
        name: of the encoder, for the card; None: that of the folder.

    Raises:
        L2VError: the run is not finished, what it refers to is not there, or it cannot be written so.
    """
    wanted = wanted or Export()
    start = wanted.check(run)
    place = _place(run)
    settings = saved_settings(place)
    if wanted.encoder is not None:
        settings = wanted.encoder.usage(settings)
    with draft_folder(folder) as draft:
        write = _write_merged if wanted.form == "merged" else _write_adapter
        encoder = write(wanted, run, start, settings, place, draft)
        difference = None
        if wanted.onnx:
            difference = write_onnx(encoder, draft / "onnx" / "model.onnx")
            say(f"onnx/model.onnx: its vectors differ by at most {difference:.1e}")
        lineage = replace(
            lineage_at(run, folder),
            base_ratio=wanted.merge.base_ratio,
            others=_records(wanted.merge),
            encoder=encoder_hash(draft),
        )
        lineage.write(draft / "lineage.json")
        write_vectors(encoder, draft)
        about = Card(name or folder.name, start.head or start.base, lineage, wanted.form, wanted.dtype, difference)
        write_text(draft / "README.md", model_card(run, encoder, about))
    return encoder


def adapters_of(run: Run, start: Initialization) -> list[Path]:
    """Folders of the adapters that made a run's encoder, in order; one that training went on with is in the last."""
    return [*start.merge, *([run.adapter] if run.adapter.exists() else [])]


def _write_merged(
    wanted: Export, run: Run, start: Initialization, settings: dict[str, Any], place: Source, draft: Path
) -> Encoder:
    merge = wanted.merge
    mixed = merge.base_ratio > 0 or bool(merge.runs)
    # mixed before they are rounded
    backbone = _load(start.base, wanted, settings, adapters_of(run, start), "float32" if mixed else wanted.dtype)
    for other, share, _ in merge.others():
        began = Initialization.of(other)
        theirs = _load(began.base, wanted, settings, adapters_of(other, began))
        if theirs.tokenizer.get_vocab() != backbone.tokenizer.get_vocab():
            raise L2VError(f"merge.runs={other.folder}: its tokenizer has other tokens")
        blend(backbone.decoder, theirs.decoder, share, what=f"merge.runs={other.folder}", method=merge.method)
        del theirs
        say(f"merged {other.folder}")
    if merge.base_ratio > 0:
        original = (start.head or start.base).shallower(depth_of(backbone.config))
        base = _load(original, wanted, settings, []).decoder
        blend(backbone.decoder, base, merge.base_ratio, what="merge.base_ratio")
    if mixed:
        cast_weights(backbone.decoder.parameters(), getattr(torch, wanted.dtype))
    encoder = Encoder.with_settings(backbone, settings, place)
    encoder.save(draft, prompts=wanted.prompts)
    return encoder


def _place(run: Run) -> Source:
    return Source(str(run.folder), str((run.exported or run.encoder).resolve()))


def _check_alike(run: Run, others: list[Run]) -> None:
    """Refuse to merge runs whose weights mean something else.

    Raises:
        L2VError: naming what differs.
    """
    if not others:
        return
    settings = saved_settings(_place(run))
    if not isinstance(settings.get("pooling", "mean"), str):
        raise L2VError("merge.runs: a pooling with weights of its own is not merged")
    for other in others:
        theirs = saved_settings(_place(other))
        differing = [
            f"{key}={theirs.get(key)} instead of {settings.get(key)}"
            for key in dict.fromkeys([*settings, *theirs])
            if theirs.get(key) != settings.get(key)
        ]
        if differing:
            raise L2VError(f"merge.runs={other.folder}: its encoder is used otherwise: {', '.join(differing)}")


def _records(merge: Merge) -> list[dict[str, Any]]:
    """For the lineage: what was merged with the run, with the hash of what it trained, and the share in the result."""
    found = []
    for other, _, share in merge.others():
        lineage = other.lineage()
        hashed = lineage.adapter.hash if lineage.adapter else folder_hash(other.encoder)
        found.append({"run": other.folder.name, "hash": hashed, "share": round(share, 6), "method": merge.method})
    return found


def _write_adapter(
    wanted: Export, run: Run, start: Initialization, settings: dict[str, Any], place: Source, draft: Path
) -> Encoder:
    stack_adapters(adapters_of(run, start), draft)
    config = read_json(draft / ADAPTER_CONFIG)
    base = start.base
    named = {"base_model_name_or_path": base.path, "revision": None if base.is_local else base.revision}
    write_json(draft / ADAPTER_CONFIG, config | named)
    encoder = Encoder.with_settings(_load(base, wanted, settings, [draft]), settings, place)
    encoder.backbone.tokenizer.save_pretrained(draft)
    write_for_transformers_4(draft)
    encoder.save_settings(draft, wanted.prompts, as_adapter=True)
    return encoder


def _load(
    source: Source, wanted: Export, saved: dict[str, Any], adapters: list[Path], dtype: DType = "float32"
) -> Backbone:
    settings = replace(
        wanted.encoder or EncoderSettings(source.name),
        attention=saved.get("attention", "bidirectional"),
        partial=saved.get("partial", False) or (wanted.encoder is not None and wanted.encoder.partial),
        dtype=dtype,
    )
    return Backbone.load(source, settings, merge=adapters)
