"""Two optimizer steps of the real stage, by Lightning, on shapes: what they take."""

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader, Dataset

from l2v.kernels.devices import planned_for
from l2v.models.adapters import trainable_parameters
from l2v.planning.backbone import new_backbone, text_config
from l2v.planning.batches import longest_batch
from l2v.planning.fakes import Fakes, attention_of_gpus
from l2v.planning.ledger import Kind, Ledger
from l2v.planning.setup import Setup
from l2v.stages.mntp import MNTP
from l2v.training.trainer import make_trainer, quiet_lightning

_CUDA_BLOCK = 512
"""Bytes that torch's allocator for CUDA rounds up to."""
_STEPS = 2
"""The second has the optimizer's state from the first, and its gradients while it goes forward."""


@dataclass(frozen=True)
class Needs:
    """What a step takes of one process; bytes unless said otherwise."""

    memory: dict[Kind, int]
    """By kind, at the moment of the second step when most is alive."""
    memory_of_pass: dict[Kind, int]
    """The same of forward and backward alone, without the optimizer's own step."""
    loading: int
    """The most before the first step."""
    parameters: int
    """Numbers in the whole model, with the adapter."""
    trained: int
    """Numbers of them that are trained."""
    weights: int
    """Of the whole model, without the adapter."""
    flops: float
    """Floating point operations of matrix products in an optimizer step."""
    sent: float
    """What collectives bring together in an optimizer step."""
    tokens: int
    """Tokens of an optimizer step, padding left out."""

    @property
    def peak(self) -> int:
        return max(self.loading, self.training)

    @property
    def training(self) -> int:
        return sum(self.memory.values())


@quiet_lightning()
def measure(setup: Setup) -> Needs:
    """Run two optimizer steps on shapes: the real stage, strategy, optimizer and clipping, as Lightning runs them.

    Raises:
        L2VError: parts that do not go together.
    """
    stage = copy.deepcopy(setup.stage)
    stage.max_steps = max(stage.max_steps, _STEPS)
    stage.schedule_epochs = None  # the data are not there to be counted
    backbone = new_backbone(setup)
    decoder_weights = [p for name, p in backbone.named_parameters() if "lora_" not in name]
    weights = sum(p.nbytes for p in decoder_weights)
    parameters = sum(p.numel() for p in backbone.parameters())
    trained = sum(p.numel() for p in trainable_parameters(backbone).values())
    ledger = Ledger(_CUDA_BLOCK if setup.on_gpu else 1)
    fakes = Fakes(ledger)
    if setup.sharing == "fsdp":
        # layer by layer, as they are split
        backbone.settle = lambda part: fakes.materialize(part)  # type: ignore[method-assign]
    else:
        fakes.materialize(backbone)
    backbone._apply = lambda *_, **__: backbone  # type: ignore[method-assign]  # fakes are where they have to be
    stage.attach(backbone, 0)
    stage.log = lambda *_, **__: None  # type: ignore[method-assign]  # Lightning copies what it logs
    vocabulary = text_config(setup.config).vocab_size
    fakes.is_scores = _scores_of(setup, vocabulary)
    batch = setup.batch or longest_batch(stage, vocabulary, setup.text_tokens)
    batches = min(setup.trainer.get("accumulate_grad_batches", 1), 2)
    watch = _Watch(fakes, on_gpu=setup.on_gpu)
    with _processes(setup), planned_for("cuda" if setup.on_gpu else "cpu"), _gathers_are_told(fakes):
        trainer = _trainer(setup, batches, watch)
        fakes.kind = "gradients"  # of what a strategy sets up: the buckets of DDP
        with (
            warnings.catch_warnings(action="ignore"),
            attention_of_gpus() if setup.on_gpu else contextlib.nullcontext(),
            fakes,
        ):
            trainer.fit(stage, DataLoader(_Same(batch, _STEPS * batches), batch_size=None))
    whole = setup.trainer.get("accumulate_grad_batches", 1)
    return Needs(
        memory=watch.memory,
        memory_of_pass=watch.memory_of_pass,
        loading=watch.loading,
        parameters=parameters,
        trained=trained,
        weights=weights,
        flops=float(watch.flops * whole),
        sent=float(watch.sent + watch.sent_before * (whole - 1)),
        tokens=batch["tokens"] * whole * setup.processes,
    )


def _scores_of(setup: Setup, vocabulary: int) -> Any:
    """Which shapes are scores: hidden tokens by the vocabulary, or queries by the documents of all processes."""
    stage: Any = setup.stage
    if isinstance(stage, MNTP):
        return lambda shape: len(shape) == 2 and shape[-1] == vocabulary
    rows, everyone = stage.batch_size, stage.batch_size * setup.processes
    columns = everyone * (1 + getattr(stage, "negatives", 0))
    return lambda shape: tuple(shape) == (rows, columns)


