"""What is done to the programs, a trial at a time, and what counts as a fault."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reliability.programs import ROOT, Outcome, Program, call, drafts, fresh

FAULTS = ("lost", "wrong", "traceback", "hung", "left behind", "code ran")


@dataclass(frozen=True)
class Trial:
    """One disturbance of one program."""

    part: str
    """A row of the table."""
    what: str
    """What was done, to do it again."""
    fault: str | None
    """Of ``FAULTS``; None: it held."""
    detail: str = ""


@dataclass(frozen=True)
class Known:
    """An undisturbed run of a program."""

    program: Program
    folder: Path
    digest: str
    seconds: float


def undisturbed(program: Program, work: Path) -> Known:
    folder = fresh(work / "undisturbed" / _slug(program.name))
    outcome = _in(folder, work, program.command)
    if outcome.code != 0:
        raise SystemExit(f"{program.name}: failed undisturbed\n{outcome.output}")
    return Known(program, folder, program.result(folder), outcome.seconds)


def killed(known: Known, work: Path, draw: random.Random) -> Trial:
    """SIGKILL to all processes at a random moment, once or twice; then the command goes on."""
    folder = fresh(work / "trial")
    program, moments = known.program, [draw.uniform(0, known.seconds) for _ in range(draw.choice((1, 1, 2)))]
    told = partial(Trial, f"killed: {program.name}", f"after {', '.join(f'{s:.2f} s' for s in moments)}")
    command = program.command
    for moment in moments:
        _in(folder, work, command, killed_after=moment)
        command = program.goes_on(folder)
    return told(*_judged(_in(folder, work, command), known, folder))


def full_disk(known: Known, work: Path, draw: random.Random) -> Trial:
    """No file may grow beyond a size, as on a disk that is full; then there is room again."""
    folder = fresh(work / "trial")
    program, size = known.program, int(2 ** draw.uniform(6, 16))
    told = partial(Trial, f"full disk: {program.name}", f"files of at most {size} bytes")
    outcome = _in(folder, work, program.command, file_bytes=size)
    if outcome.code is None:
        return told("hung")
    if outcome.has_traceback:
        return told("traceback", _end(outcome))
    if outcome.code == 0:  # it had room enough
        return told(*_judged(outcome, known, folder))
    return told(*_judged(_in(folder, work, program.goes_on(folder)), known, folder))


def damaged(known: Known, work: Path, draw: random.Random) -> Trial:
    """A file of what was made is cut, emptied or has other bytes; the same command, or going on, must tell or mend."""
    folder = fresh(work / "trial")
    shutil.copytree(known.folder, folder, dirs_exist_ok=True)
    program = known.program
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size and p.name != "output.txt")
    files = [p for p in files if "cache" not in p.relative_to(folder).parts and not p.name.startswith(".lock")]
    file, how = draw.choice(files), draw.choice(list(_DAMAGE))
    os.utime(file, (time.time() - 3600,) * 2)
    file.write_bytes(_DAMAGE[how](file.read_bytes(), draw))
    told = partial(Trial, f"damaged: {program.name}", f"{file.relative_to(folder)}: {how}")
    reader: tuple[str, ...] = program.goes_on(folder)
    if reader[0] == "train.py":  # a later stage begins with the run
        reader = (
            "train.py",
            "name=next",
            *(o for o in program.command[2:] if "model.source" not in o),
            "init_from=run",
        )
    outcome = _in(folder, work, reader)
    if outcome.code is None:
        return told("hung")
    if outcome.has_traceback:
        return told("traceback", _end(outcome))
    if outcome.code != 0:
        return told(None, "told") if outcome.is_one_line else told("traceback", _end(outcome))
    if reader[0] == "train.py":
        # what it took from the run must be what the run wrote
        same = _digest_of_next(folder) == _next_of(known, work, reader)
        return told(None if same else "wrong")
    return told(*_judged(outcome, known, folder))


def _next_stage(training: Program) -> tuple[str, ...]:
    """A stage that begins with what a training wrote."""
    settings = (override for override in training.command[2:] if "model.source" not in override)
    return ("train.py", "name=next", *settings, "init_from=run")


_references: dict[str, str] = {}


def _next_of(known: Known, work: Path, reader: tuple[str, ...]) -> str:
    """What a later stage makes of the undamaged run."""
    if known.program.name not in _references:
        folder = fresh(work / "undisturbed" / "next")
        shutil.copytree(known.folder / "run", folder / "run")
        outcome = _in(folder, work, reader)
        assert outcome.code == 0, outcome.output
        _references[known.program.name] = _digest_of_next(folder)
    return _references[known.program.name]


def _digest_of_next(folder: Path) -> str:
    from hashlib import sha256

    return sha256((folder / "next" / "encoder" / "model.safetensors").read_bytes()).hexdigest()


_DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut in half": lambda content, _: content[: len(content) // 2],
    "empty": lambda _, __: b"",
    "a byte flipped": lambda content, draw: _flipped(content, draw.randrange(len(content))),
    "zeros at the end": lambda content, _: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
}


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


def hostile(known: Known, work: Path, draw: random.Random) -> Trial:
    """A finished run from someone else whose files name code, other places, or a secret of the environment."""
    folder = fresh(work / "trial")
    shutil.copytree(known.folder, folder, dirs_exist_ok=True)
    run, marker = folder / "run", folder / "CODE_RAN"
    how = draw.choice(list(_HOSTILE))
    _HOSTILE[how](run, marker)
    reader = draw.choice(
        [
            ("train.py", "resume=run", "stage.max_steps=14"),
            (
                "train.py",
                "name=next",
                *(o for o in known.program.command[2:] if "model.source" not in o),
                "init_from=run",
            ),
            ("evaluate.py", "encoder=run", "evaluation=smoke", "output=scores"),
            ("export.py", "run=run", "output=exported"),
        ]
    )
    told = partial(Trial, "hostile run", f"{how}; {reader[0]} {reader[1]}")
    outcome = _in(folder, work, reader, L2V_TORTURE_SECRET="a-secret-of-the-environment")
    if marker.exists() or (folder.parent / "escaped").exists():
        shutil.rmtree(folder.parent / "escaped", ignore_errors=True)
        return told("code ran", _end(outcome))
    written = [p for p in folder.rglob("*") if p.is_file() and p.suffix in (".yaml", ".json", ".csv", ".jsonl", ".txt")]
    if any("a-secret-of-the-environment" in p.read_text(encoding="utf-8", errors="replace") for p in written):
        return told("code ran", "a secret was written")
    if outcome.code is None:
        return told("hung")
    return told("traceback", _end(outcome)) if outcome.has_traceback else told(None)


def _config(run: Path, old: str, new: str) -> None:
    text = (run / "config.yaml").read_text(encoding="utf-8")
    changed = re.sub(old, new, text, count=1, flags=re.M)
    assert changed != text, old
    (run / "config.yaml").write_text(changed, encoding="utf-8")


def _record(run: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads((run / name).read_text(encoding="utf-8"))
    change(record)
    (run / name).write_text(json.dumps(record), encoding="utf-8")


class _Executes:
    """What unpickling runs."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def _pickled(run: Path, marker: Path) -> None:
    import pickle

    for file in (run / "checkpoints").glob("*.ckpt"):
        file.write_bytes(pickle.dumps(_Executes(marker)))


