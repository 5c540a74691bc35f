import inspect

import jaxtyping
import pytest
import torch

from l2v.pooling import POOLINGS, pool

# One text of four tokens after one token of instruction, worked out by hand: states (1, 10), (2, 20), (4, 40), (9, 90).
STATES = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [9.0, 90.0]])
JUNK = torch.tensor([[-77.0, 555.0]])
EXPECTED = {
    "mean": [5.0, 50.0],  # (2 + 4 + 9) / 3
    "weighted_mean": [37 / 6, 370 / 6],  # (1*2 + 2*4 + 3*9) / (1 + 2 + 3)
    "last_token": [9.0, 90.0],
    "bos": [1.0, 10.0],  # of the whole prompt, instruction included
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_equals_the_numbers_worked_out_by_hand(pooling, side):
    parts = [STATES, JUNK, JUNK] if side == "right" else [JUNK, JUNK, STATES]
    real, text = ([1, 1, 1, 1], [0, 1, 1, 1])
    padding = [0, 0]
    attention_mask = torch.tensor([real + padding if side == "right" else padding + real])
    pool_mask = torch.tensor([text + padding if side == "right" else padding + text])
    vector = pool(torch.cat(parts)[None], pool_mask, attention_mask, pooling)
    torch.testing.assert_close(vector, torch.tensor([EXPECTED[pooling]]))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_each_row_is_pooled_on_its_own(pooling):
    hidden = torch.randn(3, 5, 8)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
    rows = zip(hidden.split(1), mask.split(1), strict=True)
    alone = torch.cat([pool(states, tokens, tokens, pooling) for states, tokens in rows])
    torch.testing.assert_close(pool(hidden, mask, mask, pooling), alone)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_single_token_is_its_own_pool(pooling):
    hidden = torch.randn(1, 4, 8)
    mask = torch.tensor([[0, 0, 1, 0]])
    torch.testing.assert_close(pool(hidden, mask, mask, pooling), hidden[:, 2])


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean"])
def test_sums_run_in_float32(pooling):
    hidden = torch.full((1, 2000, 1), 3.0, dtype=torch.bfloat16)  # bfloat16 could not count beyond 256
    mask = torch.ones(1, 2000, dtype=torch.long)
    vector = pool(hidden, mask, mask, pooling)
    assert vector.dtype == torch.float32
    torch.testing.assert_close(vector, torch.tensor([[3.0]]))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_gradient_reaches_pooled_tokens_only(pooling):
    hidden = torch.randn(1, 5, 3, requires_grad=True)
    pool(hidden, torch.tensor([[0, 1, 1, 1, 0]]), torch.tensor([[1, 1, 1, 1, 0]]), pooling).sum().backward()
    reached = {"mean": [1, 2, 3], "weighted_mean": [1, 2, 3], "last_token": [3], "bos": [0]}[pooling]
    assert hidden.grad.abs().sum(dim=-1).squeeze().nonzero().flatten().tolist() == reached


def test_an_unknown_pooling_is_refused():
    unchecked = inspect.unwrap(pool)  # the type checker of the tests would refuse it first
    with pytest.raises(ValueError, match="one of mean, weighted_mean, last_token, bos, not 'max'"):
        unchecked(STATES[None], torch.ones(1, 4), torch.ones(1, 4), "max")


def test_shapes_that_do_not_belong_together_are_refused_while_tests_run():
    mask = torch.ones(2, 4, dtype=torch.long)
    with pytest.raises(jaxtyping.TypeCheckError):
        pool(torch.randn(2, 5, 8), mask, mask)
