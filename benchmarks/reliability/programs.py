"""The programs that the campaign disturbs, each with a tiny model: how it is started, goes on, and what it leaves."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_LIMIT = 240.0
"""Seconds after which a command counts as hung."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int | None
    """None: it hung, and was killed."""
    output: str
    seconds: float

    @property
    def has_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.output

    @property
    def is_one_line(self) -> bool:
        """Whether it failed with what is wrong, and nothing around it."""
        lines = [line for line in self.output.splitlines() if line.startswith("error: ")]
        return self.code not in (0, None) and not self.has_traceback and len(lines) == 1


def call(
    command: Sequence[object],
    work: Path,
    *,
    killed_after: float | None = None,
    file_bytes: int | None = None,
    **variables: str,
) -> Outcome:
    """Run a command of l2v in ``work``, in a session of its own.

    Args:
        command: a script of the root and its overrides.
        work: current directory.
        killed_after: seconds after which it, and all that it started, gets SIGKILL.
        file_bytes: the largest file that it may write, as on a disk that is full by then.
        variables: of its environment.
    """

    def limit() -> None:
        if file_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    given = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "L2V_CACHE": str(work / "cache"), "COLUMNS": "200"}
    begin = time.monotonic()
    log = work / "output.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, ROOT / str(command[0]), *map(str, command[1:])],
            cwd=work,
            env=os.environ | given | variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=limit,
        )
        try:
            code: int | None = process.wait(killed_after if killed_after is not None else _LIMIT)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL if killed_after is not None else None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return Outcome(code, log.read_text(encoding="utf-8", errors="replace"), time.monotonic() - begin)


@dataclass(frozen=True)
class Program:
    """A command, and what it makes."""

    name: str
    command: tuple[str, ...]
    goes_on: Callable[[Path], tuple[str, ...]]
    """The command that goes on in a folder where it was stopped."""
    result: Callable[[Path], str]
    """A digest of what it made, the same for the same settings."""


def programs(work: Path) -> list[Program]:
    """All of them. ``work`` has the model, the texts and a finished run to mine with."""
    texts = work / "texts.txt"
    train = (
        "train.py", "name=run", "runs_dir=.", f"model.source={work / 'model'}", "stage=mntp", "data=files",
        f"data.train.files={texts}", f"data.validation.files={texts}", "stage.max_steps=12", "stage.batch_size=4",
        "stage.block_length=16", "stage.validate_every=4", "logger=csv", "trainer=cpu", "trainer.precision=32-true",
    )  # fmt: skip
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
    encode = (
        "encode.py", f"encoder={work / 'model'}", f"files={texts}", "output=vectors", "trainer=cpu",
        "shard_rows=40", "batch_size=8",
    )  # fmt: skip
    mine = (
        "mine.py", f"encoder={work / 'model'}", f"pairs={work / 'pairs.jsonl'}", "output=mined.jsonl",
        "num_negatives=2", "range_max=20",
    )  # fmt: skip

    def resumed(command: tuple[str, ...]) -> Callable[[Path], tuple[str, ...]]:
        def goes_on(folder: Path) -> tuple[str, ...]:
            # a run that was killed after its end has nothing to go on with: reuse= leaves it as it is
            kept = (folder / "run" / "checkpoints" / "last.ckpt").exists() and not _is_finished(folder / "run")
            return ("train.py", "resume=run") if kept else (*command, "reuse=true")

        return goes_on

    def adapter(folder: Path) -> str:
        return _weights(folder / "run" / "encoder")

    return [
        Program("train", train, resumed(train), adapter),
        Program("train on two processes", (*train, *two), resumed((*train, *two)), adapter),
        Program("encode", encode, lambda _: encode, lambda folder: _vectors(folder / "vectors")),
        Program("mine", mine, lambda _: mine, lambda folder: _bytes(folder / "mined.jsonl")),
    ]


def _is_finished(run: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # there is none, or it is damaged
        return bool(json.loads((run / "run.json").read_text())["status"] == "finished")
    return False


def prepare(work: Path) -> None:
    """The model, the texts and the pairs, in ``work``."""
    sys.path.append(str(ROOT / "tests"))
    from tiny import SENTENCES, make_tiny_model

    make_tiny_model(work / "model")
    random.seed(0)
    words = " ".join(SENTENCES).split()
    lines = [" ".join(random.choices(words, k=random.randint(3, 14))) for _ in range(400)]
    (work / "texts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    pairs = [{"query": a, "positive": b} for a, b in zip(lines[::2], lines[1::2], strict=True)]
    (work / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")


def drafts(folder: Path) -> list[str]:
    """What a killed process had begun to write, and nobody has removed."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if ".tmp-" in path.name)


def fresh(folder: Path) -> Path:
    """An empty folder for a trial."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _weights(folder: Path) -> str:
    from safetensors.numpy import load_file

    digest = sha256()
    for file in sorted(folder.glob("*.safetensors")):
        for name, values in sorted(load_file(file).items()):
            digest.update(name.encode() + values.tobytes())
    return digest.hexdigest()


def _vectors(folder: Path) -> str:
    import pyarrow.parquet

    digest = sha256()
    for file in sorted(folder.glob("shard-*.parquet")):
        table = pyarrow.parquet.read_table(file)
        digest.update(json.dumps(table.to_pydict()).encode())
    return digest.hexdigest()


def _bytes(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()
