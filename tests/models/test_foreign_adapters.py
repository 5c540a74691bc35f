"""Adapters that other trainers write load with the vectors of PEFT's own merge, or one line says what cannot."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from tiny import SENTENCES, make_tiny_model
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from l2v.encoders.encoder import Encoder
from l2v.errors import L2VError
from l2v.models.adapters import Lora
from l2v.models.backbone import Backbone
from l2v.models.bidirectional import set_attention

SOME = ["q_proj", "v_proj", "up_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "some layers": {"target_modules": SOME},
    "all-linear": {"target_modules": "all-linear"},
    "a pattern": {"target_modules": r"model\.layers\.\d+\.self_attn\.(q|v)_proj"},
    "ranks": {"target_modules": SOME, "rank_pattern": {"model.layers.0.self_attn.q_proj": 2}},
    "rslora": {"target_modules": SOME, "use_rslora": True},
    "dora": {"target_modules": SOME, "use_dora": True},
    "embeddings": {"target_modules": [*SOME, "embed_tokens"]},
    "whole embeddings": {"target_modules": SOME, "modules_to_save": ["embed_tokens"]},
    "head": {"target_modules": [*SOME, "lm_head"]},
    "whole head": {"target_modules": SOME, "modules_to_save": ["lm_head"]},
}


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of tied embeddings
        yield


def saved(model: Any, folder: Path, **config: Any) -> Any:
    """A model with an adapter that is not zero, and the adapter in a folder."""
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **config))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder)
    return adapted


def vectors_of_peft(base: Path, folder: Path, whole: bool, merge: bool = True) -> np.ndarray:
    """The mean of the states of the model into which PEFT merges the adapter, attending both ways."""
    kind = AutoModelForCausalLM if whole else AutoModel
    adapted = peft.PeftModel.from_pretrained(kind.from_pretrained(base), folder)
    model = adapted.merge_and_unload() if merge else adapted.get_base_model()
    inner = getattr(model, model.base_model_prefix) if whole else model
    set_attention(inner, "bidirectional")
    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        states = [inner(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in SENTENCES]
    return torch.stack([one.mean(dim=0) for one in states]).numpy()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_a_model_with_its_head(kind: str, tied: bool, tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", tied=tied)
    model = AutoModelForCausalLM.from_pretrained(base)
    saved(model, tmp_path / "adapter", task_type="CAUSAL_LM", **KINDS[kind])
    # merged into a head that is the embedding, the adapter would change vectors that did not depend on it in training
    wanted = vectors_of_peft(base, tmp_path / "adapter", whole=True, merge=not (tied and kind == "head"))
    found = Encoder.from_pretrained(tmp_path / "adapter", device="cpu").encode(SENTENCES)
    assert np.abs(found - wanted).max() < 1e-5
    assert np.abs(Encoder.from_pretrained(base, device="cpu").encode(SENTENCES) - wanted).max() > 1e-2


def test_families_name_the_decoder_in_other_ways(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", family="gpt2")
    saved(AutoModelForCausalLM.from_pretrained(base), tmp_path / "a", task_type="CAUSAL_LM", target_modules=["c_attn"])
    wanted = vectors_of_peft(base, tmp_path / "a", whole=True)
    assert np.abs(Encoder.from_pretrained(tmp_path / "a", device="cpu").encode(SENTENCES) - wanted).max() < 1e-5


def test_embeddings_of_an_adapter_on_the_decoder(tiny_model: Path, tmp_path: Path) -> None:
    saved(AutoModel.from_pretrained(tiny_model), tmp_path, target_modules=[*SOME, "embed_tokens"])
    wanted = vectors_of_peft(tiny_model, tmp_path, whole=False)
    assert np.abs(Encoder.from_pretrained(tmp_path, device="cpu").encode(SENTENCES) - wanted).max() < 1e-5


def test_a_tied_head_keeps_the_embeddings_that_it_had(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"target_modules": [*SOME, "embed_tokens"], "task_type": "CAUSAL_LM"}
    saved(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "adapter", **settings)
    backbone = Backbone.load(str(tiny_model), with_head=True, merge=[tmp_path / "adapter"])
    plain = Backbone.load(str(tiny_model), with_head=True)
    assert backbone.head is not None and plain.head is not None
    assert torch.equal(backbone.head.weight, plain.head.weight)  # type: ignore[arg-type]
    assert not torch.equal(backbone.decoder.get_input_embeddings().weight, plain.decoder.get_input_embeddings().weight)


def test_several_adapters_in_one_folder(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"target_modules": SOME, "task_type": "CAUSAL_LM"}
    adapted = saved(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "two", **settings)
    adapted.add_adapter("other", peft.LoraConfig(r=2, **settings))
    torch.nn.init.normal_(next(p for n, p in adapted.named_parameters() if "lora_B.other" in n), std=0.5)
    adapted.save_pretrained(tmp_path / "two")
    first = Encoder.from_pretrained(tmp_path / "two", device="cpu").encode(SENTENCES)
    assert np.abs(first - vectors_of_peft(tiny_model, tmp_path / "two", whole=True)).max() < 1e-5
    wanted = vectors_of_peft(tiny_model, tmp_path / "two" / "other", whole=True)
    adapted.save_pretrained(tmp_path / "one", selected_adapters=["other"])
    for folder in (tmp_path / "two" / "other", tmp_path / "one" / "other", tmp_path / "one"):
        assert np.abs(Encoder.from_pretrained(folder, device="cpu").encode(SENTENCES) - wanted).max() < 1e-5
    adapted.add_adapter("third", peft.LoraConfig(r=2, **settings))
    adapted.save_pretrained(tmp_path / "many", selected_adapters=["other", "third"])
    with pytest.raises(L2VError, match=r"a folder with several adapters \(other, third\); name one: .*many/other"):
        Encoder.from_pretrained(tmp_path / "many", device="cpu")


def test_what_cannot_be_loaded_is_told_in_one_line(tiny_model: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.resize_token_embeddings(400)
    saved(model, tmp_path / "grown", task_type="CAUSAL_LM", target_modules=[*SOME, "embed_tokens"])
    with pytest.raises(L2VError, match="does not fit the base model: .*embed_tokens") as error:
        Encoder.from_pretrained(tmp_path / "grown", device="cpu")
    assert "\n" not in str(error.value)
    saved(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        tmp_path / "adapter",
        task_type="CAUSAL_LM",
        target_modules=[*SOME, "embed_tokens"],
    )
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    base = next(key for key in weights if key.endswith("base_layer.weight"))
    save_file({**weights, base: weights[base] + 1}, tmp_path / "adapter" / "adapter_model.safetensors")
    wanted = vectors_of_peft(tiny_model, tmp_path / "adapter", whole=True)
    found = Encoder.from_pretrained(tmp_path / "adapter", device="cpu").encode(SENTENCES)
    assert np.abs(found - wanted).max() < 1e-5
    with pytest.raises(L2VError, match=r"embeddings of its own, which cannot go on; merge it: adapter.init=new"):
        Backbone.load(str(tiny_model)).load_adapter(tmp_path / "adapter", training=Lora())
