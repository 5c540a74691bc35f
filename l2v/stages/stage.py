"""What every training stage shares: the optimizer, randomness keyed by the step, checkpoints of what is trained."""

import gc
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import lightning as L
import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
from transformers import get_scheduler

from l2v.data.collate import Collator
from l2v.data.datamodule import Rows, TokenData
from l2v.data.mixed_order import MixedValidationOrder
from l2v.data.order import Pick, TrainingOrder, ValidationOrder, seed_of
from l2v.data.text_mix import TextMixOrder, TextMixRows
from l2v.data.texts import TextSource
from l2v.errors import L2VError
from l2v.models.adapters import trainable_parameters
from l2v.models.backbone import Backbone
from l2v.models.settings import Sharding
from l2v.models.sharding import shard

if TYPE_CHECKING:
    from l2v.runs.initialization import Initialization
    from l2v.runs.run import Run
    from l2v.training.settings import Training

Schedule = Literal["linear", "cosine", "constant", "warmup_stable_decay"]

DECAY_SHARE = 0.1
"""Of the steps of ``schedule=warmup_stable_decay``: enough in MiniCPM (arXiv 2404.06395)."""


PASS_TOKENS_ON_CPU = 1024
"""``stage.micro_batch_tokens=auto``: tensors of so many tokens stay in a processor's cache (docs/performance.md). Other
devices are filled by a whole batch, and split weights are gathered for each pass."""


def pass_tokens(setting: Any, *, on_cpu: bool, sharding: Sharding, precision: str, keeps_all: bool) -> Any:
    """What ``stage.micro_batch_tokens`` stands for: tokens of a forward pass; None: one pass.

    Args:
        setting: a number, None or ``auto``.
        on_cpu: whether the stage trains on one.
        sharding: what is split over processes.
        precision: of Lightning's: in 16 bits the cache holds twice as many tokens.
        keeps_all: whether the activations of all passes stay: shorter ones would save no memory.

    Raises:
        L2VError: it is a text, and not ``auto``.
    """
    if isinstance(setting, str):
        if setting != "auto":
            raise L2VError(f"stage.micro_batch_tokens={setting}: expected a number of tokens, null (one pass) or auto")
        if not on_cpu or sharding not in ("none", "optimizer"):
            return None
        return 2 * PASS_TOKENS_ON_CPU if keeps_all and "16" in precision else PASS_TOKENS_ON_CPU
    return setting


def _held(share: Callable[[int], float], horizon: int) -> Callable[[int], float]:
    """A schedule that stays as it is at its end."""
    return lambda step: share(min(step, horizon))


