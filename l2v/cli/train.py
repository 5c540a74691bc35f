"""Train one stage: ``python train.py stage=mntp``; ``python train.py --help`` shows the settings."""

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from l2v import config as configs
from l2v.cli.processes import run_program, tell_others, told_by_first
from l2v.errors import L2VError
from l2v.progress import say
from l2v.runs.initialization import Initialization, config_hash
from l2v.runs.lineage import check_encoder
from l2v.runs.locations import Source, locate
from l2v.runs.run import LAST, Run

if TYPE_CHECKING:
    from l2v.training.settings import Training

_RUN_DIR = "L2V_RUN_DIR"
_RESUMES = "L2V_RESUMES"
"""Set by the first process for those that it starts: where the run is, and whether it goes on from a checkpoint."""


_NAME = "l2v/name"
"""What torchrun's processes tell each other."""


def main(composed: DictConfig) -> float | None:
    """Check the whole config, settle the run folder, train. Nothing is loaded before the config is checked.

    Returns:
        the metric that ``objective`` names, for a sweeper.
    """
    objective = composed.objective
    resume = composed.resume is not None
    if resume:
        run = Run.open(composed.resume)
        run.last_checkpoint()
        where = f"resume={composed.resume}"
        saved = configs.read_saved(run.folder / "config.yaml", where)
        composed = configs.merge_overrides(saved, composed, configs.overrides(), run.folder, where)
        composed.run_dir = str(run.folder)  # it may have been moved
    else:
        composed.name = composed.name or _free_name(Path(composed.runs_dir))
        run = Run(Path(composed.run_dir))
    try:
        if configs.is_multirun() and _starts_processes(composed.trainer):
            # a point of a sweep starts processes that run the same command line: it gets one of its own
            point = [override for override in configs.overrides() if not override.startswith("name=")]
            named = [] if resume else [f"name={composed.name}"]
            run_program("train", [*point, *configs.search_overrides(), *named], "the point")
        else:
            _train(composed, run, resume)
    finally:
        with contextlib.suppress(OSError):
            run.folder.rmdir()  # only where nothing came into it
    return _value(run, objective) if configs.is_multirun() and configs.process_rank() == 0 else None


def _train(composed: DictConfig, run: Run, resume: bool) -> None:
    config = configs.plain(composed)
    training = configs.build_training(config)
    text = OmegaConf.to_yaml(composed, resolve=True)
    data = training.fingerprints()
    if configs.process_rank() > 0:
        _wait_for(run)
        _run_stage(training, run, Initialization.of(run, whole=False), os.environ.get(_RESUMES, str(resume)) == "True")
        return
    with run.alone():
        start: Initialization | None
        if resume:
            _check_resumable(run, config, data)
            start = Initialization.of(run, whole=False)
            run.take_over(text, {"config_hash": config_hash(config, start, data), "data": data})
        else:
            start, resume = _begin(run, config, training, text, data)
        if start is None:
            return
        os.environ.update({_RUN_DIR: str(run.folder), _RESUMES: str(resume)})
        try:
            _run_stage(training, run, start, resume)
        finally:
            for name in (_RUN_DIR, _RESUMES):  # of this training, and not of a sweep's next
                os.environ.pop(name, None)
    made = f"encoder is {run.encoder}" if training.stage.trains_backbone else f"scores are in {run.folder}/evaluation"
    say(f"finished {run.folder}; its {made}")


def _begin(
    run: Run, config: dict[str, Any], training: "Training", text: str, data: list[str]
) -> tuple[Initialization | None, bool]:
    """What a run begins with, and whether it goes on from a checkpoint (``reuse``); None: nothing is to be done."""
    base = locate(config["model"]["source"], config["model"]["revision"])
    start = Initialization.plan(
        run.folder,
        base=base,
        init_from=configs.check_value(str | list[str] | None, config["init_from"], "init_from"),
        init=config["adapter"]["init"],
        trains_adapter=training.adapter is not None,
    )
    _check_base(config["init_from"], base, start)
    wanted = config_hash(config, start, data)
    if config["reuse"] and run.record_file.exists() and run.record()["config_hash"] == wanted:
        if run.is_finished:
            say(f"{run.folder}: a finished run with this config is here; it is reused")
            return None, False
        if (run.checkpoints / LAST).exists():
            run.take_over(text, {})
            return Initialization.of(run, whole=False), True
    run.create(text, _record(config, wanted, data))
    return start.settle(run), False


