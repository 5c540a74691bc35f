"""Train one stage: ``python train.py stage=mntp``; ``python train.py --help`` shows the settings."""

import contextlib
import functools
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, OmegaConf

from l2v import config as configs
from l2v.cli.agreement import agree, forget
from l2v.cli.processes import run_program
from l2v.errors import L2VError
from l2v.progress import say
from l2v.runs.initialization import Initialization, config_hash
from l2v.runs.lineage import check_encoder
from l2v.runs.locations import Source, locate
from l2v.runs.run import LAST, Run

if TYPE_CHECKING:
    from l2v.training.settings import Model, Training


def main(composed: DictConfig) -> float | None:
    """Check the whole config, settle the run folder, train. Nothing is loaded before the config is checked.

    Returns:
        the metric that ``objective`` names, for a sweeper.
    """
    try:
        return _main(composed)
    finally:
        forget()


def _main(composed: DictConfig) -> float | None:
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
        composed.name = composed.name or agree("name", functools.partial(_free_name, Path(composed.runs_dir)))
        run = Run(Path(composed.run_dir))
    of_init = configs.model_of_init(composed.init_from, configs.overrides()) if configs.is_multirun() else []
    try:
        if configs.is_multirun() and (_starts_processes(composed.trainer) or of_init):
            # a point of a sweep starts processes that run the same command line, or has a model of its own from
            # init_from: it gets a command line of its own
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
    with contextlib.ExitStack() as while_training:

        def settle() -> str:
            while_training.enter_context(run.alone())
            return _settle(run, training, config, text, data, resume, while_training)

        way = agree("way", settle)
        if way == "reuse":
            return
        from l2v.training.train import train

        start = Initialization.of(run, whole=False)
        train(_with_templates(training, config, run, start), run, start, resume=way == "resume")
    if configs.process_rank() == 0:
        made = {
            "encoder": f"; its encoder is {run.encoder}",
            "adapter": f"; its adapter is {run.adapter}",
            "none": "",
        }[training.exports]
        if not training.stage.trains_backbone:
            made = f"; its scores are in {run.folder / 'evaluation'}"
        say(f"finished {run.folder}{made}")


def _settle(
    run: Run,
    training: "Training",
    config: dict[str, Any],
    text: str,
    data: list[str],
    resume: bool,
    while_training: contextlib.ExitStack,
) -> Literal["begin", "resume", "reuse"]:
    """Make the run's folder, or take it over: what the processes do with it."""
    if resume:
        _check_resumable(run, config, data)
        start = Initialization.of(run, whole=False)
        changes = {"config_hash": config_hash(config, start, data), "data": data}
        while_training.enter_context(run.taken_over(text, changes))
        return "resume"
    base = locate(config["model"]["source"], config["model"]["revision"])
    start = Initialization.plan(
        run.folder,
        base=base,
        init_from=configs.check_value(str | list[str] | None, config["init_from"], "init_from"),
        init=config["adapter"]["init"],
        trains_adapter=training.adapter is not None,
        layers=None if training.model.layers is None else functools.partial(_layers, training.model),
    )
    _check_base(config["init_from"], base, start)
    wanted = config_hash(config, start, data)
    is_ours = run.record_file.exists() and run.record()["config_hash"] == wanted
    if is_ours and config["reuse"] and run.is_finished and not run.lacks(training.exports):
        say(f"{run.folder}: a finished run with this config is here; it is reused")
        return "reuse"
    if is_ours and (config["reuse"] or _is_restart()) and (run.checkpoints / LAST).exists():
        while_training.enter_context(run.taken_over(text, {}))
        return "resume"
    training.check_start(start)
    run.create(text, _record(config, wanted, data) | _templates(config, start))
    start.settle(run)
    return "begin"


def _layers(model: "Model", original: Source) -> int:
    """How many layers to keep of the original decoder."""
    from l2v.models.depth import depth_of, number_of_layers
    from l2v.models.loading import load_tokenizer_and_config

    assert model.layers is not None
    _, config = load_tokenizer_and_config(original, kind=model.kind, trust_remote_code=model.trust_remote_code)
    return number_of_layers(model.layers, depth_of(config), "model.layers")


