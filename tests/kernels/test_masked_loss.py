"""The masked-token loss in parts is that of all scores at once."""

import itertools
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import make_tiny_model
from torch import nn

from l2v.kernels import masked_loss as fused_loss
from l2v.kernels.masked_loss import Scores, by_liger, summed_cross_entropy
from l2v.losses.masked_tokens import masked_token_loss
from l2v.models.adapters import Lora
from l2v.models.backbone import Backbone
from l2v.text.masking import IGNORED

FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tied": False}),
    ("gemma2", {"final_logit_softcapping": 0.5}),
    ("granite", {"logits_scaling": 3.0}),
    ("cohere", {"logit_scale": 0.25}),
]


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens of the tiny vocabulary."""
    monkeypatch.setitem(fused_loss.SCORES_AT_ONCE, "cpu", 3 * 384)


def batch(rows: int = 4, length: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.randint(2, 380, (rows, length))
    labels = torch.where(torch.rand(rows, length) < 0.4, ids, IGNORED)
    return ids, torch.ones_like(ids), labels


def gradients(backbone: Backbone, loss: torch.Tensor) -> list[torch.Tensor]:
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(loss, trained))


def naive(states: torch.Tensor, targets: torch.Tensor, scores: Scores) -> torch.Tensor:
    return F.cross_entropy(scores(states).float(), targets, reduction="sum")


@pytest.mark.parametrize(("family", "overrides"), FAMILIES)
def test_loss_and_gradients_are_those_of_the_plain_form(
    tmp_path: Path, few_at_once: None, family: str, overrides: dict[str, Any]
) -> None:
    backbone = Backbone.load(str(make_tiny_model(tmp_path, family=family, **overrides)), with_head=True)
    backbone.add_adapter(Lora(rank=4))
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    rows = batch()
    plain = masked_token_loss(*backbone.predict_masked(*rows))
    total, count = backbone.masked_loss(*rows), (rows[2][:, 1:] != IGNORED).sum()
    assert count > 9
    torch.testing.assert_close(total / count, plain, rtol=1e-6, atol=1e-6)
    of_parts, expected = gradients(backbone, total / count), gradients(backbone, plain)
    assert max(gradient.abs().max() for gradient in expected) > 1e-3
    torch.testing.assert_close(of_parts, expected, rtol=1e-5, atol=1e-6)
    assert backbone.head.weight.grad is None


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 12, 30, 48])
def test_micro_batches_make_the_same_step(tiny_model: Path, tokens: int, autocast: bool) -> None:
    """Of one row, of two, and of all, which is the plain form; as a part of something larger."""
    backbone = Backbone.load(str(tiny_model), with_head=True)
    backbone.add_adapter(Lora(rank=4, dropout=0.0))
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    ids, mask, labels = batch()
    with torch.autocast("cpu", enabled=autocast):
        whole = 3 * backbone.masked_loss(ids, mask, labels)
        parts = 3 * backbone.masked_loss(ids, mask, labels, micro_batch_tokens=tokens)
    torch.testing.assert_close(parts, whole, rtol=1e-2 if autocast else 1e-6, atol=0)
    expected, found = (torch.cat([g.flatten() for g in gradients(backbone, loss)]) for loss in (whole, parts))
    assert (found - expected).norm() < (3e-2 if autocast else 1e-5) * expected.norm()


def test_micro_batches_keep_the_activations_of_one(tiny_model: Path) -> None:
    backbone = Backbone.load(str(tiny_model), with_head=True)
    backbone.add_adapter(Lora(rank=4))
    rows = batch(rows=32)

    def most_bytes(tokens: int | None) -> int:
        alive: list[weakref.ref[torch.Tensor]] = []
        most = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal most
            copy = tensor.clone()
            alive.append(weakref.ref(copy))
            most = max(most, sum(kept.nbytes for one in alive if (kept := one()) is not None))
            return copy

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            backbone.masked_loss(*rows, micro_batch_tokens=tokens).backward()
        return most

    # weights, which are counted too, do not shrink
    assert most_bytes(4 * rows[0].shape[1]) < most_bytes(None) / 3


@pytest.mark.parametrize("tokens", [1, 3, 7])
def test_a_head_with_a_bias(few_at_once: None, tokens: int) -> None:
    head = nn.Linear(16, 384).requires_grad_(False)
    scores = Scores(head, vocabulary=384, divisor=2.0, cap=5.0)
    states, targets = torch.randn(tokens, 16, requires_grad=True), torch.randint(384, (tokens,))
    loss, expected = summed_cross_entropy(states, targets, scores), naive(states, targets, scores)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, states), torch.autograd.grad(3 * expected, states))


def test_in_bfloat16_by_autocast(few_at_once: None) -> None:
    scores = Scores(nn.Linear(64, 384, bias=False).requires_grad_(False), vocabulary=384)
    states, targets = torch.randn(20, 64, requires_grad=True), torch.randint(384, (20,))
    with torch.autocast("cpu", torch.bfloat16):
        loss, expected = summed_cross_entropy(states, targets, scores), naive(states, targets, scores)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    (gradient,), (wanted,) = torch.autograd.grad(loss, states), torch.autograd.grad(expected, states)
    assert gradient.dtype == torch.float32
    assert (gradient - wanted).norm() < 1e-2 * wanted.norm()


def test_no_more_scores_at_once_than_is_allowed(few_at_once: None) -> None:
    head, sizes = nn.Linear(8, 384).requires_grad_(False), []
    head.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    summed_cross_entropy(torch.randn(8, 8), torch.randint(384, (8,)), Scores(head, vocabulary=384))
    assert sizes == [3, 3, 2]


def test_nothing_hidden_is_a_loss_of_zero_with_gradients_of_zero(few_at_once: None) -> None:
    states = torch.randn(0, 8, requires_grad=True)
    scores = Scores(nn.Linear(8, 384).requires_grad_(False), vocabulary=384)
    loss = summed_cross_entropy(states, torch.zeros(0, dtype=torch.long), scores)
    loss.backward()
    assert loss.item() == 0 and states.grad.shape == (0, 8)


def stand_in(states, weight, targets, bias, *, reduction, softcap, chunk_mem_const):
    """What Liger's kernel computes, by its arguments."""
    assert reduction == "sum" and chunk_mem_const >= 1 and states.dtype == weight.dtype
    scores = F.linear(states, weight, bias)
    return F.cross_entropy((scores if softcap is None else softcap * torch.tanh(scores / softcap)).float(), targets,
                           reduction="sum")  # fmt: skip


