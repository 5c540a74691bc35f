"""The group ``trainer``: keyword arguments of ``lightning.Trainer``."""

from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from l2v.config.build import build_later, check, check_value, find_target
from l2v.config.messages import guess
from l2v.errors import L2VError

if TYPE_CHECKING:
    from l2v.models.settings import Sharding

_SET_BY_L2V = {
    **dict.fromkeys(("max_steps", "max_epochs", "fast_dev_run"), "use stage.max_steps"),
    **dict.fromkeys(("min_steps", "min_epochs"), "a training ends at stage.max_steps"),
    **dict.fromkeys(("limit_train_batches", "overfit_batches"), "use stage.max_steps and data= of fewer texts"),
    "limit_val_batches": "use stage.validation_rows",
    "val_check_interval": "use stage.validate_every",
    "check_val_every_n_epoch": "use stage.validate_every",
    "logger": "choose logger=",
    "enable_checkpointing": "use keep_checkpoints=",
    "barebones": "there is no override for it",
    "callbacks": "there is no override for it",
    "enable_progress_bar": "there is no override for it",
    "enable_model_summary": "there is no override for it",
    "num_sanity_val_steps": "l2v validates before the first step",
    "use_distributed_sampler": "the stages share the data themselves",
    "default_root_dir": "use runs_dir",
}


_OF_PREDICTION = {"_target_", "accelerator", "devices", "num_nodes", "strategy", "precision", "plugins"}
_OF_TRAINING = {"accumulate_grad_batches", "gradient_clip_val", "log_every_n_steps"}
"""What every option of the group ``trainer`` says, and only training reads."""


def sharding_of(trainer: dict[str, Any]) -> "Sharding":
    """What the strategy splits over processes."""
    strategy = trainer.get("strategy")
    if not isinstance(strategy, dict) or strategy["_target_"].endswith("DDPStrategy"):
        return "none"
    if strategy["_target_"] == "l2v.training.deepspeed.ZeRO":
        return "optimizer" if strategy.get("stage", 2) == 2 and not strategy.get("config") else "zero3"
    return "weights"


def build_predictor(trainer: dict[str, Any]) -> dict[str, Any]:
    """What encode.py takes of the group ``trainer``, as keyword arguments of ``lightning.Trainer``, checked."""
    kept = {key: value for key, value in trainer.items() if key not in _OF_TRAINING}
    for key in kept.keys() - _OF_PREDICTION:
        known = sorted(_OF_PREDICTION - {"_target_"})
        raise L2VError(f"trainer.{key}: not used here{guess(key, known)}; there are {', '.join(known)}")
    return build_trainer(kept)


def build_trainer(trainer: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``lightning.Trainer``, checked; the strategy is what makes it, once it is needed."""
    trainer = dict(trainer)
    for key in trainer.keys() & _SET_BY_L2V.keys():
        raise L2VError(f"trainer.{key}: set by l2v; {_SET_BY_L2V[key]}")
    _refuse_strategies(trainer.get("strategy"))
    check_value(Annotated[int, Ge(1)], trainer.get("accumulate_grad_batches", 1), "trainer.accumulate_grad_batches")
    target = find_target(trainer.pop("_target_"), "trainer")
    kept: dict[str, Any] = {}
    if trainer["precision"] == "auto":  # which Trainer does not know
        kept["precision"] = trainer.pop("precision")
    if isinstance(trainer.get("strategy"), dict):
        kept["strategy"] = build_later(trainer.pop("strategy"), "trainer.strategy")
    return {**check(target, trainer, "trainer"), **kept}


_OURS = {
    "deepspeed": "trainer=deepspeed_zero2 or deepspeed_zero3: Lightning's own saves pickles, which may run code",
    "fsdp": "trainer=fsdp: Lightning's own has one dtype a layer, which adapters in float32 are not",
    "modelparallel": "trainer=fsdp: Lightning's own saves the frozen weights too",
}
"""Strategies of Lightning that l2v has its own for, by how their names begin."""


def _refuse_strategies(strategy: Any) -> None:
    name = strategy["_target_"] if isinstance(strategy, dict) else str(strategy)
    if name.endswith(("_spawn", "_fork", "_notebook")):
        raise L2VError(f"trainer.strategy={name}: hands the model to processes that it starts; choose trainer=ddp")
    if isinstance(strategy, dict) and not name.startswith(("lightning.", "pytorch_lightning.")):
        return
    for beginning, instead in _OURS.items():
        if name.rpartition(".")[2].lower().startswith(beginning):
            raise L2VError(f"trainer.strategy={name}: choose {instead}")
