"""Dropout masks drop what they should, at random and again."""

import pytest
import torch
from devices import DEVICES

from l2v.kernels.dropout import dropout_mask, masked


@pytest.mark.parametrize("probability", [0.05, 0.3])
def test_dropout_masks(probability: float) -> None:
    torch.manual_seed(0)
    mask, scale = dropout_mask(torch.Size([601, 1001]), probability)
    assert mask.shape == (601, 1001) and mask.dtype == torch.uint8 and mask.max() == 1
    dropped = 1 - mask.float()
    spread = (probability * (1 - probability)) ** 0.5
    assert abs(dropped.mean().item() - probability) < 5 * spread / mask.numel() ** 0.5
    for dimension in (0, 1):  # no row and no column stands out
        means = dropped.mean(dim=dimension)
        assert (means - probability).abs().max() < 6 * spread / mask.shape[dimension] ** 0.5
    assert abs(scale - 1 / (1 - probability)) < 1e-4
    torch.manual_seed(0)
    assert torch.equal(dropout_mask(torch.Size([601, 1001]), probability)[0], mask)


def test_dropout_masks_are_independent() -> None:
    """Of 60 masks, and of the numbers of one at any distance up to 64: no correlation beyond chance."""
    torch.manual_seed(0)
    masks = torch.stack([dropout_mask(torch.Size([40_001]), 0.2)[0] for _ in range(60)]).double()
    z = (masks - 0.8) / 0.4
    correlations = (z @ z.T / z.shape[1])[~torch.eye(len(z), dtype=torch.bool)]
    assert correlations.abs().max() < 5 / z.shape[1] ** 0.5
    assert abs(correlations.mean()) < 5 / (1770 * z.shape[1]) ** 0.5
    for distance in (*range(1, 9), 64):
        assert abs((z[:, distance:] * z[:, :-distance]).mean()) < 5 / z.numel() ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_of_either_type_leave_the_same(dtype: torch.dtype) -> None:
    x = torch.randn(31, 17, dtype=dtype)
    mask = dropout_mask(x.shape, 0.3)[0]
    left = masked(x, mask)
    assert left.dtype == dtype and torch.equal(left, torch.where(mask == 1, x, 0))
    assert torch.equal(masked(x, mask.view(torch.bool)), left)
    assert masked(x, None) is x


@pytest.mark.parametrize("device", DEVICES)
def test_a_mask_of_torchs_dropout_gives_what_it_gave(device: str) -> None:
    x = torch.randn(31, 17, device=device)
    dropped, mask = torch.native_dropout(x, 0.3, True)
    assert mask.dtype == torch.bool
    torch.testing.assert_close(masked(x, mask, 1 / 0.7), dropped)
