"""Rotary positions on a CPU: what each family's own function gives."""

from typing import Any

import pytest
import torch
from tiny import make_tiny_decoder
from transformers.models.glm4 import modeling_glm4
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

from l2v.kernels.rotary import FastRotary, _with_fast_rotary, rotate, speed_up_rotary


def _given(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    query, key = (normal(2, 5, heads, 8).transpose(1, 2).to(dtype) for heads in (4, 2))
    return [query, key, normal(1, 5, 8), normal(1, 5, 8)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of_angles", [torch.float32, torch.bfloat16])
def test_it_is_the_familys_own(dtype: torch.dtype, of_angles: torch.dtype) -> None:
    own = modeling_llama.apply_rotary_pos_emb
    query, key, cos, sin = _given(dtype)
    cos, sin = cos.to(of_angles), sin.to(of_angles)
    found = []
    for fast in (False, True):
        given = [x.clone().requires_grad_() for x in (query, key)]
        outputs = rotate(*given, cos, sin, own=own) if fast else own(*given, cos, sin)
        sum(output.float().square().sum() * n for n, output in enumerate(outputs, start=1)).backward()
        found.append([*outputs, *(x.grad for x in given)])
    tolerance = 1e-6 if dtype == of_angles == torch.float32 else 2e-2
    for mine, theirs in zip(found[1], found[0], strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine.float() - theirs.float()).norm() < tolerance * theirs.float().norm()


def test_gradients_are_those_of_what_it_gives() -> None:
    query, key, cos, sin = (x.double() for x in _given(torch.float32))
    given = [x.requires_grad_() for x in (query, key)]
    own = modeling_llama.apply_rotary_pos_emb
    assert torch.autograd.gradcheck(lambda *x: rotate(*x, cos, sin, own=own), given)


@pytest.mark.parametrize(
    ("module", "name", "rotates"),
    [
        (modeling_llama, "LlamaAttention", True),
        (modeling_qwen3, "Qwen3Attention", True),
        (modeling_gpt_neox, "GPTNeoXAttention", True),
        # pairs of neighbours: not what is proven
        (modeling_glm4, "Glm4Attention", False),
    ],
)
def test_only_a_function_that_rotates_halves_is_replaced(module: Any, name: str, rotates: bool) -> None:
    fast = _with_fast_rotary(getattr(module, name))
    assert (fast is not None) == rotates
    if fast is not None:
        assert issubclass(fast, getattr(module, name)) and issubclass(fast, FastRotary)


def test_a_part_of_each_head_is_left_to_the_family() -> None:
    query, key, cos, sin = _given(torch.float32)
    own = modeling_gpt_neox.apply_rotary_pos_emb
    found = rotate(query, key, cos[..., :4], sin[..., :4], own=own)
    for mine, theirs in zip(found, own(query, key, cos[..., :4], sin[..., :4]), strict=True):
        assert torch.equal(mine, theirs)


def test_a_model_gives_the_same_and_its_library_stays_as_it_was() -> None:
    before = modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaAttention.forward
    plain, fast = (make_tiny_decoder().get_decoder().eval() for _ in range(2))
    speed_up_rotary(fast)
    assert any(isinstance(module, FastRotary) for module in fast.modules())
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(fast(ids).last_hidden_state, plain(ids).last_hidden_state, rtol=1e-5, atol=1e-5)
    assert before == (modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaAttention.forward)