def _adapter_escapes(record: dict[str, Any]) -> None:
    if record.get("adapter"):
        record["adapter"]["stage"] = "x/../../../escaped"


_HOSTILE: dict[str, Callable[[Path, Path], Any]] = {
    "a logger that is a shell command": lambda run, marker: _config(
        run,
        r"^logger:.*\n(?:  .*\n)*",
        f"logger:\n  evil:\n    _target_: subprocess.getoutput\n    cmd: touch {marker}\n",
    ),
    "a data source that is a shell command": lambda run, marker: _config(
        run, r"_target_: l2v\.data\.texts\.FileTexts", f"_target_: os.system\n    command: touch {marker}"
    ),
    "an interpolated secret": lambda run, _: _config(run, r"^name: .*$", "name: ${oc.env:L2V_TORTURE_SECRET}"),
    "a stage that leads out": lambda run, _: _record(run, "lineage.json", _adapter_escapes),
    "trust in remote code": lambda run, _: _record(
        run, "run.json", lambda record: record["overrides"].append("model.trust_remote_code=true")
    ),
    "pickles for checkpoints": _pickled,
}


def two_at_once(known: Known, work: Path, draw: random.Random) -> Trial:
    """Two trainings of one name at the same instant, of other seeds: one trains, the other is told."""
    folder = fresh(work / "trial")
    seeds = draw.sample(range(1000), 2)
    commands = [[*known.program.command, f"seed={seed}"] for seed in seeds]
    given = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "L2V_CACHE": str(work / "cache")}
    started = [
        subprocess.Popen(
            [sys.executable, ROOT / command[0], *command[1:]],
            cwd=folder,
            env=os.environ | given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    outputs = [process.communicate()[0] for process in started]
    codes = [process.returncode for process in started]
    told = partial(Trial, "two at once", f"seeds {seeds}")
    if any("Traceback" in output for output in outputs):
        return told("traceback", "\n".join(outputs)[-300:])
    if sorted(code == 0 for code in codes) != [False, True]:
        return told("wrong", f"exit codes {codes}")
    seed = seeds[codes.index(0)]
    text = (folder / "run" / "config.yaml").read_text(encoding="utf-8")
    alone = fresh(work / "trial-alone")
    _in(alone, work, (*known.program.command, f"seed={seed}"))
    same = known.program.result(alone) == known.program.result(folder) and f"seed: {seed}\n" in text
    return told(None if same else "wrong")


def fuzzed(work: Path, draw: random.Random, count: int) -> Iterator[Trial]:
    """Texts of any characters: a finite vector each, the same alone as among others."""
    import numpy as np

    from l2v.encoders.encoder import Encoder

    encoder = Encoder.from_pretrained(work / "model", device="cpu")
    texts = [_any_text(draw) for _ in range(count)]
    together = encoder.encode(texts)
    for text, vector in zip(texts, together, strict=True):
        told = partial(Trial, "texts of any characters", ascii(text)[:60])
        alone = encoder.encode([text])[0]
        if not np.isfinite(vector).all():
            yield told("wrong", "not finite")
        elif not np.allclose(alone, vector, atol=1e-4 * max(1.0, float(abs(vector).max()))):
            yield told("wrong", "another vector alone")
        else:
            yield told(None)


def _any_text(draw: random.Random) -> str:
    ranges = ((32, 127), (0, 32), (0xA0, 0x250), (0x590, 0x700), (0x2000, 0x2070), (0x4E00, 0x4F00), (0x1F300, 0x1F600))
    low, high = draw.choice(ranges)
    return "".join(chr(draw.randrange(low, high)) for _ in range(draw.choice((0, 1, 3, 12, 60, 700))))


def _judged(outcome: Outcome, known: Known, folder: Path) -> tuple[str | None, str]:
    """The fault of a command that was to end as an undisturbed one does."""
    if outcome.code is None:
        return "hung", _end(outcome)
    if outcome.has_traceback:
        return "traceback", _end(outcome)
    if outcome.code != 0:
        return "lost", _end(outcome)
    if known.program.result(folder) != known.digest:
        return "wrong", ""
    left = drafts(folder)
    return ("left behind", ", ".join(left)) if left else (None, "")


def _in(folder: Path, work: Path, command: tuple[str, ...], **given: Any) -> Outcome:
    return call(command, folder, **{"L2V_CACHE": str(work / "cache"), **given})


def _end(outcome: Outcome) -> str:
    return outcome.output.strip()[-300:]


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)