def _is_restart() -> bool:
    """Whether ``torchrun --max-restarts`` has started the processes again after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


_TEMPLATES = "chat_template"
"""In a run's record: what the tokenizer's chat template wrote when the run began. It may write the date."""


def _templates(config: dict[str, Any], start: Initialization) -> dict[str, str]:
    """What to record of a chat template, where the model or the stage asks for it."""
    from l2v.models.loading import load_tokenizer_and_config
    from l2v.text.prompts import CHAT, chat_template

    model = config["model"]
    if CHAT not in (model.get("template"), config["stage"].get("template")):
        return {}
    tokenizer, _ = load_tokenizer_and_config(
        start.base, kind=model.get("kind", "decoder"), trust_remote_code=model.get("trust_remote_code", False)
    )
    return {_TEMPLATES: chat_template(tokenizer)}


def _with_templates(training: "Training", config: dict[str, Any], run: Run, start: Initialization) -> "Training":
    """The training with the chat template that was written out when the run began."""
    written = run.record().get(_TEMPLATES) or _templates(config, start).get(_TEMPLATES)
    if written is None:
        return training
    if configs.process_rank() == 0 and _TEMPLATES not in run.record():
        run.update(**{_TEMPLATES: written})  # of a run that began without
    settled = {
        **config,
        **{part: _settled(config[part], written) for part in ("model", "stage")},
    }
    return configs.build_training(settled)


def _settled(settings: dict[str, Any], written: str) -> dict[str, Any]:
    from l2v.text.prompts import CHAT

    return {**settings, "template": written} if settings.get("template") == CHAT else settings


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
        "overrides": [_from_anywhere(override) for override in configs.overrides()],
    }


def _from_anywhere(override: str) -> str:
    """An override as it was given, a local model by its absolute path: init_from= may take it in another folder."""
    given = configs.parsed(override)
    if given is None or given.key_or_group != "model.source" or not Path(str(given.value())).expanduser().exists():
        return override
    return "model.source=" + configs.quoted(str(Path(str(given.value())).expanduser().absolute()))


def _check_base(init_from: str | list[str] | None, base: Source, start: Initialization) -> None:
    """A run goes on with its own decoder: another one in model= would be passed over without a word."""
    own = start.head or start.base
    is_run = isinstance(init_from, str) and (Path(init_from).expanduser() / "run.json").exists()
    if is_run and (own.path, own.gguf_file) != (base.path, base.gguf_file):
        raise L2VError(
            f"model.source={base.name}: init_from={init_from} was trained on {own.name}; leave model= out, or set "
            f"model.source={own.name}"
        )


_OF_THE_RUN = (
    "stage.name",
    "stage._target_",
    "model.source",
    "model.revision",
    "model.kind",
    "model.layers",
    "init_from",
)
"""What makes a run what it is, with its adapter."""


def _check_resumable(run: Run, config: dict[str, Any], data: list[str]) -> None:
    """A run goes on as what it is, and a finished one goes on longer.

    Raises:
        L2VError: see there; nothing of the run is changed.
    """
    saved = configs.read_saved(run.folder / "config.yaml", f"resume={run.folder}")
    was, now = _identity(saved), _identity(config)
    for name in [*now, *was]:
        if was.get(name) != now.get(name):
            raise L2VError(
                f"resume={run.folder}: {name}={now.get(name)}, but the run is one of {name}={was.get(name)} and stays "
                f"so; leave it out, or begin a new run from this one by init_from={run.folder}"
            )
    if run.record()["data"] != data and not any(o.lstrip("+").startswith("data") for o in configs.overrides()):
        raise L2VError(
            f"resume={run.folder}: the texts of data= have changed since; name them anew to go on with others"
        )
    trained = run.is_finished and run.record()["step"] >= config["stage"]["max_steps"]
    if trained and _is_whole(run, config.get("export", "encoder")):
        raise L2VError(
            f"resume={run.folder}: the run is finished at step {run.record()['step']}; to train longer, raise "
            "stage.max_steps"
        )


def _is_whole(run: Run, exports: str) -> bool:
    """Whether a finished run was exported so, and what it wrote at its end is there as it was written."""
    if run.lacks(exports):
        return False
    try:
        Initialization.of(run)
        if run.encoder.exists():
            check_encoder(run.encoder, run.folder / "lineage.json", "")
    except L2VError:
        return False
    return True


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """What makes a run what it is, by dotted names. An adapter's dropout may change."""
    return {
        name: value
        for name, value in configs.leaves(config)
        if name in _OF_THE_RUN
        or (name.startswith("adapter.") and "dropout" not in name and not isinstance(value, dict))
    }


def _free_name(runs: Path) -> str:
    """<model>-<stage>, and the task where there is one, with a number where that is taken."""
    chosen = configs.choices()
    stem = "-".join(chosen[group] for group in ("model", "stage", "task") if chosen.get(group))
    names = [stem, *(f"{stem}-{number}" for number in range(2, 10_000))]
    taken = list(itertools.takewhile(lambda name: (runs / name).exists(), names))
    if _is_restart() and taken:
        return taken[-1]
    return next(name for name in names if _takes(runs / name))


def _takes(folder: Path) -> bool:
    """Whether the folder was free: of those that are started side by side, one makes it."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def start() -> None:
    """The program, with the arguments of this process."""
    configs.run(main, name="train")


if __name__ == "__main__":
    start()
