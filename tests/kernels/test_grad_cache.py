"""GradCache: the gradients of the whole batch, in the memory of one micro-batch."""

import sys

import pytest
import torch
from launch import ROOT
from tiny import SENTENCES

from l2v.kernels.random_state import kept_random_state, set_random_state
from l2v.losses.info_nce import info_nce
from l2v.models.adapters import Lora, trainable_parameters
from l2v.models.backbone import Backbone
from l2v.text.tokenization import pad, tokenize

sys.path.insert(0, str(ROOT / "benchmarks"))  # the processes that it starts import it too
import grad_cache as benchmark

SIZE = {"hidden": 64, "layers": 1, "rows": 8, "length": 48}


def gradients(backbone, *, autocast=False, **settings):
    texts = [*SENTENCES, "cat", *SENTENCES[::-1], "dog"]
    rows = pad(tokenize(texts, backbone.tokenizer, max_length=64), backbone.tokenizer.pad_token_id)
    torch.manual_seed(7)
    with torch.autocast("cpu", enabled=autocast):
        vectors = backbone.embed(**rows, **settings)
    info_nce(vectors[:7], vectors[7:], 0.05).backward()
    found = torch.cat([parameter.grad.flatten() for parameter in trainable_parameters(backbone).values()])
    backbone.zero_grad()
    return found, torch.rand(1)


def backbone_with(tiny_model, *, dropout, adapter=True, checkpointing=False):
    backbone = Backbone.load(str(tiny_model), attention_dropout=dropout, gradient_checkpointing=checkpointing)
    if adapter:
        backbone.add_adapter(Lora(rank=4, dropout=dropout))
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return backbone.train()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "all weights"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_gradients_are_those_of_the_same_batch_without_it(tiny_model, adapter, autocast, checkpointing):
    backbone = backbone_with(tiny_model, dropout=0.2, adapter=adapter, checkpointing=checkpointing)
    settings = {"micro_batch_tokens": 64, "autocast": autocast}
    plain, after_plain = gradients(backbone, **settings)
    cached, after_cached = gradients(backbone, **settings, grad_cache=True)
    # in bfloat16 the plain form adds up the gradients of its micro-batches in bfloat16
    assert (plain - cached).norm() < (1e-2 if autocast else 1e-5) * plain.norm()
    assert torch.equal(after_plain, after_cached)  # what follows draws the same random numbers


def test_gradients_are_those_of_one_pass_over_the_batch(tiny_model):
    backbone = backbone_with(tiny_model, dropout=0.0)
    whole, _ = gradients(backbone)
    cached, _ = gradients(backbone, micro_batch_tokens=64, grad_cache=True)
    assert (whole - cached).norm() < 1e-5 * whole.norm()


def test_dropout_differs_between_micro_batches_and_steps(tiny_model):
    backbone = backbone_with(tiny_model, dropout=0.2)
    with_dropout, _ = gradients(backbone, micro_batch_tokens=64, grad_cache=True)
    assert (with_dropout - gradients(backbone.eval(), micro_batch_tokens=64, grad_cache=True)[0]).norm() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_sixteen_micro_batches_need_the_memory_of_one(processes, checkpointing):
    def measured(micro_batches, cached):
        return benchmark.measure(benchmark.Case(processes, checkpointing, micro_batches, cached), **SIZE)

    one, many, plain = measured(1, cached=True), measured(16, cached=True), measured(16, cached=False)
    assert many.memory < 1.2 * one.memory
    assert plain.memory > 1.5 * many.memory  # or the measure sees nothing
    assert (plain.gradient - many.gradient).norm() < 1e-5 * plain.gradient.norm()
    if processes > 1:
        assert many.syncs == plain.syncs == 1


@pytest.mark.parametrize(("kind", "of_the_device"), [("cuda", ("cuda",)), ("xpu", ("xpu",)), ("mps", ())])
def test_random_numbers_of_every_device_come_again(monkeypatch, kind, of_the_device):
    class Module:
        state, asked = torch.tensor([1]), []

        def get_rng_state(self, *device):
            self.asked.append(tuple(d.type for d in device))
            return self.state

        def set_rng_state(self, state, *device):
            self.asked.append(tuple(d.type for d in device))
            self.state = state

    module = Module()
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    with kept_random_state(device := torch.device(kind)):
        set_random_state(device, (torch.get_rng_state(), torch.tensor([2])))
        assert module.state.item() == 2
    assert module.state.item() == 1 and set(module.asked) == {of_the_device}
