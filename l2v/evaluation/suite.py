"""A suite of tasks on one encoder: scores to ``evaluation/<suite>.json``, reused while nothing has changed."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from l2v.bidirectional import Attention
from l2v.encoder import Encoder
from l2v.pooling import Pooling
from l2v.progress import say
from l2v.sources import folder_hash, locate, read_json, source_hash, write_json

_VERSION = 1
"""Part of a result's fingerprint: raise it when a task would score the same encoder otherwise."""


class Task(Protocol):
    """An evaluation. ``run`` returns named numbers; the one named ``metric`` goes into tables."""

    label: str
    metric: str
    needs_head: bool

    def run(self, encoder: Encoder, *, show: bool = False) -> dict[str, float]: ...


@dataclass(frozen=True)
class Subject:
    """What is evaluated."""

    source: str
    """A run folder, a model folder, a GGUF file, a hub id, or package:NAME/FILE.gguf."""
    attention: Attention | None = None
    """None: as it was saved, else bidirectional."""
    pooling: Pooling | None = None
    """None: as it was saved, else mean."""

    def fingerprint(self) -> str:
        """What pins the vectors: the weights' hash and the settings."""
        folder = Path(self.source).expanduser()
        is_run = (folder / "run.json").exists()
        weights = folder_hash(folder / "encoder") if is_run else source_hash(locate(self.source, override="encoder"))
        return f"{weights}:{self.attention}:{self.pooling}"


def evaluate(
    subject: Subject, tasks: dict[str, Task], *, suite: str, folder: Path, show: bool = True
) -> dict[str, Any]:
    """Score an encoder on every task and write ``folder/evaluation/<suite>.json``.

    A result that is there already, of the same weights, tasks and settings, is returned and said so.

    Raises:
        L2VError: the encoder cannot be loaded.
    """
    file = folder / "evaluation" / f"{suite}.json"
    pinned = {name: [type(task).__name__, asdict(task)] for name, task in tasks.items()}  # type: ignore[call-overload]
    text = json.dumps([_VERSION, subject.fingerprint(), pinned], sort_keys=True, default=str)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    if file.exists() and (known := read_json(file)).get("fingerprint") == fingerprint:
        say(f"{file}: reused, nothing has changed")
        return known
    begin = time.monotonic()
    encoder = Encoder.from_pretrained(
        subject.source,
        attention=subject.attention,
        pooling=subject.pooling,
        with_head=any(task.needs_head for task in tasks.values()),
    )
    scores = {}
    for name, task in tasks.items():
        details = task.run(encoder, show=show)
        scores[name] = {
            "label": task.label,
            "metric": task.metric,
            "value": details[task.metric],
            "higher_is_better": True,
            "details": details,
        }
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
