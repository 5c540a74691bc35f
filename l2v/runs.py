"""Run folders: ``runs/<name>/`` holds whatever is needed to read, resume or go on from a run."""

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from l2v.errors import L2VError
from l2v.published import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_folder, check_beginning
from l2v.sources import (
    AdapterRecord,
    Lineage,
    Source,
    draft_folder,
    folder_hash,
    locate,
    read_json,
    source_hash,
    write_json,
    write_text,
)

Init = Literal["new", "continue", "simcse"]
"""Merge the adapter of init_from and start a new one; go on with it; or go on with it if SimCSE made it."""
LAST, BEST = "last.ckpt", "best.ckpt"
_INITIAL_ADAPTER = "initial_adapter"
_PARTS = ("checkpoints", "merged", _INITIAL_ADAPTER, "adapter", "probe", "encoder", "evaluation")
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
        adapter/         the trained adapter
        probe/           the trained probe and its labels (stage=word, which has no adapter and no encoder)
        encoder/         the merged encoder: l2v, transformers and sentence-transformers load it
        evaluation/      scores, a file a suite
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

    def take_over(self, config: str, record: dict[str, Any]) -> None:
        """Go on with the run in this process, from now on with this config.

        Raises:
            L2VError: another process trains in the folder.
        """
        self.must_not_be_running()
        write_text(self.folder / "config.yaml", config)
        self.update(**record, status="running", error=None, finished=None, process=self.this_process())

    @staticmethod
    def this_process() -> dict[str, Any]:
        """Who trains: host and process id."""
        return {"host": platform.node(), "pid": os.getpid()}

    def must_be_free(self) -> None:
        """Fail if the folder holds a run with something in it; one that stopped before its first save holds nothing.

        Raises:
            L2VError: saying how to go on.
        """
        if not self.record_file.exists():
            return
        self.must_not_be_running()
        if self.is_finished:
            raise L2VError(f"name={self.folder.name}: the run {self.folder} is finished; choose another name=")
        if (self.checkpoints / LAST).exists():
            raise L2VError(
                f"name={self.folder.name}: the run {self.folder} exists; go on with it by resume={self.folder}, or "
                "choose another name="
            )

    def must_not_be_running(self) -> None:
        """Fail if a living process of this machine trains in the folder."""
        record = self.record()
        process = record["process"]
        other = process != self.this_process() and process["host"] == platform.node()
        if record["status"] == "running" and other and _is_alive(process["pid"]):
            raise L2VError(f"{self.folder}: process {process['pid']} is training in it; stop that one first")

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
    def is_finished(self) -> bool:
        return self.record_file.exists() and self.record()["status"] == "finished"

    def record(self) -> dict[str, Any]:
        return read_json(self.record_file)

    def update(self, **fields: Any) -> None:
        """Change fields of ``run.json``."""
        old = self.record() if self.record_file.exists() else {}
        write_json(self.record_file, {**old, **fields})

    def lineage(self) -> Lineage:
        return Lineage.read(self.folder / "lineage.json")

    def last_checkpoint(self) -> Path:
        """The checkpoint to resume from.

        Raises:
            L2VError: nothing was saved yet.
        """
        file = self.checkpoints / LAST
        if not file.exists():
            raise L2VError(
                f"resume={self.folder}: the run has no checkpoint ({file} is missing): it stopped before its first "
                "one; delete the folder and start it anew"
            )
        return file


