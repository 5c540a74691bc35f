"""What a training run begins with: a base, adapters to merge, an adapter to go on with."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from l2v.errors import L2VError
from l2v.runs.adapter_folders import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    POOLING_FOLDER,
    POOLING_WEIGHTS,
    adapter_folder,
    check_beginning,
)
from l2v.runs.files import draft_folder
from l2v.runs.hashes import folder_hash, settings_hash, source_hash
from l2v.runs.lineage import AdapterRecord, Lineage, check_encoder, lineage_base, lineage_head, recorded_base
from l2v.runs.locations import Source, locate
from l2v.runs.run import INITIAL_ADAPTER, INITIAL_POOLING, Run

Init = Literal["new", "continue", "simcse"]
"""Merge the adapter of init_from and start a new one; go on with it; or go on with it if SimCSE made it."""


@dataclass(frozen=True)
class Initialization:
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
    pooling: Path | None = None
    """A folder with the weights of a pooling of one's own to go on with."""

    @staticmethod
    def plan(
        folder: Path,
        *,
        base: Source,
        init_from: str | Sequence[str] | None,
        init: Init,
        trains_adapter: bool,
        layers: Callable[[Source], int] | None = None,
    ) -> "Initialization":
        """Where a new run in ``folder`` starts: the base model, or what ``init_from`` ended with. Writes nothing.

        Args:
            folder: of the new run.
            base: the model of the config; the base of adapters that come without one.
            init_from: a run, a folder or hub id of a PEFT adapter, a list of such adapters, or a model.
            init: merge the adapter and start a new one; go on with it; or ``simcse``: go on with it if it is SimCSE's,
                as supervised training does in LLM2Vec, which starts from the merged MNTP adapter either way.
            trains_adapter: whether the run trains an adapter (or all weights).
            layers: how many of the first layers to keep of an original decoder; None: all that there still are.
        """
        if init == "continue" and not trains_adapter:
            raise L2VError("adapter.init=continue needs an adapter to train: choose adapter=lora")
        previous = _previous(init_from, base)
        if layers is not None:
            previous = _shallower(previous, layers(replace(previous.head or previous.base, layers=None)))
        if init == "continue" and previous.adapter is None:
            raise L2VError(f"adapter.init=continue: init_from={init_from} has no adapter to go on with; set it to new")
        merge, adapter = list(previous.merge), previous.adapter
        if init == "simcse":
            init = _init_of(previous, init_from) if trains_adapter else "new"
        if init == "new" and adapter is not None:
            merge.append(adapter)
            adapter = None
        records = [
            AdapterRecord(previous.stages[path], f"merged/{number:02d}-{previous.stages[path]}", folder_hash(path))
            for number, path in enumerate(merge, start=1)
        ]
        initial = AdapterRecord(previous.stages[adapter], INITIAL_ADAPTER, folder_hash(adapter)) if adapter else None
        lineage = Lineage(
            base=recorded_base(previous.base, folder),
            base_hash=source_hash(previous.base),
            revision=previous.base.revision,
            layers=None if previous.base.layers is None else int(previous.base.layers),
            origin=recorded_base(previous.head, folder) if previous.head else None,
            merged=records,
            initial=initial,
            history=previous.history,
            pooling=folder_hash(previous.pooling) if previous.pooling else None,
        )
        return Initialization(previous.base, lineage, merge, adapter, previous.head, previous.pooling)

    def settle(self, run: Run) -> "Initialization":
        """Copy the adapters and the pooling into the run's folder, so that it can be moved without its ancestors.

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
        pooling = None
        if self.pooling is not None:
            pooling = run.folder / INITIAL_POOLING
            with draft_folder(pooling) as draft:
                shutil.copyfile(self.pooling / POOLING_WEIGHTS, draft / POOLING_WEIGHTS)
        self.lineage.write(run.folder / "lineage.json")
        return replace(self, merge=merge, adapter=adapter, pooling=pooling)

    @staticmethod
    def of(run: Run, *, whole: bool = True) -> "Initialization":
        """What a run began with, from its own folder.

        Args:
            run: which.
            whole: check what it wrote at its end too; where it goes on, its end is written anew.

        Raises:
            L2VError: something of it is not as it was written.
        """
        lineage = run.lineage()
        _check_adapters(run, lineage, whole)
        pooling = run.folder / INITIAL_POOLING if lineage.pooling else None
        if pooling is not None and folder_hash(pooling) != lineage.pooling:
            raise L2VError(f"{pooling}: not the pooling of lineage.json (another hash)")
        return Initialization(
            lineage_base(lineage, run.folder, check=whole or lineage.base != run.encoder.name),
            lineage,
            [run.folder / record.path for record in lineage.merged],
            run.folder / lineage.initial.path if lineage.initial else None,
            lineage_head(lineage, run.folder),
            pooling,
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
            **({"pooling": self.lineage.pooling} if self.lineage.pooling else {}),
            **({"layers": self.lineage.layers} if self.lineage.layers else {}),
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
    pooling: Path | None = None


def _shallower(previous: _Previous, layers: int) -> _Previous:
    had = previous.base.layers
    if had is not None and layers > had:
        raise L2VError(f"model.layers={layers}: init_from has kept {had:.0f} layers; expected no more, or leave it out")
    return replace(previous, base=previous.base.shallower(layers))


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
        if run.exported is None:
            raise L2VError(f"init_from={init_from}: the run has exported nothing; resume={init_from} export=adapter")
        return _previous_run(run)
    if folder.is_dir() and not (folder / "config.json").exists() and not (folder / ADAPTER_CONFIG).exists():
        raise L2VError(f"init_from={init_from}: neither a run (run.json), an adapter nor a model (config.json)")
    if adapter_folder(init_from, override="init_from") is not None:
        return _stacked([init_from], base)
    check_encoder(folder, folder / "lineage.json", "put a copy in its place, or export the run again")
    return _Previous(locate(init_from, override="init_from"), [], None, {}, [])


def _stacked(names: Sequence[str], base: Source) -> _Previous:
    """Adapters on the model of the config, each trained on the ones before it."""
    stages: dict[Path, str] = {}
    for name in names:
        folder = adapter_folder(name, override="init_from")
        if folder is None:
            raise L2VError(f"init_from={name}: no {ADAPTER_CONFIG}, so it holds no adapter; a list is one of adapters")
        if not stages:
            check_beginning(name, folder, "init_from")
        stages[folder] = Path(name).name
    *merge, adapter = stages
    return _Previous(base, merge, adapter, stages, [])


def _previous_run(run: Run) -> _Previous:
    lineage = run.lineage()
    _check_adapters(run, lineage, whole=True)
    merge = [run.folder / record.path for record in lineage.merged]
    stages = {run.folder / record.path: record.stage for record in lineage.merged}
    adapter = None
    if lineage.adapter is not None:
        adapter = run.folder / lineage.adapter.path
        stages[adapter] = lineage.adapter.stage
    base, head = lineage_base(lineage, run.folder), lineage_head(lineage, run.folder)
    pooling = (run.exported or run.encoder) / POOLING_FOLDER
    own = pooling if (pooling / POOLING_WEIGHTS).is_file() else None
    if own is not None:
        check_encoder(run.encoder, run.folder / "lineage.json", _written_anew(run))
    return _Previous(base, merge, adapter, stages, lineage.history, head, is_run=True, pooling=own)


def _check_adapters(run: Run, lineage: Lineage, whole: bool) -> None:
    """Fail where an adapter of a run is not the one that its lineage was written for.

    Raises:
        L2VError: with what to do.
    """
    before = [*lineage.merged, *([lineage.initial] if lineage.initial else [])]
    for record in [*before, *([lineage.adapter] if lineage.adapter and whole else [])]:
        if folder_hash(run.folder / record.path) != record.hash:
            remedy = "put a copy in its place" if record in before else _written_anew(run)
            raise L2VError(f"{run.folder / record.path}: not the adapter of lineage.json (another hash); {remedy}")


def _written_anew(run: Run) -> str:
    return f"resume={run.folder} writes it anew, from its last checkpoint"


def _copy_adapter(source: Path, target: Path) -> None:
    if not target.exists():
        with draft_folder(target) as draft:
            for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                if not (source / name).exists():
                    raise L2VError(f"{source}: no {name}, so it holds no adapter that l2v reads")
                shutil.copyfile(source / name, draft / name)


def config_hash(config: dict[str, Any], start: Initialization, data: list[str]) -> str:
    """What two runs share that train the same thing: a hash of the settings, of what they start from, and of the data.

    Args:
        config: resolved.
        start: base and adapters.
        data: fingerprints of the training and validation texts.
    """
    kept = {key: value for key, value in config.items() if key not in _NOT_HASHED}
    return settings_hash([kept, start.fingerprint(), data])


_NOT_HASHED = (
    *("name", "runs_dir", "run_dir", "resume", "reuse", "debug", "logger", "init_from"),
    *("evaluate_every", "evaluation", "objective", "export", "keep_checkpoints"),
)
