"""From a ``train`` config to a checked :class:`~l2v.training.settings.Training`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

from l2v.config.build import build, build_later, check_value, construct
from l2v.config.messages import guess
from l2v.config.tasks import build_tasks
from l2v.config.trainer import build_trainer, sharding_of
from l2v.errors import L2VError

if TYPE_CHECKING:
    from l2v.evaluation.periodic import PeriodicEvaluation
    from l2v.models.settings import Sharding
    from l2v.stages.stage import Stage
    from l2v.training.settings import Model, Training


_DATA = {
    *("train", "validation", "workers"),
    *("folder", "sets", "held_out", "files", "validation_files", "languages"),  # for train and validation to read
}
"""Keys of the group ``data``."""
_ADAPTER = {"lora", "peft", "init"}
_OF_OTHER_GROUPS = ("text_unit", "adapter_init")
"""What a stage says to its data and its adapter."""


def build_training(config: dict[str, Any]) -> "Training":
    """A checked :class:`~l2v.training.settings.Training` from a ``train`` config; no model or data is loaded."""
    from l2v.training.settings import Exported, Kept, Training
    from l2v.training.trainer import accelerator_of, seconds_of

    trainer, sharding = config["trainer"], sharding_of(config["trainer"])
    stage, model, adapter = build_trained(
        config, on_cpu=accelerator_of(trainer.get("accelerator", "auto")) == "cpu", sharding=sharding
    )
    sources = {
        part: build(config["data"][part], f"data.{part}")
        for part in ("train", "validation", "test")
        if config["data"].get(part) is not None
    }
    stage.check(
        encoder=model.kind == "encoder", adapter=adapter is not None, sharding=sharding, sources=list(sources.values())
    )
    model.check(adapter=adapter is not None, sharding=sharding)
    trainer_settings = build_trainer(trainer)
    seconds_of(trainer_settings.get("max_time"))
    if str(trainer["precision"]) in ("bf16-true", "16-true"):
        raise L2VError(
            f"trainer.precision={trainer['precision']}: what is trained would be rounded at every step; choose "
            "bf16-mixed, and model.dtype=bfloat16 for the frozen weights"
        )
    _check_keys("data", config["data"], _DATA | {*stage.data_keys})
    _check_keys("adapter", config["adapter"], _ADAPTER)
    training = Training(
        stage=stage,
        model=model,
        adapter=adapter,
        **sources,
        workers=check_value(Annotated[int, Ge(0)], config["data"]["workers"], "data.workers"),
        trainer=trainer_settings,
        loggers=[build_later(node, f"logger.{name}") for name, node in config["logger"].items()],
        seed=check_value(Annotated[int, Ge(0), Le(2**32 - 1)], config["seed"], "seed"),
        config=config,
        evaluation=_build_evaluation(config),
        exports=check_value(Exported, config.get("export", "encoder"), "export"),
        keep=check_value(list[Kept], config.get("keep_checkpoints", ["last", "best"]), "keep_checkpoints"),
    )
    training.check()
    return training


def build_trained(config: dict[str, Any], *, on_cpu: bool, sharding: "Sharding") -> "tuple[Stage, Model, Any]":
    """The stage, without its model; how the model is loaded; and the adapter, None where all weights are trained.

    Args:
        config: of ``train``.
        on_cpu: whether it runs on a CPU.
        sharding: what is split over processes.
    """
    from l2v.stages.stage import pass_tokens
    from l2v.training.settings import Model
    from l2v.training.trainer import resolve_precision

    stage_settings = {k: v for k, v in config["stage"].items() if k not in _OF_OTHER_GROUPS}
    _check_keys(f"model.stages.{config['stage']['name']}", _of_stage(config), config["stage"])
    pooling = build(config["model"].get("pooling"), "model.pooling")
    model = construct(Model, {**config["model"], "pooling": pooling}, "model")
    if "micro_batch_tokens" in stage_settings:
        stage_settings["micro_batch_tokens"] = pass_tokens(
            stage_settings["micro_batch_tokens"],
            on_cpu=on_cpu,
            sharding=sharding,
            precision=resolve_precision(str(config["trainer"]["precision"]), "cpu"),
            keeps_all=stage_settings.get("grad_cache") is False,
        )
    return build(stage_settings, "stage"), model, _build_adapter(config["adapter"])


def _of_stage(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of the stage that go with the model."""
    own: dict[str, Any] = config["model"]["stages"].get(config["stage"]["name"], {})
    return own


def _check_keys(group: str, settings: Iterable[str], known: Iterable[str]) -> None:
    """Fail for the first setting that is none of a group."""
    names = sorted(known)
    for key in settings:
        if key not in names:
            raise L2VError(f"{group}.{key}: no such setting{guess(key, names)}")


def _build_adapter(config: dict[str, Any]) -> Any:
    """LoRA by l2v's settings, or any configuration of PEFT; None: all weights are trained."""
    if config["init"] not in ("new", "continue", "simcse"):
        raise L2VError(f"adapter.init={config['init']}: expected new, continue or simcse")
    lora, other = build(config.get("lora"), "adapter.lora"), build(config.get("peft"), "adapter.peft")
    if lora is not None and other is not None:
        raise L2VError("adapter.lora and adapter.peft exclude each other; set one to null")
    if other is not None:
        from peft import PeftConfig

        if not isinstance(other, PeftConfig):
            raise L2VError(f"adapter.peft: expected a configuration of PEFT, found {type(other).__name__}")
    return other if lora is None else lora


def _build_evaluation(config: dict[str, Any]) -> "PeriodicEvaluation | None":
    """What is evaluated while training."""
    suite, every = config.get("evaluation"), config.get("evaluate_every")
    if suite is None and every is None:
        return None
    if suite is None:
        raise L2VError(
            f"evaluate_every={every}: say what to evaluate: evaluation=demo, which needs no files, or evaluation=quick "
            "evaluation.folder=<its data>"
        )
    if every is None:
        raise L2VError(f"evaluation={suite['suite']}: say how often: evaluate_every=<optimizer steps>")
    from l2v.evaluation.periodic import PeriodicEvaluation

    every = check_value(Annotated[int, Ge(1)], every, "evaluate_every")
    return PeriodicEvaluation(every, suite["suite"], build_tasks(suite))
