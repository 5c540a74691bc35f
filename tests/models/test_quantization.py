"""Weights in 4 bits. bitsandbytes computes on a CPU too, if slowly, so all but the check for a GPU is tested here."""

import sys

import pytest
import torch
from tiny import SENTENCES, make_tiny_decoder
from torch import nn

from l2v import Encoder
from l2v.errors import L2VError
from l2v.models.adapters import Lora, trainable_parameters
from l2v.models.backbone import Backbone
from l2v.models.quantization import quantize

bitsandbytes = pytest.importorskip("bitsandbytes")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def quantized(**config) -> nn.Module:
    decoder = make_tiny_decoder(**WIDE, **config).base_model
    quantize(decoder, "nf4")
    return decoder.to("cpu")


def states(decoder: nn.Module) -> torch.Tensor:
    return decoder(torch.arange(2, 18)[None]).last_hidden_state


def test_every_linear_layer_is_in_4_bits_and_the_states_stay_near() -> None:
    decoder, whole = quantized(), make_tiny_decoder(**WIDE).base_model
    four = [module for module in decoder.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(four) == 2 * 7 and all(module.weight.dtype == torch.uint8 for module in four)
    assert isinstance(decoder.embed_tokens, nn.Embedding) and decoder.embed_tokens.weight.dtype == torch.float32
    change = (states(decoder) - states(whole)).norm() / states(whole).norm()
    assert 1e-3 < change < 0.5  # four bits are coarse on weights this large; far from unrelated states (1.4)


def test_biases_are_kept() -> None:
    decoder, whole = quantized(attention_bias=True), make_tiny_decoder(**WIDE, attention_bias=True).base_model
    for mine, other in zip(decoder.layers, whole.layers, strict=True):
        torch.testing.assert_close(mine.self_attn.q_proj.bias, other.self_attn.q_proj.bias)


def test_an_adapter_in_float32_trains_on_it(tiny_model) -> None:
    backbone = Backbone.load(str(tiny_model))
    backbone.decoder = quantized()
    backbone.add_adapter(Lora(rank=2))
    trainable = trainable_parameters(backbone)
    assert len(trainable) == 2 * 7 * 2 and all(p.dtype == torch.float32 for p in trainable.values())
    ids = torch.arange(2, 18)[None]
    backbone(ids, torch.ones_like(ids)).square().sum().backward()
    assert all(p.grad is not None for p in trainable.values())
    assert any(p.grad.abs().max() > 0 for p in trainable.values())


def test_it_cannot_be_saved(tiny_model, tmp_path) -> None:
    encoder = Encoder.from_pretrained(tiny_model, device="cpu")
    encoder.backbone.decoder = quantized()
    with pytest.raises(L2VError, match="an encoder with quantization=nf4 cannot be saved"):
        encoder.save(tmp_path)


def test_a_decoder_without_linear_layers_is_refused() -> None:
    with pytest.raises(L2VError, match="model.quantization=nf4: the decoder has no linear layers"):
        quantize(make_tiny_decoder("gpt2").base_model, "nf4")


def test_without_a_gpu_it_is_refused_in_one_line_before_loading(tmp_path) -> None:
    with pytest.raises(L2VError, match="model.quantization=nf4 needs a CUDA GPU") as error:
        Backbone.load("someone/model-that-is-not-there", quantization="nf4", device="cpu")
    assert "\n" not in str(error.value)


def test_without_bitsandbytes_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(L2VError, match=r"bitsandbytes is not installed; `pip install 'l2v\[qlora\]'`"):
        quantize(make_tiny_decoder().base_model, "nf4")


def test_an_encoder_says_the_same(tiny_model) -> None:
    with pytest.raises(L2VError, match="needs a CUDA GPU"):
        Encoder.from_pretrained(tiny_model, quantization="nf4", device="cpu").encode(SENTENCES)
