"""Run folders: ``runs/<name>/`` holds whatever is needed to read, resume or go on from a run."""

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from l2v.errors import Diverged, L2VError
from l2v.runs.adapter_folders import SETTINGS_FILE, Assembly, put_on
from l2v.runs.files import check_inside, machine, read_json, remove_drafts, write_json, write_text
from l2v.runs.hashes import folder_hash
from l2v.runs.lineage import AdapterRecord, Lineage, encoder_hash, lineage_base, lineage_head, recorded_base
from l2v.runs.locks import SILENCE, alone, pulse, silence

LAST, BEST = "last.ckpt", "best.ckpt"
INITIAL_ADAPTER = "initial_adapter"
INITIAL_POOLING = "initial_pooling"
_PARTS = ("checkpoints", "merged", INITIAL_ADAPTER, INITIAL_POOLING, "adapter", "probe", "encoder", "evaluation")
"""Folders of a run."""
_PACKAGES = ("l2v", "torch", "transformers", "lightning", "peft", "datasets")


@dataclass(frozen=True)
class Run:
    """A run folder.

    ::

        config.yaml      the resolved config
        run.json         status, config hash, versions, machine, proof of the attention
        lineage.json     base model and adapters, each with its hash
        metrics.jsonl    a line a logged step; metrics.csv is the same as a table
        checkpoints/     last.ckpt and best.ckpt: trainable weights, optimizer, schedule, loops
        merged/          the adapters that were merged into the base before training
        initial_adapter/ the adapter that training went on with (adapter.init=continue)
        initial_pooling/ weights of a pooling of one's own that training went on with
        adapter/         the trained adapter
        probe/           the trained probe and its labels (stage=word, which has no adapter and no encoder)
        encoder/         the merged encoder: l2v, transformers and sentence-transformers load it (export=encoder)
        evaluation/      scores, a file a suite

    Example:
        >>> from l2v import Encoder, Run
        >>> run = Run.open("run")
        >>> run.is_finished, run.record()["step"]
        (True, 2)
        >>> encoder = Encoder.from_pretrained(run.folder)
    """

    folder: Path

    def create(self, config: str, record: dict[str, Any]) -> None:
        """Start a new run in this folder.

        Args:
            config: the resolved config as YAML.
            record: what goes into ``run.json`` beside status, times, versions and machine.

        Raises:
            L2VError: the folder holds a run.
        """
        self.must_be_free()
        if self.record_file.exists():  # a run that stopped before its first save: nothing of it may enter the new one
            for part in _PARTS:
                shutil.rmtree(self.folder / part, ignore_errors=True)
            (self.folder / "lineage.json").unlink(missing_ok=True)
        write_text(self.folder / "config.yaml", config)
        write_json(
            self.record_file,
            {
                **record,
                "status": "running",
                "created": now(),
                "finished": None,
                "seconds": 0.0,
                "step": 0,
                "versions": {name: _version(name) for name in _PACKAGES},
                "machine": {
                    "platform": platform.platform(),
                    "cpus": os.cpu_count(),
                    "python": platform.python_version(),
                },
                "process": self.this_process(),
            },
        )

    @contextlib.contextmanager
    def taken_over(self, config: str, record: dict[str, Any]) -> Iterator[None]:
        """Go on with the run in this process, with this config.

        Where it is refused before anything is saved with it, the run is again what it was: what was overridden then
        is not there at the next try.
        """
        old_config, old_record = (self.folder / "config.yaml").read_text("utf-8"), self.record()
        old_state = self._saved()
        write_text(self.folder / "config.yaml", config)
        self.update(**record, status="running", error=None, finished=None, process=self.this_process())
        try:
            yield
        except L2VError as error:
            if self._saved() == old_state and not isinstance(error, Diverged):
                write_text(self.folder / "config.yaml", old_config)
                write_json(self.record_file, old_record)
            raise

    def _saved(self) -> tuple[int, int] | None:
        """What tells the last checkpoint from one that is saved later."""
        file = self.checkpoints / LAST
        return (file.stat().st_ino, file.stat().st_mtime_ns) if file.exists() else None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Meanwhile no other process trains in the folder, of this machine or another; what is there stays as it is.

        What killed processes had begun to write is removed. A folder with nothing in it is gone after.

        Raises:
            L2VError: another process trains in it.
        """
        lock = self.folder / ".lock"
        with alone(lock, self._taken()):
            try:
                os.utime(lock)
                self._must_not_be_trained_elsewhere(lock)
                for folder in (self.folder, *(path for path in self.folder.iterdir() if path.is_dir())):
                    remove_drafts(folder)
                with pulse(self.record_file):
                    yield
            finally:
                if [path.name for path in self.folder.iterdir()] == [lock.name]:
                    lock.unlink()
                    self.folder.rmdir()

    def _must_not_be_trained_elsewhere(self, lock: Path) -> None:
        """Locks may not reach another machine: there, what counts is when it touched its record last."""
        if not self.record_file.exists() or (record := self.record())["status"] != "running":
            return
        if record.get("process", {}).get("machine") == machine():
            return
        quiet = silence(self.record_file, lock)
        if quiet < SILENCE:
            raise L2VError(
                f"{self._taken()} (it showed life {quiet:.0f} s ago; if it was killed, try again in {SILENCE:.0f} s)"
            )

    def _taken(self) -> str:
        who = "another process"
        if self.record_file.exists():
            process = self.record().get("process", {})
            who = f"process {process.get('pid')} of {process.get('host')}"
        return f"{self.folder}: {who} is training in it; stop that one first"

    @staticmethod
    def this_process() -> dict[str, Any]:
        """Who trains: host, process id, and the machine since it was last started."""
        return {"host": platform.node(), "pid": os.getpid(), "machine": machine()}

    def must_be_free(self) -> None:
        """Fail if the folder holds a run with something in it; one that stopped before its first save holds nothing.

        Raises:
            L2VError: saying how to go on.
        """
        if not self.record_file.exists():
            return
        if self.is_finished:
            raise L2VError(f"name={self._name}: the run {self.folder} is finished; choose another name=")
        if (self.checkpoints / LAST).exists():
            raise L2VError(
                f"name={self._name}: the run {self.folder} exists; go on with it by resume={self.folder}, or "
                "choose another name="
            )

    @property
    def _name(self) -> str:
        """As ``name=`` had it, which may hold folders."""
        return str(self.record().get("name", self.folder.name))

    @staticmethod
    def open(path: str | Path, override: str = "resume") -> "Run":
        """An existing run.

        Raises:
            L2VError: the folder holds none.
        """
        run = Run(Path(path).expanduser())
        if not run.folder.is_dir():
            raise L2VError(f"{override}={path}: no such folder")
        if not run.record_file.exists():
            raise L2VError(f"{override}={path}: not a run folder (it has no run.json)")
        return run

    @property
    def record_file(self) -> Path:
        return self.folder / "run.json"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def encoder(self) -> Path:
        return self.folder / "encoder"

    @property
    def exported(self) -> Path | None:
        """The folder that says how the encoder is used: that of the merged one, else that of the adapter."""
        return next((one for one in (self.encoder, self.adapter) if (one / SETTINGS_FILE).is_file()), None)

    @property
    def has_only_an_adapter(self) -> bool:
        """Whether the run has no merged encoder, so that it is put together from its parts."""
        return self.exported == self.adapter

    def lacks(self, exports: str) -> bool:
        """Whether a finished run has not been exported yet as ``encoder`` or ``adapter``; a probe never is."""
        if (self.folder / "probe").exists():
            return False
        return {"encoder": not self.encoder.exists(), "adapter": self.exported is None, "none": False}[exports]

    def assembly(self) -> Assembly:
        """What the encoder is put together from, by the lineage.

        Raises:
            L2VError: the base is gone, or is another one.
        """
        lineage = self.lineage()
        merged = [self.folder / record.path for record in lineage.merged]
        return put_on(Assembly(lineage_base(lineage, self.folder)), [*merged, self.adapter])

    @property
    def is_finished(self) -> bool:
        return self.record_file.exists() and self.record()["status"] == "finished"

    def record(self) -> dict[str, Any]:
        """What ``run.json`` says.

        Raises:
            L2VError: it is no record of a run.
        """
        record = read_json(self.record_file)
        if not isinstance(record, dict) or not isinstance(record.get("process", {}), dict) or "status" not in record:
            raise L2VError(f"{self.record_file}: not the record of a run: expected status, process, step, ...")
        return record

    def update(self, **fields: Any) -> None:
        """Change fields of ``run.json``."""
        old = self.record() if self.record_file.exists() else {}
        write_json(self.record_file, {**old, **fields})

    def lineage(self) -> Lineage:
        """What the run is made of, all of it in its folder but for the base.

        Raises:
            L2VError: it cannot be read, or leads out of the folder.
        """
        file = self.folder / "lineage.json"
        lineage = Lineage.read(file)
        for record in lineage.adapters():
            check_inside(record.path, f"{file}: path")
        return lineage

    def last_checkpoint(self) -> Path:
        """The checkpoint to resume from.

        Raises:
            L2VError: nothing was saved yet.
        """
        file = self.checkpoints / LAST
        if not file.exists() and self.is_finished:
            raise L2VError(
                f"resume={self.folder}: the run is finished and has no checkpoint to go on from (keep_checkpoints= "
                f"says what is kept); begin a new one from it by init_from={self.folder}"
            )
        if not file.exists():
            raise L2VError(
                f"resume={self.folder}: the run has no checkpoint ({file} is missing): it stopped before its first "
                "one; delete the folder and start it anew"
            )
        return file


def lineage_at(run: Run, folder: Path) -> Lineage:
    """A run's lineage as it reads in another folder: with paths relative to that one."""
    lineage = run.lineage()

    def moved(record: AdapterRecord) -> AdapterRecord:
        return replace(record, path=os.path.relpath(run.folder.resolve() / record.path, folder.resolve()))

    head = lineage_head(lineage, run.folder)
    return replace(
        lineage,
        base=recorded_base(lineage_base(lineage, run.folder), folder),
        origin=recorded_base(head, folder) if head else None,
        merged=[moved(record) for record in lineage.merged],
        adapter=moved(lineage.adapter) if lineage.adapter else None,
    )


def finish_lineage(run: Run, stage: str) -> None:
    """Add what the run trained to its lineage: its adapter, or its full weights as the new base."""
    lineage = replace(run.lineage(), encoder=encoder_hash(run.encoder))
    if lineage.base == run.encoder.name:  # trained longer than at first
        lineage = replace(lineage, base_hash="sha256:" + folder_hash(run.encoder))
    elif run.adapter.exists():
        lineage = replace(lineage, adapter=AdapterRecord(stage, run.adapter.name, folder_hash(run.adapter)))
    else:
        step = {"stage": stage, "base": lineage.base, "base_hash": lineage.base_hash}
        step |= {"layers": str(lineage.layers)} if lineage.layers else {}
        lineage = replace(
            lineage,
            base=run.encoder.name,
            base_hash="sha256:" + folder_hash(run.encoder),
            revision=None,
            layers=None,  # as the encoder's own config says
            origin=lineage.origin or lineage.base,
            merged=[],
            history=[*lineage.history, *(asdict(record) for record in lineage.merged), step],
        )
    lineage.write(run.folder / "lineage.json")


def now() -> str:
    """The time, ISO 8601 with zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
