"""Attention with dropout on a CPU: what plain operations give, without keeping pairs of tokens."""

import gc
from typing import Any

import pytest
import torch
from tiny import make_tiny_decoder
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from l2v.kernels import attention as module
from l2v.kernels.attention import keep_apart, lean_attention, register_attention
from l2v.models.bidirectional import set_attention

BATCH, GROUPS, LENGTH, WIDTH = 3, 2, 5, 4
MASKS = ["none", "bool", "bool of heads", "added", "of all rows"]


def _tensors(heads: int, **kind: Any) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, **kind)

    # as they come from a model: (batch, length, heads, width), turned around
    query = normal(BATCH, LENGTH, heads, WIDTH).transpose(1, 2)
    return query, normal(BATCH, LENGTH, GROUPS, WIDTH).transpose(1, 2), normal(BATCH, GROUPS, LENGTH, WIDTH + 1)


def _mask(kind: str, heads: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(1)
    seen = torch.rand(BATCH, heads, LENGTH, LENGTH, generator=generator) < 0.7
    seen |= torch.eye(LENGTH, dtype=torch.bool)
    added = torch.where(seen, torch.rand(seen.shape, generator=generator), -torch.inf)
    masks = {"bool": seen[:, :1], "bool of heads": seen, "added": added[:, :1], "of all rows": seen[:1, :1]}
    return masks.get(kind)


@pytest.fixture(params=[1, 60, 10**6], ids=["a group at once", "a row at once", "all at once"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", request.param)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("heads", [GROUPS, 2 * GROUPS])
def test_without_a_drop_it_is_torchs_attention(kind: str, heads: int) -> None:
    mine, torchs = (tuple(x.requires_grad_() for x in _tensors(heads)) for _ in range(2))
    mask = _mask(kind, heads)
    added = mask.float() if mask is not None and mask.dtype.is_floating_point else mask
    got = lean_attention(*mine, added, 1e-9, 0.3)
    expected = scaled_dot_product_attention(*torchs, attn_mask=added, scale=0.3, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(got, expected)
    direction = torch.randn(got.shape, generator=torch.Generator().manual_seed(2))
    for x, y in zip(
        torch.autograd.grad(got, mine, direction), torch.autograd.grad(expected, torchs, direction), strict=True
    ):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize(
    "at_once", [*(pytest.param(size, marks=pytest.mark.slow) for size in (1, 60)), 10**6], indirect=True
)
@pytest.mark.parametrize("kind", MASKS)
def test_gradients_with_dropout_are_those_of_what_it_gives(kind: str, at_once: None) -> None:
    heads = 2 * GROUPS
    mask = _mask(kind, heads)
    mask = mask.double() if mask is not None and mask.dtype.is_floating_point else mask

    def attention(*tensors: Tensor) -> Tensor:
        torch.manual_seed(0)
        return lean_attention(*tensors, mask, 0.4)

    given = tuple(x.requires_grad_() for x in _tensors(heads, dtype=torch.float64))
    assert torch.autograd.gradcheck(attention, given)


def _with_dropout(causal: bool, probability: float, length: int) -> tuple[Any, Tensor, Tensor]:
    """A decoder, and ids and the mask of two rows, one of them half padding."""
    register_attention()
    decoder = make_tiny_decoder(attention_dropout=probability).get_decoder()
    set_attention(decoder, "causal" if causal else "bidirectional")
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[1, length // 2 :] = 0
    return decoder.train(), torch.arange(2 * length).view(2, length) % 50, mask


def test_dropped_weights() -> None:
    """Values of the identity show the weights: some are gone, the others are scaled up, in other places each time."""
    length, probability = 64, 0.3
    query, key = torch.randn(2, 4, 3, length, 8, generator=torch.Generator().manual_seed(0)).unbind()
    value = torch.eye(length).expand(4, 3, length, length)
    weights = (query @ key.mT * 8**-0.5).softmax(dim=-1).transpose(1, 2)
    torch.manual_seed(0)
    first, second = (lean_attention(query, key, value, None, probability) for _ in range(2))
    for found in (first, second):
        stays = found != 0
        assert abs(stays.float().mean().item() - (1 - probability)) < 0.02
        torch.testing.assert_close(found[stays], weights[stays] / (1 - probability), rtol=1e-4, atol=1e-6)
    agree = ((first != 0) == (second != 0)).float().mean().item()
    assert abs(agree - (0.7**2 + 0.3**2)) < 0.02
    torch.manual_seed(0)
    assert torch.equal(lean_attention(query, key, value, None, probability), first)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_a_model_in_training_keeps_no_pairs(causal: bool, autocast: bool) -> None:
    """With dropout and padding, nothing of the size of all pairs of tokens is kept for the backward pass."""
    length = 64
    decoder, ids, mask = _with_dropout(causal, 0.3, length)
    kept: list[int] = []

    def count(x: Tensor) -> Tensor:
        if x.is_floating_point():
            kept.append(x.numel())
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda x: x),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.sum().backward()
    pairs = 2 * decoder.config.num_attention_heads * length * length
    assert length * decoder.config.intermediate_size < max(kept) < pairs


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_a_model_sees_the_same_tokens(causal: bool, padded: bool) -> None:
    """Without a drop, the states and gradients are those of the model's own attention."""
    found = []
    for probability in (0.0, 1e-9):
        decoder, ids, mask = _with_dropout(causal, probability, 12)
        if not padded:
            mask = torch.ones_like(mask)
        given = decoder.get_input_embeddings()(ids).detach().requires_grad_()
        states = decoder(inputs_embeds=given, attention_mask=mask, use_cache=False).last_hidden_state[mask.bool()]
        states.square().sum().backward()
        found.append((states.detach(), given.grad))
    for before, after in zip(*found, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_in_16_bits_it_is_torchs_attention_but_for_rounding() -> None:
    """As autocast has it: queries and keys of float32, for their positions, and values of bfloat16."""
    query, key, value = _tensors(2 * GROUPS)
    attention = torch.nn.Module()
    attention.is_causal, attention.num_key_value_groups = False, 2  # type: ignore[assignment]
    found = []
    for probability in (0.0, 1e-9):
        given = [x.clone().requires_grad_() for x in (query, key, value.bfloat16())]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, _ = module._sdpa(attention, *given, None, probability)
        output.float().square().sum().backward()
        found.append((output, *(x.grad for x in given)))
    for before, after in zip(*found, strict=True):
        assert after.dtype == before.dtype
        assert (after.float() - before.float()).norm() < 2e-2 * before.float().norm()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("probability", [0.0, 0.4])
@pytest.mark.parametrize("kind", ["none", "bool", "bool of heads", "of all rows"])
def test_in_bfloat16_it_is_as_near_as_bfloat16_can_be(
    kind: str, probability: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of large scores, with much that all keys have in common, and with the same weights dropped as in float64."""
    monkeypatch.setattr(module, "_is_fast", lambda dtype: True)
    heads = 2 * GROUPS
    query, key, value = _tensors(heads)
    given = tuple(x.bfloat16() for x in (8 * query, key + 10, value))
    mask = _mask(kind, heads)
    found = []
    for dtype in (torch.float64, torch.bfloat16):
        tensors = [x.to(dtype).requires_grad_() for x in given]
        torch.manual_seed(0)
        output = lean_attention(*tensors, mask, probability, 0.3)
        assert output.dtype == dtype
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        found.append([x.double() for x in (output, *torch.autograd.grad(output, tensors, direction))])
    for exact, rounded in zip(*found, strict=True):
        assert (rounded - exact).norm() < 2e-2 * exact.norm()


def test_queries_that_see_nothing_give_nothing_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_fast", lambda dtype: True)
    tensors = [x.bfloat16().requires_grad_() for x in _tensors(GROUPS)]
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    mask[..., 0, :] = False
    output = lean_attention(*tensors, mask, 0.0)
    assert output[:, 0].abs().max() == 0 and output[:, 1:].abs().min() > 0
    gradients = torch.autograd.grad(output, tensors, torch.ones_like(output))
    assert all(x.isfinite().all() for x in gradients) and gradients[0][:, :, 0].abs().max() == 0


def test_a_backward_pass_under_autocast_is_no_less_exact() -> None:
    """As where a backward pass runs forward passes again, and goes back through them."""
    found = []
    for autocast in (False, True):
        given = [x.requires_grad_() for x in _tensors(GROUPS)]
        torch.manual_seed(0)
        output = lean_attention(*given, None, 0.4)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found.append(torch.autograd.grad(output, given, torch.ones_like(output)))
    for plain, under in zip(*found, strict=True):
        assert torch.equal(plain, under)


def _of_texts(lengths: list[list[int]], kind: str) -> tuple[Tensor, Tensor]:
    """The mask of rows of texts of these lengths, and where each begins."""
    number = torch.stack([torch.repeat_interleave(torch.tensor(row)) for row in lengths])
    seen = (number[:, :, None] == number[:, None]).unsqueeze(1)
    places = torch.arange(number.shape[1])
    if kind == "causal":
        seen &= places[:, None] >= places
    if kind == "windowed":
        seen &= (places[:, None] - places).abs() <= 2
    return seen, torch.nn.functional.pad(number.diff(dim=1) != 0, (1, 0), value=True)


@pytest.mark.parametrize("kind", ["bidirectional", "causal", "windowed"])
@pytest.mark.parametrize("lengths", [[[6, 1, 3, 2]], [[6, 1, 3, 2], [4, 4, 3, 1]]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_a_row_of_texts_only_the_pairs_within_them_are_computed(
    dtype: torch.dtype, lengths: list[list[int]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WORTH_A_GROUP", 10)
    register_attention()
    sdpa = AttentionInterface()["sdpa"]
    generator = torch.Generator().manual_seed(0)
    shape = len(lengths), 12
    query, key, value = (
        torch.randn(*shape, heads, WIDTH, generator=generator, dtype=dtype).transpose(1, 2).requires_grad_()
        for heads in (4, GROUPS, GROUPS)
    )
    layer = torch.nn.Module()
    layer.num_key_value_groups, layer.is_causal = 4 // GROUPS, False
    mask, starts = _of_texts(lengths, kind)
    expected, _ = sdpa(layer, query, key, value, mask.clone())
    pairs: list[int] = []

    def counting(own: Any) -> Any:
        def counted(*given: Any, **named: Any) -> Any:
            of_query = next(x for x in given if isinstance(x, Tensor))
            pairs.append(of_query.shape[0] * of_query.shape[2] ** 2)
            return own(*given, **named)

        return counted

    for name in ("sdpa_attention_forward", "lean_attention"):
        monkeypatch.setattr(module, name, counting(getattr(module, name)))
    keep_apart(mask, starts)
    found, _ = sdpa(layer, query, key, value, mask)
    least = sum(length**2 for row in lengths for length in row)
    assert least <= sum(pairs) < mask.numel()
    rounding = {} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(found, expected, **rounding)
    direction = torch.randn(found.shape, generator=generator, dtype=dtype)
    gradients = (torch.autograd.grad(x, (query, key, value), direction) for x in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **({} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 5e-2}))


def test_texts_of_similar_lengths_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the pairs of padding cost less than another group."""
    assert module._groups([30] * 20 + [10] * 20) == [(0, 40)]
    assert module._groups([500, 500, 300, 290]) == [(0, 2), (2, 4)]
    monkeypatch.setattr(module, "_WORTH_A_GROUP", 0)
    assert module._groups([3, 3, 2, 1]) == [(0, 2), (2, 3), (3, 4)]


def test_what_is_known_of_a_mask_goes_with_it() -> None:
    mask, starts = _of_texts([[3, 3]], "bidirectional")
    keep_apart(mask, starts)
    known = len(module._texts)
    del mask
    gc.collect()
    assert len(module._texts) == known - 1
