"""From a ``plan`` config to a checked :class:`~l2v.planning.setup.Setup` and the room there is."""

from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Le, Lt

from l2v.config.build import build_later, check_value, construct
from l2v.config.trainer import build_trainer, sharding_of
from l2v.config.training import build_trained
from l2v.errors import L2VError

if TYPE_CHECKING:
    from l2v.planning.room import Room
    from l2v.planning.setup import Setup, Sharing


def build_plan(config: dict[str, Any]) -> "tuple[Setup, Room]":
    """What is planned, and the room for it, checked; the data are not looked at.

    Raises:
        L2VError: naming the setting.
    """
    from l2v.models.depth import cut
    from l2v.planning.room import Gpu, Room, memory_of_this_machine
    from l2v.planning.setup import Setup
    from l2v.planning.sizes import model_config

    trainer = dict(config["trainer"])
    on_gpu = trainer["accelerator"] != "cpu"
    sharding = sharding_of(trainer)
    stage, model, adapter = build_trained(config, on_cpu=not on_gpu, sharding=sharding)
    if not stage.trains_backbone:
        raise L2VError(f"stage={stage.name}: plans are of stages that train a model: mntp, simcse, supervised")
    stage.check(encoder=model.kind == "encoder", adapter=adapter is not None, sharding=sharding, sources=[])
    model.check(adapter=adapter is not None, sharding=sharding)
    if model.quantization is not None:
        raise L2VError("model.quantization: plans are of whole weights; set it to null")
    devices, nodes = (_count(trainer[key], f"trainer.{key}") for key in ("devices", "num_nodes"))
    stage.share_batch(devices * nodes, int(trainer["accumulate_grad_batches"]))
    sharing = _sharing(trainer["strategy"], devices * nodes)
    strategy = trainer.pop("strategy")
    settings = build_trainer({**trainer, "accelerator": "cpu", "devices": 1, "num_nodes": 1})
    if settings["precision"] == "auto" and on_gpu:
        settings["precision"] = "bf16-mixed"
    text_tokens = check_value(Annotated[int, Ge(1)] | None, config["text_tokens"], "text_tokens")
    setup = Setup(
        stage=stage,
        model=model,
        adapter=adapter,
        config=cut(model_config(model.source, trust_remote_code=model.trust_remote_code), model.layers),
        trainer=settings,
        strategy=build_later(strategy, "trainer.strategy") if sharing in ("ddp", "fsdp") else None,
        sharing=sharing,
        devices=devices,
        nodes=nodes,
        on_gpu=on_gpu,
        text_tokens=text_tokens,
    )
    gpu = construct(Gpu, config["gpu"], "gpu")
    room = Room(
        memory_gib=gpu.memory_gib if on_gpu else memory_of_this_machine() / devices,
        tflops=gpu.rate(settings["precision"]) if on_gpu else None,
        utilisation=check_value(Annotated[float, Gt(0), Le(1)], config["utilisation"], "utilisation"),
        reserve_gib=check_value(Annotated[float, Ge(0)], config["reserve_gib"], "reserve_gib"),
        fragmentation=check_value(Annotated[float, Ge(0), Lt(1)], config["fragmentation"], "fragmentation"),
    )
    return setup, room


def _count(value: Any, where: str) -> int:
    if value in ("auto", -1):
        raise L2VError(f"{where}={value}: say how many there will be, as {where}=8")
    return int(check_value(Annotated[int, Ge(1)], value, where))


def _sharing(strategy: Any, processes: int) -> "Sharing":
    """How processes share the work, by the strategy's class."""
    if not isinstance(strategy, dict):
        if processes > 1:
            raise L2VError(f"trainer.strategy={strategy}: for {processes} processes choose trainer=ddp or fsdp")
        return "one"
    name = strategy["_target_"].rpartition(".")[2]
    if name == "DDPStrategy":
        return "ddp" if processes > 1 else "one"
    if name == "FullySharded":
        return "fsdp" if processes > 1 else "one"
    if name == "ZeRO":
        return "zero3" if int(strategy.get("stage", 2)) == 3 else "zero2"
    raise L2VError(f"trainer.strategy._target_={name}: plans are of ddp, fsdp, deepspeed_zero2 and deepspeed_zero3")
