"""Adapters of any kind of PEFT that can be merged: trained, saved, loaded, merged."""

import json
from pathlib import Path

import peft
import pytest
import torch

from l2v.errors import L2VError
from l2v.models.adapters import Lora, trainable_parameters
from l2v.models.backbone import Backbone

ALL = ["q_proj", "k_proj", "v_proj", "o_proj"]
KINDS = {
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=ALL),
    "rslora": lambda: peft.LoraConfig(r=4, use_rslora=True, lora_alpha=8, target_modules="all-linear"),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
}
IDS = torch.arange(12).view(2, 6)
MASK = torch.ones_like(IDS)


@pytest.fixture(params=KINDS)
def trained(request: pytest.FixtureRequest, tiny_model: Path) -> Backbone:
    """A backbone with an adapter that a few steps have moved."""
    backbone = Backbone.load(str(tiny_model))
    backbone.add_adapter(KINDS[request.param]())
    weights = trainable_parameters(backbone)
    assert 0 < sum(p.numel() for p in weights.values()) < sum(p.numel() for p in backbone.parameters()) / 2
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-2)
    before = backbone(IDS, MASK).detach()
    for _ in range(3):
        backbone(IDS, MASK).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.allclose(backbone(IDS, MASK), before, atol=1e-3)
    return backbone


@torch.no_grad()
def test_a_saved_adapter_comes_back_and_merges_to_the_same_states(trained, tiny_model, tmp_path):
    states = trained(IDS, MASK)
    trained.save_adapter(tmp_path / "adapter")
    again = Backbone.load(str(tiny_model))
    again.load_adapter(tmp_path / "adapter", training=Lora())
    torch.testing.assert_close(again(IDS, MASK), states, atol=1e-5, rtol=1e-5)
    assert trainable_parameters(again).keys() == trainable_parameters(trained).keys()
    again.merge_adapter()
    assert not again.has_adapter
    torch.testing.assert_close(again(IDS, MASK), states, atol=1e-4, rtol=1e-4)
    merged = Backbone.load(str(tiny_model), merge=[tmp_path / "adapter"])
    torch.testing.assert_close(merged(IDS, MASK), states, atol=1e-4, rtol=1e-4)


def test_prompts_that_are_learned_are_no_part_of_the_weights(tiny_model):
    backbone = Backbone.load(str(tiny_model))
    with pytest.raises(L2VError, match="adapter.peft: adapters of the kind PROMPT_TUNING are not part of the weights"):
        backbone.add_adapter(peft.PromptTuningConfig(num_virtual_tokens=3, task_type="FEATURE_EXTRACTION"))


def test_modules_that_the_model_has_not_are_told(tiny_model):
    backbone = Backbone.load(str(tiny_model))
    with pytest.raises(L2VError, match="adapter.peft.target_modules=.*'query'"):
        backbone.add_adapter(peft.IA3Config(target_modules=["query"], feedforward_modules=[]))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config imports the module that it names"),
        (
            {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, "task_type": "FEATURE_EXTRACTION"}
            | {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "a", "tokenizer_name_or_path": "theirs"},
            "adapters of the kind PROMPT_TUNING are not part of the weights",
        ),
    ],
)
@pytest.mark.parametrize("trainable", [True, False])
def test_an_adapter_that_brings_more_than_weights_is_refused(changes, told, trainable, tiny_model, tmp_path):
    backbone = Backbone.load(str(tiny_model))
    backbone.add_adapter(peft.LoraConfig(r=2, target_modules=ALL))
    backbone.save_adapter(tmp_path / "theirs")
    file = tmp_path / "theirs" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(L2VError, match=told):
        Backbone.load(str(tiny_model)).load_adapter(tmp_path / "theirs", training=Lora() if trainable else None)
