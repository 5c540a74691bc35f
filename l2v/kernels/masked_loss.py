"""The masked-token loss without the scores of all hidden tokens at once.

A hidden token has a score for each token of the vocabulary: of 32 x 512 tokens of Llama 3, a fifth of them hidden, the
scores take 1.7 GB in float32, and their softmax and gradient as much each. The output head is frozen, so all that is
needed of them is a sum and the gradient of the states. Both are made in the forward pass, some tokens at a time: by the
kernel of Liger (arXiv 2410.10989) on CUDA where it is installed, elsewhere by the operations of the plain form.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from l2v.kernels.devices import kind_of

SCORES_AT_ONCE = {"cpu": 2**23, "cuda": 2**27}
"""Tokens times vocabulary, by the kind of device: in float32 32 MB and 512 MB."""


_FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""Settings of configs by which scores are multiplied."""
_SCALING_MULTIPLIES = ("hyperclovax",)
"""Families in which ``logits_scaling`` is a factor; in Granite it is a divisor."""


@dataclass(frozen=True)
class Scores:
    """From token states to vocabulary scores, scaled and capped as the model's own forward pass does it."""

    head: nn.Module
    vocabulary: int
    """Tokens in it."""
    divisor: float = 1.0
    """Granite."""
    factor: float = 1.0
    """Cohere, Falcon H1, HyperCLOVA X."""
    cap: float | None = None
    """Gemma 2."""

    @staticmethod
    def of(head: nn.Module, config: Any) -> "Scores":
        """As the decoder's (text) config says."""
        scaling = getattr(config, "logits_scaling", None) or 1.0
        multiplies = config.model_type in _SCALING_MULTIPLIES
        factors = [getattr(config, name, None) or 1.0 for name in _FACTORS]
        return Scores(
            head,
            vocabulary=config.vocab_size,
            divisor=1.0 if multiplies else scaling,
            factor=math.prod([*factors, *([scaling] if multiplies else [])]),
            cap=getattr(config, "final_logit_softcapping", None),
        )

    def __call__(self, states: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch vocabulary"]:
        scores = self.head(states)
        if self.divisor != 1:
            scores = scores / self.divisor
        if self.factor != 1:
            scores = scores * self.factor
        if self.cap:
            scores = torch.tanh(scores / self.cap) * self.cap
        return scores


def summed_cross_entropy(
    states: Float[Tensor, "masked hidden"], targets: Int[Tensor, " masked"], scores: Scores
) -> Float[Tensor, ""]:
    """``cross_entropy(scores(states).float(), targets, reduction="sum")``, in nats, for a frozen output head.

    Gradients reach the states, and nothing else.
    """
    kernel = liger()
    if kernel is not None and states.is_cuda and len(states) and _is_whole(scores.head):
        return by_liger(kernel, states, targets, scores)
    rows = max(1, SCORES_AT_ONCE.get(kind_of(states.device), SCORES_AT_ONCE["cpu"]) // scores.vocabulary)
    return _InParts.apply(states, targets, scores, rows)


@functools.cache
def liger() -> Callable[..., Tensor] | None:
    """Liger's fused linear cross entropy, where it is installed."""
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    except ImportError:
        return None
    return liger_fused_linear_cross_entropy


def by_liger(kernel: Callable[..., Tensor], states: Tensor, targets: Tensor, scores: Scores) -> Tensor:
    """The same by Liger, for an output head that is one linear layer. It makes no gradient of a frozen weight."""
    head: Any = scores.head
    weight, bias = head.weight, head.bias
    device = states.device.type
    if torch.is_autocast_enabled(device):  # once here, where the kernel would do it for each of its parts
        dtype = torch.get_autocast_dtype(device)
        states, weight, bias = states.to(dtype), weight.to(dtype), bias if bias is None else bias.to(dtype)
    scale = scores.factor / scores.divisor
    if scale != 1:
        states, bias = states * scale, bias if bias is None else bias * scale
    multiple = max(1, SCORES_AT_ONCE["cuda"] // states.numel())  # of the size of the states: the scores at once
    return kernel(states, weight, targets, bias, reduction="sum", softcap=scores.cap, chunk_mem_const=multiple)


def _is_whole(head: nn.Module) -> bool:
    """Whether a head is a linear layer whose weight is here: ZeRO-3 leaves it empty between forward passes."""
    return isinstance(head, nn.Linear) and type(head.weight) is nn.Parameter and head.weight.numel() > 0


class _InParts(torch.autograd.Function):
    """The head is called as a module, so what gathers the weights of a module that runs (ZeRO-3) does so here too."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, scores: Scores, rows: int) -> Tensor:
        trains = ctx.needs_input_grad[0]
        gradient = torch.empty_like(states) if trains else None
        total = torch.zeros((), device=states.device)
        for begin in range(0, len(states), rows):
            part = slice(begin, begin + rows)
            own = states[part].detach().requires_grad_(trains)
            with torch.set_grad_enabled(trains):
                loss = F.cross_entropy(scores(own).float(), targets[part], reduction="sum")
            if gradient is not None:
                (gradient[part],) = torch.autograd.grad(loss, own)
            total += loss.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (of_states,) = ctx.saved_tensors
        return of_states * gradient.to(of_states.dtype), None, None, None