class Stage(L.LightningModule):
    """A stage is built without its model, so that a wrong setting is found before anything is loaded.

    Everything random in a step (dropout, masks) is keyed by the seed, the number of the batch and the rank, and the
    order of the data is a function of the seed. So a run that is resumed at batch k goes on bit for bit as one that
    never stopped, without saving the state of any generator.

    Args:
        name: mntp, simcse, ...
        global_batch_size: rows a step, on all processes and in all accumulated batches together.
        batch_size: rows a batch on each process; where it is given, it goes before ``global_batch_size``.
        max_steps: optimizer steps at which training stops.
        learning_rate: peak, after the warm-up.
        schedule: of the learning rate after the warm-up: linear or cosine to 0, constant, or warmup_stable_decay:
            constant, and linear to 0 over its last steps.
        schedule_steps: optimizer steps at which the schedule reaches 0; None: max_steps.
        schedule_epochs: the same in passes over the data, as in LLM2Vec, where the schedule spans 3 passes while
            training stops far earlier; None: use schedule_steps.
        decay_steps: optimizer steps of the decay of warmup_stable_decay; None: ``DECAY_SHARE`` of the schedule, or what
            the warm-up leaves of it where that is less.
        warmup_steps: optimizer steps of linear warm-up.
        weight_decay: of AdamW.
        attention_dropout: probability in the attention weights while training; None: the model's own.
        validate_every: optimizer steps between validations; there is one before the first step and one after the last.
        validation_rows: rows of the validation data to use, spread evenly over it.
        padding_side: right or left.
    """

    needs_head = False
    fewest_rows = 1
    """Of a batch on one process."""
    reads: type = TextSource
    """What kind of data it trains on."""
    reads_what = "texts, as data=files data.train.files=my.txt data.validation.files=held_out.txt has"
    trains_pooling = False
    """Whether the weights of a pooling of one's own are trained."""
    trains_backbone = True
    """Whether the run ends with an encoder."""
    micro_batch_tokens: int | None = None
    """Tokens of a forward pass, of stages that have the setting; None: one pass."""
    one_set_a_batch = False
    """Whether the rows of a batch come from one set of texts, where the data has several."""
    data_keys: tuple[str, ...] = ()
    """Settings of ``data=`` beside train, validation and workers."""

    def __init__(
        self,
        *,
        name: str,
        global_batch_size: Annotated[int, Ge(1)] | None = None,
        batch_size: Annotated[int, Ge(1)] | None = None,
        max_steps: Annotated[int, Ge(1)],
        learning_rate: Annotated[float, Gt(0)],
        schedule: Schedule = "linear",
        schedule_steps: Annotated[int, Ge(1)] | None = None,
        schedule_epochs: Annotated[int, Ge(1)] | None = None,
        decay_steps: Annotated[int, Ge(1)] | None = None,
        warmup_steps: Annotated[int, Ge(0)] = 0,
        weight_decay: Annotated[float, Ge(0)] = 0.0,
        attention_dropout: Annotated[float, Ge(0)] | None = None,
        validate_every: Annotated[int, Ge(1)] = 100,
        validation_rows: Annotated[int, Ge(1)] = 256,
        padding_side: Literal["right", "left"] = "right",
    ) -> None:
        super().__init__()
        self.strict_loading = False
        self.name = name
        rows = batch_size or global_batch_size
        if rows is None:
            raise L2VError("stage.global_batch_size, stage.batch_size: give one of them")
        if rows < self.fewest_rows:
            raise L2VError(
                f"stage.{'batch_size' if batch_size else 'global_batch_size'} must be at least {self.fewest_rows}"
            )
        self.batch_size = rows
        """Rows a batch on each process, once :meth:`share_batch` has settled it."""
        self.global_batch_size = None if batch_size else global_batch_size
        self.max_steps = max_steps
        self.learning_rate = learning_rate
        self.schedule: Schedule = schedule
        self.schedule_steps = schedule_steps
        self.schedule_epochs = schedule_epochs
        self.decay_steps = decay_steps
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.attention_dropout = attention_dropout
        self.validate_every = validate_every
        self.validation_rows = validation_rows
        self.padding_side = padding_side
        self.seed = 0
        self.backbone: Backbone
        self._tokens = 0
        self._mark = 0.0
        self._sums: dict[str, Tensor] = {}
        if schedule_steps is not None and schedule_epochs is not None:
            raise L2VError(
                "stage.schedule_steps and stage.schedule_epochs (quirks=llm2vec) exclude each other; set one"
            )
        if warmup_steps >= min(max_steps, schedule_steps or max_steps):
            is_schedule = schedule_steps is not None and schedule_steps < max_steps
            steps = f"schedule_steps={schedule_steps}" if is_schedule else f"max_steps={max_steps}"
            raise L2VError(f"stage.warmup_steps={warmup_steps} leaves nothing of stage.{steps}")
        if schedule == "warmup_stable_decay":
            self._check_decay()
        elif decay_steps is not None:
            raise L2VError(
                f"stage.decay_steps is for stage.schedule=warmup_stable_decay, not {schedule}; set it to null"
            )
        if attention_dropout is not None and attention_dropout >= 1:
            raise L2VError(f"stage.attention_dropout must be in [0, 1), got {attention_dropout}")

    def _check_decay(self) -> None:
        if self.schedule_epochs is not None:
            raise L2VError(
                "stage.schedule=warmup_stable_decay decays at the end of training, and stage.schedule_epochs "
                "(quirks=llm2vec) ends elsewhere; set it to null"
            )
        steps = self.schedule_steps or self.max_steps
        if self.warmup_steps + (self.decay_steps or 1) > steps:
            raise L2VError(
                f"stage.decay_steps={self.decay_steps or 'null'}: stage.warmup_steps={self.warmup_steps} leaves "
                f"{max(0, steps - self.warmup_steps)} of the schedule's {steps} steps; lower one of them"
            )

    def check(self, *, encoder: bool, adapter: bool, sharding: Sharding, sources: Sequence[object]) -> None:
        """Refuse what does not go with the stage, before anything is loaded.

        Args:
            encoder: whether the model is an encoder (BERT).
            adapter: whether an adapter is trained.
            sharding: what is split over processes.
            sources: of the data.

        Raises:
            L2VError: naming the override.
        """
        if encoder:
            raise L2VError(
                f"model.kind=encoder: stage={self.name} makes encoders of decoders; choose a decoder with model=, or "
                "stage=word"
            )
        if sharding == "zero3" and self.micro_batch_tokens:
            raise L2VError(
                "stage.micro_batch_tokens: ZeRO-3 takes the weights apart again between the passes of a step; choose "
                "trainer=fsdp or deepspeed_zero2, or set it to null"
            )
        for source in sources:
            if not isinstance(source, self.reads):
                raise L2VError(f"data=: stage={self.name} trains on {self.reads_what}; choose such data")

    def attach(self, backbone: Backbone, seed: int) -> None:
        """Give the stage its model, with dropout on: Lightning keeps the mode in which it finds a module."""
        self.backbone = backbone.train()
        self.seed = seed

    def share_batch(self, processes: int, batches: int) -> None:
        """Give each process its rows of ``global_batch_size``.

        Args:
            processes: of the training.
            batches: that are accumulated to a step.

        Raises:
            L2VError: they do not divide it, or leave too few rows.
        """
        if self.global_batch_size is None:
            return
        self.batch_size, rest = divmod(self.global_batch_size, processes * batches)
        if rest or self.batch_size < self.fewest_rows:
            raise L2VError(
                f"stage.global_batch_size={self.global_batch_size}: {processes} processes x {batches} batches a step "
                f"need a multiple of {processes * batches}, and at least {self.fewest_rows} rows each; change it, or "
                "set stage.batch_size (rows a batch on each process)"
            )

    # from the settings to a finished run

    def data(self, training: "Training", start: "Initialization", device: torch.device | str) -> L.LightningDataModule:
        """The data to train on, which Lightning prepares; the stage has its model after it.

        Args:
            training: the settings, this stage among them.
            start: what the run begins with.
            device: of the model; meta: it is split before training.
        """
        self.attach(training.load_backbone(start, training_mode=True, device=device), training.seed)
        return TokenData(self, training.train, training.validation, workers=training.workers)

    def release(self) -> None:
        """Let go of the model, on every process, before :meth:`finish`: two would not fit where one does."""
        self._modules.pop("backbone", None)
        gc.collect()

    def finish(self, training: "Training", run: "Run", start: "Initialization") -> None:
        """What the run ends with, written by the first process: the adapter, the merged encoder and the lineage."""
        training.export(run, start)

    # what a stage defines

    def rows(self, source: Any, *, show: bool) -> Any:
        """The token rows that this stage trains on, of the kind of data that it reads."""
        raise NotImplementedError

    def collator(self, *, training: bool) -> Collator:
        """What makes a batch of rows."""
        raise NotImplementedError

    # data

    def training_order(self, rows: Any, **settings: Any) -> Sampler[list[Pick]]:
        """Which rows make which batch; ``settings`` as of :class:`~l2v.data.order.TrainingOrder`."""
        if isinstance(rows, TextMixRows):
            sizes = rows.sizes
            return TextMixOrder(sizes, rows.mix.shares_of(sizes), one_set_a_batch=self.one_set_a_batch, **settings)
        return TrainingOrder(len(rows), **settings)

    def validation_order(self, rows: Any, **settings: Any) -> Sampler[list[Pick]]:
        """Which rows are validated in which batch; ``settings`` as of :class:`~l2v.data.order.ValidationOrder`."""
        if isinstance(rows, TextMixRows) and self.one_set_a_batch:
            return MixedValidationOrder(rows.sets, **settings)
        return ValidationOrder(len(rows), **settings)

    def loader(self, rows: Rows, *, training: bool, workers: int = 0) -> DataLoader:
        """A loader of this rank's share of the rows."""
        trainer = self.trainer
        share = {"batch_size": self.batch_size, "rank": trainer.global_rank, "world_size": trainer.world_size}
        order: Sampler[list[Pick]]
        if training:
            order = self.training_order(
                rows,
                batches=self.max_steps * trainer.accumulate_grad_batches,
                # the loop counts batches as indices: it stands one before the next batch
                first=trainer.fit_loop.epoch_loop.total_batch_idx + 1,
                seed=self.seed,
                **share,
            )
        else:
            order = self.validation_order(rows, **share)
        return DataLoader(
            rows,
            batch_sampler=order,
            collate_fn=self.collator(training=training),
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    # optimizer

    def configure_optimizers(self) -> Any:
        parameters = list(trainable_parameters(self).values())
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        horizon = self.horizon()
        settings = None
        if self.schedule == "warmup_stable_decay":
            decay = self.decay_steps or min(max(1, round(DECAY_SHARE * horizon)), horizon - self.warmup_steps)
            settings = {"num_decay_steps": decay, "decay_type": "linear"}
        name = "constant_with_warmup" if self.schedule == "constant" else self.schedule
        scheduler = get_scheduler(name, optimizer, self.warmup_steps, horizon, settings)
        if self.schedule == "cosine":  # which would rise again after its end
            scheduler.lr_lambdas = [_held(share, horizon) for share in scheduler.lr_lambdas]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def horizon(self) -> int:
        """Optimizer steps at which the learning rate's schedule ends."""
        if self.schedule_epochs is not None:
            rows = len(self.trainer.datamodule.train_rows)  # type: ignore[attr-defined]
            batches = math.ceil(
                rows / (self.batch_size * self.trainer.world_size)
            )  # HF's Trainer keeps a short last one
            return self.schedule_epochs * max(1, batches // self.trainer.accumulate_grad_batches)
        return self.schedule_steps or self.max_steps

    def configure_model(self) -> None:
        """Shard the decoder layer by layer under FSDP2; nothing to do elsewhere."""
        if self.device_mesh is None or getattr(self, "_sharded", False):
            return
        shard(self.backbone, self.device_mesh, getattr(self.trainer.strategy, "gather_dtype", None))
        self._sharded = True

    # randomness and bookkeeping

    def on_train_start(self) -> None:
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, LambdaLR):  # a resumed run may have another schedule, rate or weight decay now
            shares = [share(scheduler.last_epoch) for share in scheduler.lr_lambdas]
            rates = [base * share for base, share in zip(scheduler.base_lrs, shares, strict=True)]
            for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            scheduler._last_lr = rates
        self.restart_clock()

    def on_validation_end(self) -> None:
        self.restart_clock()

    def restart_clock(self) -> None:
        """What was done since the last batch does not count into tokens per second."""
        self._mark = time.perf_counter()

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed(seed_of(self.seed, "step", number, self.global_rank))

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        tokens = batch["tokens"] * self.trainer.world_size
        self._tokens += tokens
        self.log("train/tokens", float(self._tokens))
        # from one batch's end to the next: a GPU works on while Python is ahead of it, and loading counts too
        before, self._mark = self._mark, time.perf_counter()
        self.log("train/tokens_per_second", tokens / (self._mark - before), prog_bar=True)
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])

    def add_to_validation(self, **sums: Tensor) -> None:
        """Add sums over this batch; they are added up over all batches and ranks."""
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().to(self.device, torch.float32)

    def validation_sums(self) -> dict[str, float]:
        """What was added up over the validation, over all ranks; starts anew."""
        sums = {name: self.trainer.strategy.reduce(value, reduce_op="sum").item() for name, value in self._sums.items()}
        self._sums = {}
        return sums

    # checkpoints: the trainable weights only

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        wanted = trainable_parameters(self)
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in wanted}
        # some strategies load the weights themselves and take them out before on_load_checkpoint sees them
        checkpoint["trainable"] = sorted(wanted)
        checkpoint["tokens"] = self._tokens
        checkpoint["settings"] = self._of_steps()

    def _of_steps(self) -> dict[str, Any]:
        """Settings that Lightning takes from a checkpoint, or that its counts in one rest on."""
        return {
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
            "rows": self.batch_size * self.trainer.accumulate_grad_batches * self.trainer.world_size,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        wanted, found = set(trainable_parameters(self)), set(checkpoint["trainable"])
        if wanted != found:
            odd = sorted(wanted ^ found)
            raise L2VError(
                f"the checkpoint does not fit: {len(odd)} trainable tensors are missing or unexpected, e.g. {odd[0]}; "
                "resume with the settings of adapter= that the run began with"
            )
        self._tokens = checkpoint["tokens"]
        self._change_settings(checkpoint)

    def _change_settings(self, checkpoint: dict[str, Any]) -> None:
        """Put the settings of now in place of those that a checkpoint was saved with."""
        now = self._of_steps()
        before = checkpoint.get("settings", now)
        for group in (group for state in checkpoint["optimizer_states"] for group in state["param_groups"]):
            if "initial_lr" in group:
                group["initial_lr"] *= now["learning_rate"] / before["learning_rate"]
            if group.get("weight_decay") == before["weight_decay"]:
                group["weight_decay"] = now["weight_decay"]
        for state in (state for state in checkpoint["lr_schedulers"] if "base_lrs" in state):
            state["base_lrs"] = [rate * now["learning_rate"] / before["learning_rate"] for rate in state["base_lrs"]]
        more_batches = now["accumulate_grad_batches"] / before["accumulate_grad_batches"]
        before.setdefault("rows", now["rows"] / (more_batches if self.global_batch_size is None else 1))
        if now["rows"] != before["rows"]:
            raise L2VError(
                f"resume: a step of the run has {before['rows']:.0f} rows, on all processes and in all accumulated "
                f"batches together; with {now['rows']} it would read rows twice, or not at all; set "
                f"stage.global_batch_size={before['rows']:.0f} stage.batch_size=null"
            )
        if now["accumulate_grad_batches"] != before["accumulate_grad_batches"]:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            more = checkpoint["global_step"] * now["accumulate_grad_batches"] - progress["total"]["ready"]
            for counts in (progress["total"], progress["current"]):
                counts.update({name: count + more for name, count in counts.items()})