def _run_stage(training: "Training", run: Run, start: Initialization, resume: bool) -> None:
    from l2v.training.train import train

    train(training, run, start, resume=resume)


def _starts_processes(trainer: DictConfig) -> bool:
    """Whether Lightning will start processes beside this one, or make a process group of it."""
    external = any(name in os.environ for name in ("LOCAL_RANK", "SLURM_PROCID", "RANK"))
    alone = str(trainer.devices) == "1" and int(trainer.num_nodes) == 1 and trainer.strategy == "auto"
    return not external and not alone


def _value(run: Run, objective: str | None) -> float | None:
    """What a sweeper optimises; Hydra's own optimises nothing."""
    metrics = run.record().get("metrics") or {}
    if objective not in metrics and configs.sweeper() != "basic":
        raise L2VError(
            f"objective={objective}: {run.folder} has no such metric; there are {', '.join(sorted(metrics))}"
        )
    return float(metrics[objective]) if objective in metrics else None


def _record(config: dict[str, Any], hash_: str, data: list[str]) -> dict[str, Any]:
    return {
        "name": config["name"],
        "stage": config["stage"]["name"],
        "seed": config["seed"],
        "config_hash": hash_,
        "data": data,
        "choices": configs.choices(),
        "overrides": configs.overrides(),
    }


def _check_base(init_from: str | list[str] | None, base: Source, start: Initialization) -> None:
    """A run goes on with its own decoder: another one in model= would be passed over without a word."""
    own = start.head or start.base
    is_run = isinstance(init_from, str) and (Path(init_from).expanduser() / "run.json").exists()
    if is_run and (own.path, own.gguf_file) != (base.path, base.gguf_file):
        raise L2VError(
            f"model.source={base.name}: init_from={init_from} was trained on {own.name}; leave model= out, or set "
            f"model.source={own.name}"
        )


def _check_resumable(run: Run, config: dict[str, Any], data: list[str]) -> None:
    if run.record()["data"] != data and not any(o.lstrip("+").startswith("data") for o in configs.overrides()):
        raise L2VError(
            f"resume={run.folder}: the texts of data= have changed since; name them anew to go on with others"
        )
    if run.is_finished and run.record()["step"] >= config["stage"]["max_steps"] and _is_whole(run):
        raise L2VError(
            f"resume={run.folder}: the run is finished at step {run.record()['step']}; to train longer, raise "
            "stage.max_steps"
        )


def _is_whole(run: Run) -> bool:
    """Whether what a finished run wrote at its end is there as it was written."""
    try:
        Initialization.of(run)
        check_encoder(run.encoder, run.folder / "lineage.json", "")
    except L2VError:
        return False
    return True


def _free_name(runs: Path) -> str:
    """<model>-<stage>, and the task where there is one, with a number where that is taken."""
    if configs.process_rank() > 0:
        if _RUN_DIR in os.environ:
            return os.path.relpath(os.environ[_RUN_DIR], runs)
        if (name := told_by_first(_NAME)) is not None:
            return name
        raise L2VError("name: must be given when the processes are started from outside, so that they share a folder")
    chosen = configs.choices()
    stem = "-".join(chosen[group] for group in ("model", "stage", "task") if chosen.get(group))
    names = [stem, *(f"{stem}-{number}" for number in range(2, 10_000))]
    name = next(name for name in names if _takes(runs / name))
    tell_others(_NAME, name)
    return name


def _takes(folder: Path) -> bool:
    """Whether the folder was free: of those that are started side by side, one makes it."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _wait_for(run: Run, seconds: int = 120) -> None:
    """Until the first process has settled the run's folder."""
    for _ in range(seconds):
        if (run.folder / "lineage.json").exists():
            return
        time.sleep(1)
    raise L2VError(f"{run.folder}: the first process has not made the run's folder within {seconds} s")


def start() -> None:
    """The program, with the arguments of this process."""
    configs.run(main, name="train")


if __name__ == "__main__":
    start()
