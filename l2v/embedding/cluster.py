"""Files of texts to shards of vectors by actors of a Ray cluster: ``encode.py engine=ray``."""

import contextlib
import logging
import os
import re
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt

from l2v.embedding.actor import ShardEncoder
from l2v.embedding.batches import sample_chunks, shard_chunks
from l2v.embedding.compression import Ranges
from l2v.embedding.embed import as_written, only_writer, prepare, told
from l2v.embedding.inputs import Row
from l2v.embedding.job import Encoding
from l2v.embedding.pool import Job, Pool
from l2v.embedding.shards import Shards
from l2v.errors import L2VError, Stopped, first_line
from l2v.extras import require
from l2v.models.settings import EncoderSettings
from l2v.progress import say, track
from l2v.runs.run import now

_LONG_NAMES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
"""Lightning's short names of precisions."""
_PATIENCE = 10.0
"""Seconds for a machine to answer."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and what each actor takes of it."""

    address: str | None = None
    """``auto`` (the cluster that this machine is part of) or host:port; None: $RAY_ADDRESS, else one is started on this
    machine for the time of the command."""
    actors: Annotated[int, Ge(1)] | None = None
    """None: as many as the cluster has room for."""
    num_cpus: Annotated[float, Gt(0)] = 1
    """Cores of an actor; a CPU model computes on as many threads."""
    num_gpus: Annotated[float, Ge(0)] | None = None
    """GPUs of an actor, at most 1; None: one if the trainer takes GPUs, which trainer=auto does where the cluster has
    some."""

    def __post_init__(self) -> None:
        if self.num_gpus is not None and self.num_gpus > 1:
            raise L2VError(f"ray.num_gpus={self.num_gpus}: expected at most 1; an actor computes on one device")
        if self.address not in (None, "auto") and not re.fullmatch(r"[^/]+:\d+", self.address or ""):
            raise L2VError(
                f"ray.address={self.address}: expected auto or host:port; start the command on a machine of the cluster"
            )


def encode_on_ray(
    subject: EncoderSettings, encoding: Encoding, trainer: dict[str, Any], cluster: Cluster, *, show: bool = True
) -> dict[str, Any]:
    """:func:`l2v.embedding.embed.encode` by actors of a Ray cluster, with the same shards and manifest.

    This process reads the files, deals out shards and writes what comes back, so that nobody else needs the files or
    the folder. An actor that dies is replaced, and its shards are dealt out again.

    Args:
        subject: the encoder.
        encoding: what is encoded.
        trainer: keyword arguments of ``lightning.Trainer`` for one device: how an actor computes.
        cluster: where.
        show: progress bars.

    Raises:
        L2VError: as of ``encode``; no Ray, no such cluster, or no room in it; or actors die over and over.
        Stopped: by a signal.
    """
    require("engine=ray", "ray")
    trainer = _for_one_device(trainer)
    shards = Shards(encoding.folder)
    with only_writer(encoding, 0):
        manifest = prepare(subject, encoding, trainer["precision"], shards, show)
        missing = shards.missing(manifest)
        if "finished" in manifest and not missing:
            say(f"{encoding.folder}: reused, nothing has changed")
            return manifest
        with _stopping(lambda: told(shards)), _connected(cluster):
            pool = _pool(as_written(subject, manifest), encoding, trainer, cluster, max(1, len(missing)))
            if encoding.vector_dtype == "int8" and manifest["calibration"] is None and missing:
                manifest = shards.update(calibration=_ranges(pool, encoding, manifest).record())
            ranges = Ranges.read(manifest["calibration"]) if manifest["calibration"] else None
            jobs = _jobs(shard_chunks(encoding, manifest["rows"], missing))
            made = pool.run(jobs, lambda actor, job: actor.shard.remote(job.texts, ranges))
            for job, vectors in track(made, "encoding", total=len(missing), show=show):
                kept = list(zip(*(row.kept for row in job.chunk), strict=True))
                shards.write(job.number, job.number * encoding.shard_rows, vectors, kept, manifest["columns"])
            return shards.update(dimension=pool.dimension, shards=shards.records(manifest), finished=now())