def _trainer(setup: Setup, batches: int, watch: "_Watch") -> L.Trainer:
    """Lightning's trainer of the first process."""
    trainer = make_trainer(
        {
            **setup.trainer,
            "accelerator": "cpu",
            "devices": setup.devices,
            "num_nodes": setup.nodes,
            "accumulate_grad_batches": batches,
            "strategy": setup.strategy or "auto",
        },
        max_steps=_STEPS,
        plugins=[_OneOfMany(setup)] if setup.processes > 1 else None,
        logger=False,
        callbacks=[watch],
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    # what the first process tells the others it has
    trainer.strategy.broadcast = lambda obj, src=0: obj  # type: ignore[method-assign]
    return trainer


class _Same(Dataset[dict[str, Any]]):
    """A batch, as often as it is read."""

    def __init__(self, batch: dict[str, Any], count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.batch


class _Watch(Callback):
    """Tells the books what new tensors are, and reads them."""

    def __init__(self, fakes: Fakes, *, on_gpu: bool) -> None:
        self.fakes, self.on_gpu = fakes, on_gpu
        self.memory: dict[Kind, int] = {}
        self.memory_of_pass: dict[Kind, int] = {}
        self.loading = self.flops = 0
        self.sent = self.sent_before = 0  # of the last batch of a step, and of one before it

    def on_fit_start(self, trainer: L.Trainer, stage: L.LightningModule) -> None:
        model = trainer.strategy.model
        if isinstance(model, DistributedDataParallel):
            model.register_comm_hook(self.fakes, _all_reduce)

    def on_train_start(self, trainer: L.Trainer, stage: L.LightningModule) -> None:
        ledger = self.fakes.ledger
        ledger.move((_own(weight) for weight in [*stage.parameters(), *stage.buffers()]), "weights")
        self.loading = sum(ledger.peak.values())
        ledger.start_anew()
        self.fakes.kind = "activations"
        for weight in stage.parameters():
            if weight.requires_grad and weight is _own(weight):
                weight.register_post_accumulate_grad_hook(self._is_gradient)
        if self.on_gpu:  # what AdamW does with tensors on a GPU, and it sees tensors on a CPU
            for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
                group["foreach"] = True

    def on_train_batch_start(self, *args: Any) -> None:
        self.fakes.flops = self.fakes.sent = 0

    def on_after_backward(self, trainer: L.Trainer, stage: L.LightningModule) -> None:
        gradients = [weight.grad for weight in stage.parameters() if weight.grad is not None]
        self.fakes.ledger.move(map(_own, gradients), "gradients")

    def on_before_optimizer_step(self, *args: Any) -> None:
        self.memory_of_pass = dict(self.fakes.ledger.peak)
        self.fakes.kind = "optimizer"

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.fakes.kind = "activations"
        self.flops = self.fakes.flops
        self.sent, self.sent_before = self.fakes.sent, self.sent
        self.memory = dict(self.fakes.ledger.peak)

    def _is_gradient(self, weight: Tensor) -> None:
        if weight.grad is not None:
            self.fakes.ledger.move([weight.grad], "gradients")


def _own(tensor: Any) -> Tensor:
    """The part that is here of a tensor that is split."""
    return getattr(tensor, "_local_tensor", tensor)


def _all_reduce(fakes: Fakes, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's way to share gradients, in place of a process group that shares nothing."""
    fakes.sent += bucket.buffer().nbytes
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


class _OneOfMany(ClusterEnvironment):
    """The first of the planned processes."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self._processes = setup.processes

    creates_processes_externally = True
    main_address = "127.0.0.1"
    main_port = 0

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._processes

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return 0

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return 0


@contextlib.contextmanager
def _processes(setup: Setup) -> Iterator[None]:
    """Meanwhile this is the first of the processes, and collectives send nothing."""
    if setup.processes == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=setup.processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _gathers_are_told(fakes: Fakes) -> Iterator[None]:
    """Meanwhile what FSDP2 gathers, or has to share, is told from what a layer computes."""
    names = ("unshard", "wait_for_unshard", "post_backward")
    before = {name: getattr(FSDPParamGroup, name) for name in names}

    def telling(method: Any) -> Any:
        def told(*args: Any, **kwargs: Any) -> Any:
            kind, fakes.kind = fakes.kind, "gathers"
            try:
                return method(*args, **kwargs)
            finally:
                fakes.kind = kind

        return told

    for name, method in before.items():
        setattr(FSDPParamGroup, name, telling(method))
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(FSDPParamGroup, name, method)
