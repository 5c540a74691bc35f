"""Devices to run a test on: a CPU, and a GPU where there is one (``pytest -m gpu``)."""

import pytest
import torch

ON_A_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_A_GPU)]
