"""Dropout masks drop what they should, at random and again."""

import pytest
import torch
from devices import DEVICES

from l2v.kernels import dropout
from l2v.kernels.dropout import draw_keys, mask_in_place, mask_of, masked


def _mask(shape: tuple[int, ...], probability: float, dtype: torch.dtype) -> torch.Tensor:
    size = torch.Size(shape)
    return mask_of(size, probability, draw_keys(size.numel()), dtype)


def _stays(shape: tuple[int, ...], probability: float) -> torch.Tensor:
    """1 for numbers that stay, 0 for others."""
    mask = _mask(shape, probability, torch.bfloat16)
    assert mask.shape == shape and mask.dtype == torch.int16 and set(mask.unique().tolist()) == {0, -1}
    return -mask.float()


@pytest.mark.parametrize("probability", [0.05, 0.3])
@pytest.mark.parametrize("at_once", [2**21, 1000])
def test_dropout_masks(probability: float, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "_AT_ONCE", at_once)
    torch.manual_seed(0)
    mask = _stays((601, 1001), probability)
    dropped = 1 - mask
    spread = (probability * (1 - probability)) ** 0.5
    assert abs(dropped.mean().item() - probability) < 5 * spread / mask.numel() ** 0.5
    for dimension in (0, 1):  # no row and no column stands out
        means = dropped.mean(dim=dimension)
        assert (means - probability).abs().max() < 6 * spread / mask.shape[dimension] ** 0.5
    assert abs(dropout.dropout_scale(probability) - 1 / (1 - probability)) < 1e-4
    torch.manual_seed(0)
    assert torch.equal(_stays((601, 1001), probability), mask)


def test_dropout_masks_are_independent() -> None:
    """Of 60 masks, and of the numbers of one at any distance up to 64: no correlation beyond chance."""
    torch.manual_seed(0)
    masks = torch.stack([_stays((40_001,), 0.2) for _ in range(60)]).double()
    z = (masks - 0.8) / 0.4
    correlations = (z @ z.T / z.shape[1])[~torch.eye(len(z), dtype=torch.bool)]
    assert correlations.abs().max() < 5 / z.shape[1] ** 0.5
    assert abs(correlations.mean()) < 5 / (1770 * z.shape[1]) ** 0.5
    for distance in (*range(1, 9), 64):
        assert abs((z[:, distance:] * z[:, :-distance]).mean()) < 5 / z.numel() ** 0.5


def test_masks_take_no_memory() -> None:
    """They are parts of one pool, for numbers of one size and one probability."""
    masks = [_mask((300, 400), 0.2, torch.float32) for _ in range(2)]
    assert masks[0].data_ptr() != masks[1].data_ptr()
    assert masks[0].untyped_storage().data_ptr() == masks[1].untyped_storage().data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_masked_numbers(dtype: torch.dtype) -> None:
    x = torch.randn(31, 17, dtype=dtype)
    x[0, :] = torch.inf
    mask = _mask(x.shape, 0.3, dtype)
    left = masked(x, mask)
    assert left.dtype == dtype and torch.equal(left, torch.where(mask != 0, x, 0))
    assert masked(x, None) is x
    turned = x.T.contiguous().T
    assert torch.equal(mask_in_place(turned, mask), left) and torch.equal(turned, left)
    assert mask_in_place(x, None) is x


def test_masks_of_any_size_of_numbers_drop_the_same() -> None:
    kept = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        kept.append(_mask((31, 17), 0.3, dtype) != 0)
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])


@pytest.mark.parametrize("device", DEVICES)
def test_a_mask_of_torchs_dropout_gives_what_it_gave(device: str) -> None:
    x = torch.randn(31, 17, device=device)
    dropped, mask = torch.native_dropout(x, 0.3, True)
    assert mask.dtype == torch.bool
    torch.testing.assert_close(masked(x, mask, 1 / 0.7), dropped)
