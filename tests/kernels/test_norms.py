"""RMS norms: what each family's own class gives, forward and backward."""

import pytest
import torch
from devices import DEVICES
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from l2v.kernels.devices import planned_for
from l2v.kernels.norms import FastNorm, speed_up_norms


def _norms(kind: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    """A norm, and the same sped up, with weights that are not what the class begins with."""
    found = []
    for _ in range(2):
        norm = nn.Sequential(kind(12, eps=1e-3))
        torch.nn.init.normal_(norm[0].weight, generator=torch.Generator().manual_seed(0))
        found.append(norm)
    speed_up_norms(found[1])
    return found[0], found[1]


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm, Gemma2RMSNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of_weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", DEVICES)
def test_it_is_the_familys_own(kind: type[nn.Module], dtype: torch.dtype, of_weights: torch.dtype, device: str) -> None:
    own, fast = (norm.to(device, of_weights) for norm in _norms(kind))
    assert isinstance(fast[0], FastNorm) and isinstance(fast[0], kind)
    given = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    found = []
    for norm in (own, fast):
        x = given.clone().requires_grad_()
        y = norm(x)
        y.float().square().sum().backward()
        found.append((y.detach(), x.grad, norm[0].weight.grad))
    exact = torch.float32 in (dtype, of_weights) and dtype == of_weights
    for mine, theirs in zip(found[1], found[0], strict=True):
        assert mine.dtype == theirs.dtype
        error = (mine.float() - theirs.float()).norm() / theirs.float().norm()
        assert error < (1e-5 if exact else 1e-2)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_plan_goes_its_way(device: str) -> None:
    """Whose weights have no numbers: the input is kept for the backward pass, and no copy of it in float32."""
    with FakeTensorMode(), planned_for(device):
        _, fast = _norms(LlamaRMSNorm)
        y = fast(torch.ones(2, 12, requires_grad=True))
    assert type(fast[0].weight) is FakeTensor and "_Norm" in y.grad_fn.name()


def test_gradients_are_those_of_what_it_gives() -> None:
    """Numerically, in float32: the differences of the sum along a direction."""
    _, fast = _norms(LlamaRMSNorm)
    x, direction = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2)).unbind()
    x.requires_grad_()
    (of_x, of_weight) = torch.autograd.grad((fast(x) * direction).sum(), [x, fast[0].weight])
    with torch.no_grad():
        for at, gradient in ((x, of_x), (fast[0].weight, of_weight)):
            step = torch.randn(at.shape, generator=torch.Generator().manual_seed(3))
            values = []
            for sign in (1, -1):
                at.add_(step, alpha=sign * 1e-2)
                values.append((fast(x).double() * direction).sum())
                at.sub_(step, alpha=sign * 1e-2)
            slope = (values[0] - values[1]).item() / 2e-2
            assert abs(slope - (gradient * step).sum().item()) < 1e-2 * abs(slope)


class _CentredRMSNorm(nn.Module):
    """Named like the others, and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(12)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(dim=-1, keepdim=True)
        return self.weight * x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)


def test_another_kind_of_norm_is_left_alone() -> None:
    model = nn.Sequential(_CentredRMSNorm(), nn.LayerNorm(12))
    speed_up_norms(model)
    assert [type(module) for module in model] == [_CentredRMSNorm, nn.LayerNorm]