@dataclass(frozen=True)
class Start:
    """What a training run begins with."""

    base: Source
    lineage: Lineage
    """Of the new run; paths are relative to its folder."""
    merge: list[Path]
    """Adapter folders to merge into the base, in order."""
    adapter: Path | None = None
    """An adapter to go on training."""
    head: Source | None = None
    """Where the output head comes from, if not from the base."""

    @staticmethod
    def plan(
        folder: Path, *, base: Source, init_from: str | Sequence[str] | None, init: Init, trains_adapter: bool
    ) -> "Start":
        """Where a new run in ``folder`` starts: the base model, or what ``init_from`` ended with. Writes nothing.

        Args:
            folder: of the new run.
            base: the model of the config; the base of adapters that come without one.
            init_from: a run, a folder or hub id of a PEFT adapter, a list of such adapters, or a model.
            init: merge the adapter and start a new one; go on with it; or ``simcse``: go on with it if it is SimCSE's,
                as supervised training does in LLM2Vec, which starts from the merged MNTP adapter either way.
            trains_adapter: whether the run trains an adapter (or all weights).
        """
        if init == "continue" and not trains_adapter:
            raise L2VError("adapter.init=continue needs an adapter to train: choose adapter=lora")
        previous = _previous(init_from, base)
        if init == "continue" and previous.adapter is None:
            raise L2VError(f"adapter.init=continue: init_from={init_from} has no adapter to go on with; set it to new")
        merge, adapter = list(previous.merge), previous.adapter
        if init == "simcse":
            init = _init_of(previous, init_from)
        if init == "new" and adapter is not None:
            merge.append(adapter)
            adapter = None
        records = [
            AdapterRecord(previous.stages[path], f"merged/{number:02d}-{previous.stages[path]}", folder_hash(path))
            for number, path in enumerate(merge, start=1)
        ]
        initial = AdapterRecord(previous.stages[adapter], _INITIAL_ADAPTER, folder_hash(adapter)) if adapter else None
        lineage = Lineage(
            base=_recorded(previous.base, folder),
            base_hash=source_hash(previous.base),
            revision=previous.base.revision,
            origin=_recorded(previous.head, folder) if previous.head else None,
            merged=records,
            initial=initial,
            history=previous.history,
        )
        return Start(previous.base, lineage, merge, adapter, previous.head)

    def settle(self, run: Run) -> "Start":
        """Copy the adapters into the run's folder, so that it can be moved without its ancestors.

        Returns:
            the same start, from that folder.
        """
        merge = [run.folder / record.path for record in self.lineage.merged]
        for source, copy in zip(self.merge, merge, strict=True):
            _copy_adapter(source, copy)
        adapter = None
        if self.adapter is not None:
            assert self.lineage.initial is not None
            adapter = run.folder / self.lineage.initial.path
            _copy_adapter(self.adapter, adapter)
        self.lineage.write(run.folder / "lineage.json")
        return replace(self, merge=merge, adapter=adapter)

    @staticmethod
    def of(run: Run) -> "Start":
        """What a run began with, from its own folder."""
        lineage = run.lineage()
        for record in [*lineage.merged, *([lineage.initial] if lineage.initial else [])]:
            if folder_hash(run.folder / record.path) != record.hash:
                raise L2VError(f"{run.folder / record.path}: not the adapter of lineage.json (another hash)")
        return Start(
            lineage_base(lineage, run.folder),
            lineage,
            [run.folder / record.path for record in lineage.merged],
            run.folder / lineage.initial.path if lineage.initial else None,
            lineage_head(lineage, run.folder),
        )

    def stages(self) -> list[str]:
        """The stages that made the model, oldest first."""
        merged = [record.stage for record in self.lineage.merged]
        return [record["stage"] for record in self.lineage.history if "stage" in record] + merged

    def fingerprint(self) -> dict[str, Any]:
        """What pins the weights it stands for."""
        return {
            "base": self.lineage.base_hash if self.base.is_local else f"{self.base.name}@{self.lineage.revision}",
            "merged": [record.hash for record in self.lineage.merged],
            "adapter": folder_hash(self.adapter) if self.adapter else None,
        }


@dataclass(frozen=True)
class _Previous:
    base: Source
    merge: list[Path]
    adapter: Path | None
    stages: dict[Path, str]
    history: list[dict[str, str]]
    head: Source | None = None
    is_run: bool = False


def _init_of(previous: _Previous, init_from: str | Sequence[str] | None) -> Literal["new", "continue"]:
    """What ``simcse`` means for an adapter: go on with SimCSE's own, merge any other."""
    if previous.adapter is None:
        return "new"
    if not previous.is_run:
        raise L2VError(
            f"init_from={init_from}: an adapter without a run does not say which stage made it; set "
            "stage.adapter_init=continue to go on with it (a SimCSE adapter), or =new to merge it (an MNTP adapter)"
        )
    return "continue" if previous.stages[previous.adapter] == "simcse" else "new"


def _previous(init_from: str | Sequence[str] | None, base: Source) -> _Previous:
    if not init_from:
        return _Previous(base, [], None, {}, [])
    if not isinstance(init_from, str):
        return _stacked(init_from, base)
    folder = Path(init_from).expanduser()
    if (folder / "run.json").exists():
        run = Run.open(folder, "init_from")
        if not run.is_finished:
            raise L2VError(f"init_from={init_from}: the run is not finished; go on with it first: resume={init_from}")
        return _previous_run(run)
    if folder.is_dir() and not (folder / "config.json").exists() and not (folder / ADAPTER_CONFIG).exists():
        raise L2VError(f"init_from={init_from}: neither a run (run.json), an adapter nor a model (config.json)")
    if adapter_folder(init_from, override="init_from") is not None:
        return _stacked([init_from], base)
    return _Previous(locate(init_from, override="init_from"), [], None, {}, [])


