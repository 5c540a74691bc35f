"""What only a GPU can show: ``pytest -m gpu``."""

from pathlib import Path

import numpy as np
import pytest
import torch
from launch import Tiny
from tiny import SENTENCES

from l2v import Encoder
from l2v.runs import Run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_vectors_are_those_of_the_cpu(tiny_model: Path) -> None:
    gpu = Encoder.from_pretrained(tiny_model, device="cuda").encode(SENTENCES)
    cpu = Encoder.from_pretrained(tiny_model, device="cpu").encode(SENTENCES)
    assert np.abs(gpu - cpu).max() < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_agree_with_float32(tiny_model: Path, dtype: str) -> None:
    half = Encoder.from_pretrained(tiny_model, device="cuda", dtype=dtype).encode(SENTENCES)
    whole = Encoder.from_pretrained(tiny_model, device="cpu").encode(SENTENCES)
    cosines = (half * whole).sum(1) / np.linalg.norm(half, axis=1) / np.linalg.norm(whole, axis=1)
    assert cosines.min() > 0.999


@pytest.mark.parametrize("stage", ["mntp", "simcse"])
def test_a_stage_trains_in_bfloat16_with_gradient_checkpointing(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    tiny = Tiny(tmp_path, tiny_model, monkeypatch)
    settings = ["trainer=gpu", "trainer.precision=bf16-mixed", "model.dtype=bfloat16", "stage.max_steps=6"]
    run = tiny.train("run", stage, *settings, "model.gradient_checkpointing=true")
    assert Run(run).is_finished
    assert np.isfinite(Encoder.from_pretrained(run).encode(SENTENCES)).all()