def agree(kernel: Any, *settings: dict[str, Any]) -> None:
    """Loss and gradient by a kernel of Liger's form are those of the plain form."""
    for setting, bias in itertools.product(settings, (False, True)):
        head = nn.Linear(64, 384, bias=bias).requires_grad_(False)
        nn.init.normal_(head.weight, std=0.3)
        scores = Scores(head, vocabulary=384, **setting)
        states, targets = torch.randn(20, 64, requires_grad=True), torch.randint(384, (20,))
        loss, expected = by_liger(kernel, states, targets, scores), naive(states, targets, scores)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        found, wanted = torch.autograd.grad(loss / 7, states), torch.autograd.grad(expected / 7, states)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


SCALES: list[dict[str, Any]] = [{}, {"divisor": 3.0}, {"factor": 0.25}]


def test_liger_is_given_scales_caps_and_biases() -> None:
    agree(stand_in, *SCALES, {"cap": 0.5})


def test_liger_gets_one_dtype_under_autocast() -> None:
    scores = Scores(nn.Linear(64, 384).requires_grad_(False), vocabulary=384)
    states, targets = torch.randn(20, 64, requires_grad=True), torch.randint(384, (20,))
    with torch.autocast("cpu", torch.bfloat16):
        loss, expected = by_liger(stand_in, states, targets, scores), naive(states, targets, scores)
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)
    assert torch.autograd.grad(loss, states)[0].dtype == torch.float32


def test_liger_itself_in_tritons_interpreter() -> None:
    """Its kernels on a CPU, in a process of their own: Triton reads the variable once. Caps cannot be interpreted."""
    for package in ("triton", "liger_kernel"):
        pytest.importorskip(package, reason="the extra liger is not installed")
    call = (
        "from test_fused_loss import SCALES, agree; from l2v.kernels.masked_loss import liger; agree(liger(), *SCALES)"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    subprocess.run(
        [sys.executable, "-c", call], check=True, env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    )


def test_a_head_whose_weight_is_elsewhere_is_called_as_a_module() -> None:
    whole, empty = nn.Linear(8, 384), nn.Linear(8, 384)
    empty.weight.data = torch.empty(0)  # as DeepSpeed's ZeRO-3 leaves it
    assert fused_loss._is_whole(whole) and not fused_loss._is_whole(empty)
    assert not fused_loss._is_whole(nn.Sequential(whole))
