"""A suite of tasks on one encoder: scores to ``evaluation/<suite>.json``, reused while nothing has changed."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import torch

from l2v.encoders.load import load_encoder
from l2v.encoders.text_encoder import TextEncoder, with_backbone
from l2v.errors import L2VError
from l2v.evaluation.results import Entries, ResultStore
from l2v.evaluation.task import Task
from l2v.models.settings import EncoderSettings
from l2v.process import is_set_up, set_up_process
from l2v.progress import say
from l2v.runs.files import in_a_name, read_json, write_json
from l2v.runs.hashes import settings_hash

_VERSION = 3
"""Part of a result's fingerprint: raise it when a task would score the same encoder otherwise."""


def evaluate(
    subject: EncoderSettings,
    tasks: dict[str, Task],
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
        L2VError: the encoder cannot be loaded, a task misses something or needs what the encoder has not, or there are
            not so many GPUs.
    """
    if torch.cuda.is_available() and devices > torch.cuda.device_count():
        raise L2VError(f"devices={devices}: this machine has {torch.cuda.device_count()}")
    file = folder / "evaluation" / f"{suite}.json"
    vectors = subject.fingerprint()
    fingerprint = settings_hash([_VERSION, vectors, {name: task.fingerprint() for name, task in tasks.items()}])
    if file.exists() and (known := read_json(file)).get("fingerprint") == fingerprint:
        say(f"{file}: reused, nothing has changed")
        return known
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise L2VError(f"output={folder}: cannot be written ({error.strerror})") from None
    store = result_store(subject, folder, vectors)
    for task in tasks.values():
        task.check(store)
    begin = time.monotonic()
    jobs = [_Job(name, part, store) for name, task in tasks.items() for part in task.parts(store)]
    loading = _Loading(
        subject,
        with_head=any(task.needs_head for task in tasks.values()),
        backbone_for=tuple(task.label for task in tasks.values() if task.needs_backbone or task.needs_head),
    )
    if devices > 1 and len(jobs) > 1:
        done, described = _in_processes(jobs, loading, min(devices, len(jobs)))
    else:
        encoder = loading.load()
        done, described = [job.run(encoder, show=show) for job in jobs], encoder.describe()
    scored: dict[str, Entries] = {name: {} for name in tasks}
    for job, entries in zip(jobs, done, strict=True):
        scored[job.name] |= entries
    result = {
        "suite": suite,
        "encoder": subject.source,
        "adapters": list(subject.adapters),
        **described,
        "fingerprint": fingerprint,
        "seconds": round(time.monotonic() - begin, 1),
        "scores": {
            key: score for name, task in tasks.items() for key, score in task.table(name, store, scored[name]).items()
        },
    }
    write_json(file, result)
    return result


def result_store(subject: EncoderSettings, folder: Path, vectors: list[Any]) -> ResultStore:
    """Where scores that are kept one by one lie, of an encoder whose vectors are pinned so."""
    name = in_a_name(Path(subject.source).name.removesuffix(".gguf"))
    return ResultStore(folder / "evaluation" / "mteb", f"l2v/{name}", settings_hash([_VERSION, vectors]))


class _Job(NamedTuple):
    """A task, or a part of one, for whichever process is free."""

    name: str
    task: Task
    store: ResultStore

    def run(self, encoder: TextEncoder, *, show: bool) -> Entries:
        return self.task.evaluate(self.name, encoder, self.store, show=show)


class _Loading(NamedTuple):
    """How a process loads the encoder."""

    settings: EncoderSettings
    with_head: bool
    backbone_for: tuple[str, ...]
    """Labels of the tasks that look inside the model."""

    def load(self, device: str | None = None) -> TextEncoder:
        encoder = load_encoder(self.settings, with_head=self.with_head, device=device)
        for label in self.backbone_for:
            with_backbone(encoder, label)
        return encoder


def _in_processes(jobs: list[_Job], loading: _Loading, count: int) -> tuple[list[Entries], dict[str, Any]]:
    """The entries of each job, done on so many devices, each with the encoder; and what the encoder says of itself."""
    context = multiprocessing.get_context("spawn")
    devices = context.Queue()
    for number in range(count):
        devices.put(f"cuda:{number}" if torch.cuda.is_available() else "cpu")
    threads = max(1, (os.cpu_count() or 1) // count)
    with ProcessPoolExecutor(count, context, _begin_process, (devices, threads, loading, is_set_up())) as pool:
        futures = [pool.submit(_score_in_process, job) for job in jobs]
        try:
            done = [future.result() for future in futures]
        except BrokenProcessPool:
            raise L2VError("a process of the evaluation died, perhaps for want of memory; set devices lower") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():  # else this one waits for the end of their tasks
                process.terminate()
            raise
    return [entries for entries, _ in done], done[0][1]


class _Process:
    """What a process that :func:`_in_processes` started works with."""

    device: str
    loading: _Loading
    encoder: TextEncoder | None = None


def _begin_process(devices: Any, threads: int, loading: _Loading, as_program: bool) -> None:
    if as_program:
        set_up_process()
    _Process.device, _Process.loading = devices.get(), loading
    torch.set_num_threads(threads)


def _score_in_process(job: _Job) -> tuple[Entries, dict[str, Any]]:
    if _Process.encoder is None:  # here and not at the beginning, where an error would break the pool
        _Process.encoder = _Process.loading.load(_Process.device)
    return job.run(_Process.encoder, show=False), _Process.encoder.describe()