def _stacked(names: Sequence[str], base: Source) -> _Previous:
    """Adapters on the model of the config, each trained on the ones before it."""
    stages: dict[Path, str] = {}
    check_beginning(names[0], "init_from")
    for name in names:
        folder = adapter_folder(name, override="init_from")
        if folder is None:
            raise L2VError(f"init_from={name}: no {ADAPTER_CONFIG}, so it holds no adapter; a list is one of adapters")
        stages[folder] = Path(name).name
    *merge, adapter = stages
    return _Previous(base, merge, adapter, stages, [])


def _previous_run(run: Run) -> _Previous:
    lineage = run.lineage()
    merge = [run.folder / record.path for record in lineage.merged]
    stages = {run.folder / record.path: record.stage for record in lineage.merged}
    adapter = None
    if lineage.adapter is not None:
        adapter = run.folder / lineage.adapter.path
        stages[adapter] = lineage.adapter.stage
    base = lineage_base(lineage, run.folder)
    return _Previous(base, merge, adapter, stages, lineage.history, lineage_head(lineage, run.folder), is_run=True)


def _recorded(base: Source, folder: Path) -> str:
    """How a base is written into a lineage in ``folder``: a hub id or package file as it is, a path relative to it."""
    if not base.is_local or base.name.startswith("package:"):
        return base.name
    return os.path.relpath(Path(base.path) / (base.gguf_file or ""), folder.resolve())  # runs/ may be a link


def lineage_base(lineage: Lineage, folder: Path) -> Source:
    """The base of a lineage that lies in ``folder``, checked against its hash.

    Raises:
        L2VError: the base is gone, or is another one than the lineage was made with.
    """
    local = (folder / lineage.base).resolve()
    name = str(local) if local.exists() else lineage.base
    commit = lineage.base_hash.removeprefix("commit:")
    revision = commit if re.fullmatch("[0-9a-f]{40}", commit) else lineage.revision
    source = locate(name, revision, override=f"the base of {folder}")
    if source.is_local and source_hash(source) != lineage.base_hash:
        raise L2VError(f"{folder}: its base {lineage.base} is not the one it was trained on (another hash)")
    return source


def lineage_at(run: Run, folder: Path) -> Lineage:
    """A run's lineage as it reads in another folder: with paths relative to that one."""
    lineage = run.lineage()

    def moved(record: AdapterRecord) -> AdapterRecord:
        return replace(record, path=os.path.relpath(run.folder.resolve() / record.path, folder.resolve()))

    head = lineage_head(lineage, run.folder)
    return replace(
        lineage,
        base=_recorded(lineage_base(lineage, run.folder), folder),
        origin=_recorded(head, folder) if head else None,
        merged=[moved(record) for record in lineage.merged],
        adapter=moved(lineage.adapter) if lineage.adapter else None,
    )


def lineage_head(lineage: Lineage, folder: Path) -> Source | None:
    """Where the output head comes from, if not from the base."""
    if lineage.origin is None:
        return None
    local = (folder / lineage.origin).resolve()
    return locate(str(local) if local.exists() else lineage.origin, override=f"the original model of {folder}")


def finish_lineage(run: Run, stage: str) -> None:
    """Add what the run trained to its lineage: its adapter, or its full weights as the new base."""
    lineage = run.lineage()
    if lineage.base == run.encoder.name:  # trained longer than at first
        lineage = replace(lineage, base_hash="sha256:" + folder_hash(run.encoder))
    elif run.adapter.exists():
        lineage = replace(lineage, adapter=AdapterRecord(stage, run.adapter.name, folder_hash(run.adapter)))
    else:
        step = {"stage": stage, "base": lineage.base, "base_hash": lineage.base_hash}
        lineage = replace(
            lineage,
            base=run.encoder.name,
            base_hash="sha256:" + folder_hash(run.encoder),
            revision=None,
            origin=lineage.origin or lineage.base,
            merged=[],
            history=[*lineage.history, *(asdict(record) for record in lineage.merged), step],
        )
    lineage.write(run.folder / "lineage.json")


def _copy_adapter(source: Path, target: Path) -> None:
    if not target.exists():
        with draft_folder(target) as draft:
            for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                if not (source / name).exists():
                    raise L2VError(f"{source}: no {name}, so it holds no adapter that l2v reads")
                shutil.copyfile(source / name, draft / name)


def config_hash(config: dict[str, Any], start: Start, data: list[str]) -> str:
    """What two runs share that train the same thing: a hash of the settings, of what they start from, and of the data.

    Args:
        config: resolved.
        start: base and adapters.
        data: fingerprints of the training and validation texts.
    """
    kept = {key: value for key, value in config.items() if key not in _NOT_HASHED}
    text = json.dumps([kept, start.fingerprint(), data], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_NOT_HASHED = (
    *("name", "runs_dir", "run_dir", "resume", "reuse", "debug", "logger", "init_from"),
    *("evaluate_every", "evaluation"),
)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is another user's
        return True
    return True


def now() -> str:
    """The time, ISO 8601 with zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
