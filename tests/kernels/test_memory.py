"""Pages of mapped files are given back, and no others."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from l2v.kernels.memory import release_pages

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")


def test_only_the_pages_of_a_mapped_tensor_alone_are_given_back(tmp_path):
    """What was written over in memory is read from the file again, but for the ends, whose pages hold others too."""
    weights = {name: torch.arange(5000.0) + number for number, name in enumerate("abc")}
    save_file(weights, tmp_path / "weights.safetensors")
    with safe_open(tmp_path / "weights.safetensors", framework="pt") as opened:
        mapped = {name: opened.get_tensor(name) for name in weights}
    for tensor in mapped.values():
        tensor.neg_()
    release_pages(mapped["b"])
    assert torch.equal(mapped["a"], -weights["a"]) and torch.equal(mapped["c"], -weights["c"])
    again = mapped["b"] == weights["b"]
    assert again[1024:-1024].all() and torch.equal(mapped["b"][~again], -weights["b"][~again])


def test_other_memory_is_left_as_it_is():
    tensor = torch.arange(1_000_000)
    release_pages(tensor)
    assert torch.equal(tensor, torch.arange(1_000_000))
    release_pages(torch.empty(10, device="meta"))
