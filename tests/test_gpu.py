"""What only a GPU can show: ``pytest -m gpu``."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from devices import ON_A_GPU
from launch import ROOT, Tiny
from tiny import SENTENCES, make_tiny_model

from l2v import Encoder
from l2v.kernels import masked_loss as fused_loss
from l2v.kernels.memory import give_back_what_is_free
from l2v.models.backbone import Backbone
from l2v.models.examination import examine
from l2v.models.families import Family
from l2v.models.packing import prove_packing
from l2v.runs.run import Run

pytestmark = ON_A_GPU


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


@pytest.mark.parametrize("stage", ["mntp", "simcse", "supervised"])
@pytest.mark.parametrize("trainer", ["gpu", "ddp", "fsdp", "deepspeed_zero2", "deepspeed_zero3"])
def test_a_stage_trains_under_every_trainer_on_all_gpus(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, trainer: str, stage: str
) -> None:
    if trainer.startswith("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    tiny = Tiny(tmp_path, tiny_model, monkeypatch)
    settings = ["trainer.precision=bf16-mixed", "model.dtype=bfloat16", "stage.max_steps=6", "name=run"]
    command = [sys.executable, ROOT / "train.py", *tiny.overrides(stage, f"trainer={trainer}", *settings)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("L2V_RUN")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "run"
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_by_liger_is_that_of_torch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("liger_kernel")
    head = torch.nn.Linear(256, 32_000, bias=False, dtype=dtype, device="cuda").requires_grad_(False)
    states = torch.randn(700, 256, dtype=dtype, device="cuda", requires_grad=True)
    targets = torch.randint(32_000, (700,), device="cuda")
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for settings in ({}, {"cap": 30.0}, {"divisor": 8.0}):
        scores = fused_loss.Scores(head, vocabulary=32_000, **settings)
        results = []
        for kernel in (fused_loss.liger(), None):
            with monkeypatch.context() as patch:
                patch.setattr(fused_loss, "liger", lambda kernel=kernel: kernel)
                loss = fused_loss.summed_cross_entropy(states, targets, scores) / 700
            results.append((loss, torch.autograd.grad(loss, states)[0]))
        (fused, of_fused), (plain, of_plain) = results
        assert (fused - plain).abs() < tolerance * plain
        assert (of_fused - of_plain).float().norm() < tolerance * of_plain.float().norm()


def test_scores_of_all_hidden_tokens_are_never_held_at_once() -> None:
    vocabulary, tokens = 64_000, 8_000
    head = torch.nn.Linear(64, vocabulary, bias=False, device="cuda").requires_grad_(False)
    states = torch.randn(tokens, 64, device="cuda", requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,), device="cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fused_loss.summed_cross_entropy(states, targets, fused_loss.Scores(head, vocabulary)).backward()
    # plain: 2 GB of scores, three times
    assert torch.cuda.max_memory_allocated() - before < 5 * 4 * fused_loss.SCORES_AT_ONCE["cuda"] < 3e9


def test_what_a_model_has_left_on_the_gpu_is_given_back(tiny_model: Path) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    Encoder.from_pretrained(tiny_model, device="cuda").encode(SENTENCES)
    assert torch.cuda.memory_reserved() > before
    give_back_what_is_free()
    assert torch.cuda.memory_reserved() == before
