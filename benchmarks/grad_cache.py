"""What GradCache saves and what it costs: peak memory, gradients and time at 1 and 16 micro-batches.

    python benchmarks/grad_cache.py

A step of contrastive training with LoRA on a small random Llama, dropout on, on the CPU. "Memory" is the highest sum of
what torch's allocator has given out since the step began, as its profiler sees it: activations and gradients, without
the weights. The difference is that of the gradients of the same batch, same random numbers, without GradCache.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaModel

from l2v.kernels.grad_cache import embed_in_parts
from l2v.losses.info_nce import info_nce
from l2v.pooling import pool


class Case(NamedTuple):
    """One line of the table."""

    processes: int
    checkpointing: bool
    micro_batches: int
    cached: bool


class Result(NamedTuple):
    memory: float
    """MB beyond the weights, of the process that needs most."""
    seconds: float
    gradient: Tensor
    """Of all trained parameters."""
    syncs: int
    """Times that the gradients were exchanged between processes."""


class Embedder(nn.Module):
    """Two views of each row, as (2 x rows, hidden)."""

    def __init__(self, *, hidden: int, layers: int, checkpointing: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=1000,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 64,
            attention_dropout=0.1,
            is_causal=False,
        )
        decoder = LlamaModel(config)
        if checkpointing:
            decoder.gradient_checkpointing_enable({"use_reentrant": False})
        self.decoder = get_peft_model(decoder, LoraConfig(r=16, target_modules="all-linear", lora_dropout=0.05))

    def forward(self, ids: Tensor, micro_batch: int, cached: bool) -> Tensor:
        parts = [(part,) for part in ids.repeat(2, 1).split(micro_batch)]
        if cached:
            return embed_in_parts(self._run, parts, self.parameters())
        return torch.cat([self._run(*part) for part in parts])

    def _run(self, ids: Tensor) -> Tensor:
        mask = torch.ones_like(ids)
        states = self.decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return pool(states, mask, mask, "mean")


def measure(case: Case, *, hidden: int = 128, layers: int = 4, rows: int = 8, length: int = 64) -> Result:
    """One step of the case. ``rows`` is the micro-batch; each has ``length`` tokens."""
    if case.processes == 1:
        return _step(case, hidden, layers, rows, length)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (case, hidden, layers, rows, length, Path(folder))
        torch.multiprocessing.spawn(_process, arguments, nprocs=case.processes)
        results = [
            Result(**torch.load(Path(folder) / f"{rank}.pt", weights_only=True)) for rank in range(case.processes)
        ]
    return max(results, key=lambda result: result.memory)


def _process(rank: int, case: Case, hidden: int, layers: int, rows: int, length: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=case.processes)
    result = _step(case, hidden, layers, rows, length)
    torch.save(result._asdict(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def _step(case: Case, hidden: int, layers: int, rows: int, length: int) -> Result:
    model: nn.Module = Embedder(hidden=hidden, layers=layers, checkpointing=case.checkpointing).train()
    rank = dist.get_rank() if case.processes > 1 else 0
    syncs = [0]
    if case.processes > 1:
        model = DistributedDataParallel(model, bucket_cap_mb=1000)
        model.register_comm_hook(syncs, _counted)
    count = rows * case.micro_batches // 2  # each row is read twice
    torch.manual_seed(1 + rank)
    ids = torch.randint(1000, (count, length))

    def step() -> None:
        torch.manual_seed(2 + rank)
        first, second = model(ids, rows, case.cached).chunk(2)
        info_nce(first, second, 0.05).backward()

    step()  # what is made once is there
    model.zero_grad()
    syncs[0] = 0
    begin = time.perf_counter()
    step()
    seconds = time.perf_counter() - begin
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    syncs_a_step = syncs[0]
    model.zero_grad()
    return Result(peak_memory(step), seconds, gradient, syncs_a_step)


def _counted(syncs: list[int], bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DistributedDataParallel's own exchange, counted."""
    syncs[0] += 1
    average = bucket.buffer().div_(dist.get_world_size())
    return dist.all_reduce(average, async_op=True).get_future().then(lambda done: done.value()[0])


def peak_memory(step: Callable[[], None]) -> float:
    """The most memory, in MB, that tensors made during ``step`` have at once."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden", type=int, default=128, help="width of the model")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8, help="rows a micro-batch")
    parser.add_argument("--length", type=int, default=64, help="tokens a row")
    size = vars(parser.parse_args())
    print("processes  checkpointing  micro-batches  plain MB  GradCache MB  of one  difference  plain s  GradCache s")
    for processes in (1, 2):
        for checkpointing in (False, True):
            one = 0.0
            for micro_batches in (1, 16):
                plain, cached = (
                    measure(Case(processes, checkpointing, micro_batches, cached), **size) for cached in (False, True)
                )
                one = one or cached.memory
                difference = ((plain.gradient - cached.gradient).norm() / plain.gradient.norm()).item()
                print(
                    f"{processes:9}  {'on' if checkpointing else 'off':>13}  {micro_batches:13}  {plain.memory:8.1f}"
                    f"  {cached.memory:12.1f}  {cached.memory / one:6.2f}  {difference:10.1e}  {plain.seconds:7.2f}"
                    f"  {cached.seconds:11.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
