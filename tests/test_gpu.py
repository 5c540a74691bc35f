"""What only a GPU can show: ``pytest -m gpu``."""

from pathlib import Path

import numpy as np
import pytest
import torch
from launch import Tiny
from tiny import SENTENCES, make_tiny_model

from l2v import Encoder
from l2v.backbone import Backbone
from l2v.bidirectional import prove_packing
from l2v.families import Family, examine
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


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gemma2"])
def test_flash_attention_is_proven_and_gives_the_vectors_of_eager_attention(
    tmp_path: Path, family: str, attention: str
) -> None:
    pytest.importorskip("flash_attn")
    folder = str(make_tiny_model(tmp_path, family=family))
    settings = {"dtype": "bfloat16", "device": "cuda", "attention": attention}
    flash, eager = (
        Backbone.load(folder, attn_implementation=name, **settings) for name in ("flash_attention_2", "eager")
    )
    assert Backbone.load(folder, **settings).proof.attn_implementation == "flash_attention_2"
    ids = torch.arange(10, 70, device="cuda").reshape(3, 20)
    mask = torch.ones_like(ids)
    mask[0, 5:], mask[1, 12:] = 0, 0
    vectors = [torch.nn.functional.normalize(b.embed(ids, mask, mask), dim=1) for b in (flash, eager)]
    assert (vectors[0] * vectors[1]).sum(dim=1).min() > 0.999
    assert prove_packing(flash.decoder) < 6e-2


def test_flash_attention_has_rows_in_the_table_of_families() -> None:
    pytest.importorskip("flash_attn")
    row = examine(Family("llama"), "flash_attention_2")
    assert {row.bidirectional, row.padding, row.batch, row.packing, row.checkpointing} == {"yes"}


def test_flex_attention_is_proven_when_compiled(tmp_path: Path) -> None:
    folder = str(make_tiny_model(tmp_path, hidden_size=64, head_dim=16))
    flex, sdpa = (Backbone.load(folder, attn_implementation=i, device="cuda") for i in ("flex_attention", "sdpa"))
    ids = torch.arange(10, 50, device="cuda").reshape(2, 20)
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    assert (flex(ids, mask) - sdpa(ids, mask))[mask.bool()].abs().max() < 1e-3
