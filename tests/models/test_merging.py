"""Weights that are loaded and merged one by one are those of a whole model in float32, bit for bit."""

from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel
from tiny import make_tiny_decoder, make_tiny_tokenizer
from torch import nn
from transformers import AutoModel

from l2v.models.adapters import Lora, trainable_parameters
from l2v.models.backbone import Backbone
from l2v.models.bidirectional import set_attention

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj"]
KINDS = {
    "lora": lambda: Lora(rank=4, alpha=8).config(),
    "rslora": lambda: peft.LoraConfig(r=4, use_rslora=True, lora_alpha=8, target_modules=["o_proj", "up_proj"]),
    "embedding": lambda: peft.LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=LINEAR),
    "pissa": lambda: peft.LoraConfig(r=4, init_lora_weights="pissa", target_modules=LINEAR),
    "norms": lambda: peft.LoraConfig(r=4, target_modules=LINEAR, modules_to_save=["norm"]),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
}
IDS = torch.arange(3, 15).view(2, 6)
MASK = torch.ones_like(IDS)
FAMILIES = ["gpt2", "gemma3_text", "gemma4_text", "qwen3_moe"]


def folder_of(path: Path, family: str = "llama", dtype: torch.dtype = torch.bfloat16, **overrides) -> Path:
    make_tiny_decoder(family, **overrides).to(dtype).save_pretrained(path)
    make_tiny_tokenizer().save_pretrained(path)
    return path


def saved_adapter(model: Path, config: peft.PeftConfig, folder: Path) -> Path:
    """An adapter that changes something."""
    backbone = Backbone.load(str(model))
    backbone.add_adapter(config)
    for parameter in trainable_parameters(backbone).values():
        nn.init.normal_(parameter, mean=0.0 if parameter.ndim > 1 else 1.0, std=0.1)
    backbone.save_adapter(folder)
    return folder


def merged_whole(model: Path, adapters: list[Path], dtype: torch.dtype) -> nn.Module:
    """All weights in float32, an adapter after the other, by transformers and PEFT; rounded at the end."""
    decoder = AutoModel.from_pretrained(model, dtype=torch.float32)
    set_attention(decoder, "bidirectional")
    for adapter in adapters:
        decoder = PeftModel.from_pretrained(decoder, str(adapter)).merge_and_unload()
    for parameter in decoder.parameters():
        parameter.data = parameter.data.to(dtype)
    return decoder.eval()


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(found, kind)()), dict(getattr(expected, kind)())
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name].dtype == value.dtype and torch.equal(ours[name], value), name


MERGES = ["lora rslora", "embedding lora", "dora", "pissa", "norms", "vera", "lora dora", "ia3"]
STORED = [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "bfloat16")]


@pytest.mark.parametrize("kinds", MERGES)
def test_merging_module_by_module_is_merging_all_in_float32(tmp_path, kinds):
    assert_merged(tmp_path, kinds, torch.bfloat16, "bfloat16")


@pytest.mark.parametrize(("stored", "dtype"), STORED)
def test_weights_are_rounded_once_whatever_their_files_hold(tmp_path, stored, dtype):
    assert_merged(tmp_path, "lora rslora", getattr(torch, stored), dtype)


def assert_merged(tmp_path, kinds, stored, dtype):
    model = folder_of(tmp_path / "model", dtype=stored)
    adapters = [saved_adapter(model, KINDS[kind](), tmp_path / f"{n}") for n, kind in enumerate(kinds.split())]
    backbone = Backbone.load(str(model), merge=adapters, dtype=dtype, attn_implementation="sdpa")
    expected = merged_whole(model, adapters, getattr(torch, dtype))
    assert_same(backbone.decoder, expected)
    with torch.no_grad():
        states = expected(input_ids=IDS, attention_mask=MASK, use_cache=False).last_hidden_state
        assert torch.equal(backbone(IDS, MASK), states)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_a_merged_decoder_can_be_trained_whole(tmp_path, kind):
    model = folder_of(tmp_path / "model")
    merged = Backbone.load(str(model), merge=[saved_adapter(model, KINDS[kind](), tmp_path / "adapter")])
    assert trainable_parameters(merged).keys() == dict(merged.decoder.named_parameters(prefix="decoder")).keys()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32"])
def test_every_family_is_loaded_and_merged_as_a_whole(tmp_path, family, dtype):
    model = folder_of(tmp_path / "model", family)
    adapter = saved_adapter(model, Lora(rank=4, dropout=0.0).config(), tmp_path / "adapter")
    wanted = getattr(torch, dtype)
    merged = Backbone.load(str(model), merge=[adapter], dtype=dtype)
    assert_same(merged.decoder, merged_whole(model, [adapter], wanted))
    assert_same(Backbone.load(str(model), dtype=dtype).decoder, AutoModel.from_pretrained(model, dtype=wanted))


@pytest.mark.parametrize("kind", ["ia3", "vera"])
def test_a_merged_adapter_of_any_kind_counts_under_autocast(tiny_model: Path, kind: str) -> None:
    """The copies of the weights in bfloat16 are not those of before."""
    config = {
        "ia3": peft.IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[]),
        "vera": peft.VeraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    }[kind]
    backbone = Backbone.load(str(tiny_model))
    ids = torch.arange(2, 20).view(2, 9)

    def states() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            return backbone.eval()(ids, torch.ones_like(ids)).float()

    plain = states()
    backbone.add_adapter(config)
    torch.manual_seed(0)
    for parameter in trainable_parameters(backbone).values():
        torch.nn.init.normal_(parameter, mean=1.0 if kind == "ia3" else 0.0, std=0.5)
    adapted = states()
    backbone.merge_adapter()
    merged = states()
    assert (adapted - plain).norm() > 0.1 * plain.norm()
    assert (merged - adapted).norm() < 0.2 * (adapted - plain).norm()
