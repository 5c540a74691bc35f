"""A suite of tasks on one encoder: scores to ``evaluation/<suite>.json``, reused while nothing has changed."""

import hashlib
import json
import re
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

from annotated_types import Ge

from l2v.backbone import DType
from l2v.bidirectional import Attention
from l2v.encoder import Encoder
from l2v.errors import L2VError
from l2v.pooling import Pooling
from l2v.progress import say
from l2v.published import Assembly, assemble
from l2v.quantization import Quantization
from l2v.sources import folder_hash, read_json, source_hash, write_json

_BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.model", "*.txt", "1_Pooling/*.json")
"""What decides an encoder's vectors beside its weights: config, tokenizer, pooling, settings."""
_VERSION = 1
"""Part of a result's fingerprint: raise it when a task would score the same encoder otherwise."""


class Task(Protocol):
    """An evaluation. ``run`` returns named numbers; the one named ``metric`` goes into tables.

    A task may have ``evaluated_texts()`` too, for ``l2v.contamination`` to look for them in training data, and
    ``higher_is_better``, which is true where it is missing.
    """

    label: str
    metric: str
    needs_head: bool

    def run(self, encoder: Encoder, *, show: bool = False) -> dict[str, float]: ...


@dataclass(frozen=True)
class Kept:
    """Where the scores of one encoder are kept one by one."""

    folder: Path
    encoder: str
    """owner/name, for the folder of its scores."""
    fingerprint: str
    """What pins its vectors."""


@runtime_checkable
class TaskSet(Protocol):
    """What makes its entries of a suite's scores itself: several of them, kept one by one so that a crash loses one of
    them, or with a ``plot``: numbers for the report to draw, with their ``kind`` (``l2v.report.analyses``)."""

    label: str
    metric: str
    needs_head: bool

    def check(self, kept: Kept) -> None:
        """Raise an L2VError where something is missing; called before the encoder is loaded."""
        ...

    def scores(self, name: str, encoder: Encoder, kept: Kept, *, show: bool = False) -> dict[str, dict[str, Any]]:
        """Entries of a suite's scores, made by :func:`entry`; ``name`` begins their keys."""
        ...


def entry(
    label: str, metric: str, value: float, details: dict[str, float], *, higher_is_better: bool = True
) -> dict[str, Any]:
    """A score as a suite's file has it."""
    return {
        "label": label,
        "metric": metric,
        "value": value,
        "higher_is_better": higher_is_better,
        "details": details,
    }


@dataclass(frozen=True)
class Subject:
    """What is evaluated."""

    source: str
    """A run folder, a model folder, a GGUF file, a hub id, or package:NAME/FILE.gguf."""
    attention: Attention | None = None
    """None: as it was saved, else bidirectional."""
    pooling: Pooling | None = None
    """None: as it was saved, else mean."""
    max_length: Annotated[int, Ge(1)] | None = None
    """Tokens; None: as it was saved, else 512."""
    template: str | None = None
    """With {text} in it, or chat; None: as it was saved, else none."""
    adapters: tuple[str, ...] = ()
    """Folders or hub ids of adapters to merge into it, in order."""
    dtype: DType = "float32"
    quantization: Quantization | None = None
    revision: str | None = None
    """Of a hub id."""
    partial: bool = False
    """Accept layers that stay causal."""
    trust_remote_code: bool = False

    def parts(self) -> Assembly:
        """The decoder and the adapters that it is put together from."""
        folder = Path(self.source).expanduser()
        source = str(folder / "encoder") if (folder / "run.json").exists() else self.source
        return assemble(source, self.adapters, revision=self.revision, override="encoder")

    def fingerprint(self) -> list[Any]:
        """What pins the vectors: the weights' hash and the settings."""
        parts = self.parts()
        beside = None
        if parts.base.is_local and not parts.base.gguf_file:
            beside = folder_hash(Path(parts.base.path), _BESIDE_WEIGHTS)
        adapters = [folder_hash(adapter, ("*.safetensors", "*.json")) for adapter in parts.adapters]
        settings = {name: value for name, value in asdict(self).items() if name not in ("source", "adapters")}
        return [source_hash(parts.base), beside, adapters, settings]


def evaluate(
    subject: Subject, tasks: dict[str, Task | TaskSet], *, suite: str, folder: Path, show: bool = True
) -> dict[str, Any]:
    """Score an encoder on every task and write ``folder/evaluation/<suite>.json``.

    A result that is there already, of the same weights, tasks and settings, is returned and said so.

    Raises:
        L2VError: the encoder cannot be loaded.
    """
    file = folder / "evaluation" / f"{suite}.json"
    pinned = {name: _pinned(task) for name, task in tasks.items()}
    vectors = subject.fingerprint()
    fingerprint = _hash([_VERSION, vectors, pinned])
    if file.exists() and (known := read_json(file)).get("fingerprint") == fingerprint:
        say(f"{file}: reused, nothing has changed")
        return known
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise L2VError(f"output={folder}: cannot be written ({error.strerror})") from None
    name = re.sub(r"[^\w.-]+", "-", Path(subject.source).name.removesuffix(".gguf"))
    kept = Kept(file.parent / "mteb", f"l2v/{name}", _hash([_VERSION, vectors]))
    for task in tasks.values():
        if isinstance(task, TaskSet):
            task.check(kept)
    begin = time.monotonic()
    encoder = Encoder.from_pretrained(
        **asdict(subject),
        with_head=any(task.needs_head for task in tasks.values()),
    )
    scores: dict[str, dict[str, Any]] = {}
    for name, task in tasks.items():
        if isinstance(task, TaskSet):
            scores |= task.scores(name, encoder, kept, show=show)
            continue
        details = task.run(encoder, show=show)
        better = getattr(task, "higher_is_better", True)
        scores[name] = entry(task.label, task.metric, details[task.metric], details, higher_is_better=better)
    result = {
        "suite": suite,
        "encoder": subject.source,
        "attention": encoder.backbone.attention,
        "pooling": encoder.pooling,
        "fingerprint": fingerprint,
        "seconds": round(time.monotonic() - begin, 1),
        "scores": scores,
    }
    write_json(file, result)
    return result


def _pinned(task: Any) -> list[Any]:
    """A task's class and settings; texts stand for their content, and tasks inside it for theirs."""
    values = {field.name: getattr(task, field.name) for field in fields(task)}
    content = [task.fingerprint()] if hasattr(task, "fingerprint") else []
    return [type(task).__name__, {name: _setting(value) for name, value in values.items()}, *content]


def _setting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _setting(item) for key, item in value.items()}
    if hasattr(value, "run") or isinstance(value, TaskSet):
        return _pinned(value)
    return value.fingerprint() if hasattr(value, "fingerprint") else value


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
