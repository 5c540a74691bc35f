"""Batches as large as time allows, in the memory of a small one: contrastive ones by GradCache (arXiv 2101.06983)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

from l2v.kernels.random_state import kept_random_state, random_state, set_random_state

Part = tuple[Tensor | None, ...]
Run = Callable[..., Tensor]


def embed_in_parts(run: Run, parts: Sequence[Part], parameters: Iterable[Tensor]) -> Tensor:
    """``torch.cat([run(*part) for part in parts])``, with the activations of one part at a time.

    The forward pass keeps no activations. The backward pass runs each part again, with the same random state and
    autocast, and goes back through it with its share of the vectors' gradient. The gradients are those of the plain
    form; the price is a second forward pass, and a second copy of the gradients.

    A parameter gets its whole gradient at once, at the end, as from any other operation. So DistributedDataParallel
    synchronises once a step, and accumulation, clipping, hooks and loss scaling work as they do elsewhere. A parameter
    that FSDP2 splits gets its part of the mean over all processes, which need equally many parts.

    Args:
        run: from the tensors of a part to vectors (rows, hidden), by a model with these parameters and random numbers
            of torch's own generators.
        parts: none of them requires a gradient.
        parameters: those that do not require a gradient are passed over.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return _Parts.apply(run, parts, *trained)


def sum_in_parts(run: Run, parts: Sequence[Part], parameters: Iterable[Tensor]) -> Tensor:
    """``sum(run(*part) for part in parts)``, with the activations of one part at a time.

    Where a loss is a sum over rows, nothing needs computing twice: a part's backward pass follows its forward pass.
    With parameters that FSDP2 splits, the number's own gradient has to be the same on all processes.

    Args:
        run: from the tensors of a part to a number, by a model with these parameters.
        parts: none of them requires a gradient.
        parameters: those that do not require a gradient are passed over.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return _Sum.apply(run, parts, *trained)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, parts: Sequence[Part], *parameters: Tensor) -> Tensor:
        device = parameters[0].device
        total = torch.zeros((), device=device)
        sums: list[Tensor | None] = [None] * len(parameters)
        for part in parts:
            with torch.enable_grad():
                one = run(*part)
            with torch.autocast(device.type, enabled=False):
                _add_to(sums, _gradients(one, parameters))
            total += one.detach()
            del one
        ctx.save_for_backward(*sums)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if one is None else one * gradient.to(one.dtype) for one in ctx.saved_tensors)


def _gradients(output: Tensor, parameters: Sequence[Tensor], gradient: Tensor | None = None) -> Sequence[Tensor | None]:
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return torch.autograd.grad(output, parameters, gradient, allow_unused=True)
    # a split parameter is no part of the graph: FSDP2's hooks set its gradient
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    output.backward(gradient)
    found = [parameter.grad for parameter in parameters]
    for parameter, kept in zip(parameters, before, strict=True):
        parameter.grad = kept
    return found


def _add_to(sums: list[Tensor | None], gradients: Sequence[Tensor | None]) -> None:
    for number, new in enumerate(gradients):
        before = sums[number]
        # not in place: two parameters may have got the same tensor
        sums[number] = new if before is None else before if new is None else before + new


class _Parts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, parts: Sequence[Part], *parameters: Tensor) -> Tensor:
        device = parameters[0].device
        ctx.run, ctx.parts, ctx.parameters, ctx.device = run, parts, parameters, device
        ctx.autocast = {
            "device_type": device.type,
            "enabled": torch.is_autocast_enabled(device.type),
            "dtype": torch.get_autocast_dtype(device.type),
        }
        ctx.states = []
        vectors = []
        for part in parts:
            ctx.states.append(random_state(device))
            vectors.append(run(*part))
        ctx.sizes = [len(rows) for rows in vectors]
        return torch.cat(vectors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        sums: list[Tensor | None] = [None] * len(ctx.parameters)
        for part, state, share in zip(ctx.parts, ctx.states, gradient.split(ctx.sizes), strict=True):
            with kept_random_state(ctx.device), torch.enable_grad(), torch.autocast(**ctx.autocast):
                set_random_state(ctx.device, state)
                vectors = ctx.run(*part)
            _add_to(sums, _gradients(vectors, ctx.parameters, share))
            del vectors
        return None, None, *sums
