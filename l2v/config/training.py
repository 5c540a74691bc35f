"""From a ``train`` config to a checked :class:`~l2v.training.settings.Training`."""

from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from l2v.config.build import build, build_later, check, check_value
from l2v.config.messages import guess
from l2v.config.tasks import build_tasks
from l2v.config.trainer import _SET_BY_L2V, build_trainer
from l2v.errors import L2VError

if TYPE_CHECKING:
    from l2v.evaluation.periodic import PeriodicEvaluation
    from l2v.training.settings import Training


_DATA = {"train", "validation", "workers", "folder", "sets", "held_out"}
"""Keys of the group ``data``; the last three are for train and validation to read."""


PASS_TOKENS_ON_CPU = 1024
"""``stage.micro_batch_tokens=auto``: tensors of so many tokens stay in a processor's cache (docs/performance.md). Other
devices are filled by a whole batch, and sharded weights need one pass a step."""
_OF_OTHER_GROUPS = ("text_unit", "adapter_init")
"""What a stage says to its data and its adapter."""


def build_training(config: dict[str, Any]) -> "Training":
    """A checked :class:`~l2v.training.settings.Training` from a ``train`` config; no model or data is loaded."""
    from l2v.data.triplets.options import check_parts
    from l2v.training.settings import Model, Training
    from l2v.training.trainer import accelerator_of

    stage_settings = {k: v for k, v in config["stage"].items() if k not in _OF_OTHER_GROUPS}
    own = config["model"]["stages"].get(config["stage"]["name"], {})
    for key in own:
        if key not in config["stage"]:
            raise L2VError(
                f"model.stages.{config['stage']['name']}.{key}: no such setting{guess(key, list(config['stage']))}"
            )
    model = Model(**check(Model, config["model"], "model"))
    lora = build(config["adapter"]["lora"], "adapter.lora")
    if config["adapter"]["init"] not in ("new", "continue", "simcse"):
        raise L2VError(f"adapter.init={config['adapter']['init']}: expected new, continue or simcse")
    trainer = dict(config["trainer"])
    strategy = trainer.get("strategy")
    sharded = isinstance(strategy, dict) and not strategy["_target_"].endswith("DDPStrategy")
    passes = stage_settings.get("micro_batch_tokens")
    if isinstance(passes, str):
        if passes != "auto":
            raise L2VError(f"stage.micro_batch_tokens={passes}: expected a number of tokens, null (one pass) or auto")
        on_cpu = accelerator_of(trainer.get("accelerator", "auto")) == "cpu"
        stage_settings["micro_batch_tokens"] = PASS_TOKENS_ON_CPU if on_cpu and not sharded else None
    stage = build(stage_settings, "stage")
    sources = {
        part: build(config["data"][part], f"data.{part}")
        for part in ("train", "validation", "test")
        if config["data"].get(part) is not None
    }
    stage.check(
        encoder=model.kind == "encoder", adapter=lora is not None, sharded=sharded, sources=list(sources.values())
    )
    if sharded and getattr(stage, "micro_batch_tokens", None):
        raise L2VError("stage.micro_batch_tokens: sharded training needs one forward pass a step; set it to null")
    if sharded and model.quantization:
        raise L2VError("model.quantization: weights in 4 bits cannot be sharded; choose trainer=ddp or gpu")
    if model.quantization and lora is None:
        raise L2VError("model.quantization: weights in 4 bits cannot be trained; choose adapter=lora")
    for key in trainer.keys() & _SET_BY_L2V.keys():
        raise L2VError(f"trainer.{key}: set by l2v; {_SET_BY_L2V[key]}")
    trainer_settings = build_trainer(trainer)
    for group, known in (("data", _DATA | {*stage.data_keys}), ("adapter", {"lora", "init"})):
        for key in config[group].keys() - known:
            raise L2VError(f"{group}.{key}: no such setting{guess(key, sorted(known))}")
    check_parts(sources["train"], sources["validation"])
    during = _build_during(config)
    if during is not None and not stage.trains_backbone:
        raise L2VError(f"evaluate_every: stage={config['stage']['name']} leaves its encoder as it is; set it to null")
    return Training(
        stage=stage,
        model=model,
        lora=lora,
        **sources,
        workers=check_value(Annotated[int, Ge(0)], config["data"]["workers"], "data.workers"),
        trainer=trainer_settings,
        loggers=[build_later(node, f"logger.{name}") for name, node in config["logger"].items()],
        seed=check_value(Annotated[int, Ge(0)], config["seed"], "seed"),
        config=config,
        during=during,
    )


def _build_during(config: dict[str, Any]) -> "PeriodicEvaluation | None":
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
    return PeriodicEvaluation(every, suite["suite"], build_tasks(suite["tasks"]))