def _for_one_device(trainer: dict[str, Any]) -> dict[str, Any]:
    """The trainer's settings, if one device can have them."""
    for name, of_one in (("devices", 1), ("num_nodes", 1), ("strategy", "auto")):
        if trainer.get(name, of_one) != of_one:
            raise L2VError(
                f"trainer.{name}: an actor of engine=ray has one device; choose trainer=auto or gpu, and ray.actors="
            )
    precision = str(trainer.get("precision", "32-true"))
    if precision == "auto":
        raise L2VError("trainer.precision=auto: machines of a cluster may differ; name one, as 32-true or bf16-mixed")
    return {**trainer, "precision": _LONG_NAMES.get(precision, precision)}


@contextlib.contextmanager
def _connected(cluster: Cluster) -> Iterator[None]:
    """Meanwhile there is a cluster. One that this process is connected to already is used, and left as it is."""
    import ray

    if ray.is_initialized():
        yield
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that is started here: it reports to nobody
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, include_dashboard=False if address == "local" else None, log_to_driver=False,
                 logging_level=logging.ERROR)  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise L2VError(f"ray.address={address}: {first_line(error)}") from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray has set its own
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Whether anybody listens there: Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
        except (OSError, OverflowError) as error:
            raise L2VError(f"ray.address={address}: no cluster can be reached there ({first_line(error)})") from None


@contextlib.contextmanager
def _stopping(how: Callable[[], str]) -> Iterator[None]:
    """Meanwhile Ctrl-C and SIGTERM end in ``Stopped``. Ray hands a KeyboardInterrupt on, and loses other errors."""
    received: list[int] = []

    def stop(number: int, _: Any) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # while it starts, Ray answers SIGTERM by an exit
        raise Stopped(received[0] if received else signal.SIGTERM, how()) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pool(subject: EncoderSettings, encoding: Encoding, trainer: dict[str, Any], cluster: Cluster, most: int) -> Pool:
    """As many actors as there is room for, and ``most`` at most."""
    import ray

    have = ray.cluster_resources()
    accelerator = trainer.get("accelerator", "auto")
    if accelerator == "auto":
        accelerator = "gpu" if have.get("GPU") and cluster.num_gpus != 0 else "cpu"
    gpus = cluster.num_gpus if cluster.num_gpus is not None else float(accelerator in ("gpu", "cuda"))
    room = have.get("CPU", 0) // cluster.num_cpus
    if gpus:
        room = min(room, have.get("GPU", 0) // gpus)
    if cluster.actors is None and room < 1:
        raise L2VError(
            f"engine=ray: the cluster has {have.get('CPU', 0):g} cores and {have.get('GPU', 0):g} GPUs, too few for an "
            f"actor of {cluster.num_cpus:g} and {gpus:g}; set ray.num_cpus and trainer=, or ray.actors if it will grow"
        )
    actor = ray.remote(ShardEncoder).options(
        num_cpus=cluster.num_cpus, num_gpus=gpus, max_concurrency=1 + encoding.workers
    )
    settings = subject, encoding, {**trainer, "accelerator": accelerator}, Path.cwd()
    return Pool(lambda: actor.remote(*settings), min(cluster.actors or int(room), most))


def _jobs(numbered: Iterable[tuple[int, list[Row]]]) -> Iterator[Job]:
    return (Job(number, chunk) for number, chunk in numbered)


def _ranges(pool: Pool, encoding: Encoding, manifest: dict[str, Any]) -> Ranges:
    """What int8 codes are spread over."""
    jobs = _jobs(sample_chunks(encoding, manifest["calibration_rows"]))
    found = None
    for _, ranges in pool.run(jobs, lambda actor, job: actor.ranges.remote(job.texts)):
        found = ranges.join(found)
    assert found is not None
    return found
