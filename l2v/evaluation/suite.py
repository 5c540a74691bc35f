"""A suite of tasks on one encoder: scores to ``evaluation/<suite>.json``, reused while nothing has changed."""

import hashlib
import json
import multiprocessing
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from l2v.encoders.encoder import Encoder
from l2v.encoders.settings import EncoderSettings
from l2v.errors import L2VError
from l2v.process import is_set_up, set_up_process
from l2v.progress import say
from l2v.runs.files import read_json, write_json

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
class ResultStore:
    """Where the scores of one encoder are kept one by one."""

    folder: Path
    encoder: str
    """owner/name, for the folder of its scores."""
    fingerprint: str
    """What pins its vectors."""


@runtime_checkable
class TaskSet(Protocol):
    """Evaluations that keep each score for itself as soon as it is there, so that a crash loses one of them."""

    label: str
    metric: str
    needs_head: bool

    def check(self, kept: ResultStore) -> None:
        """Raise an L2VError where something is missing; called before the encoder is loaded."""
        ...

    def parts(self, kept: ResultStore) -> "Sequence[TaskSet]":
        """Those of its tasks that have no score yet, each as a set of its own, so that processes can share them."""
        ...

    def fill(self, encoder: Encoder, kept: ResultStore, *, show: bool = False) -> None:
        """Score and keep what has no score yet."""
        ...

    def table(self, name: str, kept: ResultStore) -> dict[str, dict[str, Any]]:
        """Entries of a suite's scores, from what is kept; ``name`` is the key of the first, and begins the others'."""
        ...


@runtime_checkable
class Analysis(Protocol):
    """What makes several entries of a suite's scores, of which one may have a ``plot``: numbers for the report to draw,
    with their ``kind`` (``l2v.report.analyses``)."""

    label: str
    metric: str
    needs_head: bool

    def check(self, kept: ResultStore) -> None:
        """Raise an L2VError where something is missing; called before the encoder is loaded."""
        ...

    def entries(
        self, name: str, encoder: Encoder, kept: ResultStore, *, show: bool = False
    ) -> dict[str, dict[str, Any]]:
        """Entries of a suite's scores, made by :func:`entry`; ``name`` begins their keys."""
        ...


Evaluation = Task | TaskSet | Analysis
Entries = dict[str, dict[str, Any]]
"""Of a suite's scores, by their keys."""


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


def evaluate(
    subject: EncoderSettings,
    tasks: dict[str, Evaluation],
    *,
    suite: str,
    folder: Path,
    devices: int = 1,
    show: bool = True,
) -> dict[str, Any]:
    """Score an encoder on every task and write ``folder/evaluation/<suite>.json``.

    A result that is there already, of the same weights, tasks and settings, is returned and said so.

    Args:
        subject: the encoder.
        tasks: by name.
        suite: their name.
        folder: a run, or another.
        devices: GPUs (on a machine without one: processes) that share the tasks, each with the whole encoder.
        show: progress bars.

    Raises:
        L2VError: the encoder cannot be loaded, or there are not so many GPUs.
    """
    if torch.cuda.is_available() and devices > torch.cuda.device_count():
        raise L2VError(f"devices={devices}: this machine has {torch.cuda.device_count()}")
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
    kept = ResultStore(file.parent / "mteb", f"l2v/{name}", _hash([_VERSION, vectors]))
    for task in tasks.values():
        if isinstance(task, TaskSet | Analysis):
            task.check(kept)
    begin = time.monotonic()
    with_head = any(task.needs_head for task in tasks.values())
    jobs = [
        _Job(subject, name, part, kept, with_head)
        for name, task in tasks.items()
        for part in (task.parts(kept) if isinstance(task, TaskSet) else [task])
    ]
    if devices > 1 and len(jobs) > 1:
        done = _in_processes(jobs, min(devices, len(jobs)))
    else:
        encoder = Encoder.from_pretrained(**asdict(subject), with_head=with_head)
        done = [_do(job, encoder, show) for job in jobs] or [_Done("", {}, encoder.backbone.attention, encoder.pooling)]
    entries = {one.name: one.entries for one in done}
    result = {
        "suite": suite,
        "encoder": subject.source,
        "adapters": list(subject.adapters),
        "attention": done[0].attention,
        "pooling": done[0].pooling,
        "fingerprint": fingerprint,
        "seconds": round(time.monotonic() - begin, 1),
        "scores": {
            key: score
            for name, task in tasks.items()
            for key, score in (task.table(name, kept) if isinstance(task, TaskSet) else entries[name]).items()
        },
    }
    write_json(file, result)
    return result


def score(
    name: str, task: Evaluation, encoder: Encoder, kept: ResultStore, *, show: bool = False
) -> dict[str, dict[str, Any]]:
    """A task's entries of a suite's scores; of a set none, which keeps its scores for its ``table``."""
    if isinstance(task, TaskSet):
        task.fill(encoder, kept, show=show)
        return {}
    if isinstance(task, Analysis):
        return task.entries(name, encoder, kept, show=show)
    details = task.run(encoder, show=show)
    better = getattr(task, "higher_is_better", True)
    return {name: entry(task.label, task.metric, details[task.metric], details, higher_is_better=better)}


class _Job(NamedTuple):
    """A task, or one of a set, for whichever process is free."""

    subject: EncoderSettings
    name: str
    task: Evaluation
    kept: ResultStore
    with_head: bool


class _Done(NamedTuple):
    name: str
    entries: Entries
    attention: str
    pooling: str


def _do(job: _Job, encoder: Encoder, show: bool) -> _Done:
    entries = score(job.name, job.task, encoder, job.kept, show=show)
    return _Done(job.name, entries, encoder.backbone.attention, encoder.pooling)


def _in_processes(jobs: list[_Job], count: int) -> list[_Done]:
    """The jobs on so many devices, each with the encoder."""
    context = multiprocessing.get_context("spawn")
    devices = context.Queue()
    for number in range(count):
        devices.put(f"cuda:{number}" if torch.cuda.is_available() else "cpu")
    threads = max(1, (os.cpu_count() or 1) // count)
    with ProcessPoolExecutor(count, context, _begin_process, (devices, threads, is_set_up())) as pool:
        futures = [pool.submit(_do_in_process, job) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise L2VError("a process of the evaluation died, perhaps for want of memory; set devices lower") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_DEVICE = "cpu"
_ENCODER: Encoder | None = None
"""Of a process that :func:`_in_processes` started."""


def _begin_process(devices: Any, threads: int, as_program: bool) -> None:
    global _DEVICE
    if as_program:
        set_up_process()
    _DEVICE = devices.get()
    torch.set_num_threads(threads)


def _do_in_process(job: _Job) -> _Done:
    global _ENCODER
    if _ENCODER is None:
        _ENCODER = Encoder.from_pretrained(**asdict(job.subject), with_head=job.with_head, device=_DEVICE)
    return _do(job, _ENCODER, show=False)


def _pinned(task: Any) -> list[Any]:
    """A task's class and settings; texts stand for their content, and tasks inside it for theirs."""
    values = {field.name: getattr(task, field.name) for field in fields(task)}
    content = [task.fingerprint()] if hasattr(task, "fingerprint") else []
    return [type(task).__name__, {name: _setting(value) for name, value in values.items()}, *content]


def _setting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _setting(item) for key, item in value.items()}
    if hasattr(value, "run") or isinstance(value, TaskSet | Analysis):
        return _pinned(value)
    return value.fingerprint() if hasattr(value, "fingerprint") else value


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
