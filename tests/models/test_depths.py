"""A decoder's states at a chosen depth are those of the same decoder with fewer layers."""

import pytest
import torch
from tiny import SENTENCES, make_tiny_model
from torch import nn

from l2v.errors import L2VError
from l2v.models.adapters import Lora, trainable_parameters
from l2v.models.backbone import Backbone
from l2v.models.bidirectional import decoder_layers
from l2v.models.depths import final_norm, prove_final_norm, states_of_depths
from l2v.text.tokenization import pad, tokenize


def batch(backbone: Backbone) -> dict[str, torch.Tensor]:
    tokens = tokenize(SENTENCES, backbone.tokenizer, max_length=64, instructions=[None] * len(SENTENCES))
    return dict(pad(tokens, backbone.tokenizer.pad_token_id, "right"))


def cut(backbone: Backbone, layers: int) -> Backbone:
    """The same backbone without its later layers; it is changed in place."""
    del decoder_layers(backbone.decoder)[layers:]
    backbone.decoder.config.num_hidden_layers = layers
    return backbone


def adapted(folder: str, checkpointing: bool = False) -> Backbone:
    backbone = Backbone.load(folder, gradient_checkpointing=checkpointing)
    backbone.add_adapter(Lora(rank=4, alpha=8, dropout=0.0))
    torch.manual_seed(0)
    for parameter in trainable_parameters(backbone).values():
        nn.init.normal_(parameter, std=0.1)
    return backbone.train()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "opt", "bloom", "gpt_neox"])
def test_the_states_at_a_depth_are_those_of_the_cut_decoder(tmp_path, family: str) -> None:
    folder = str(make_tiny_model(tmp_path, family=family, num_hidden_layers=4, n_layer=4))
    backbone = Backbone.load(folder)
    prove_final_norm(backbone)
    rows = batch(backbone)
    ids, mask = rows["input_ids"], rows["attention_mask"]
    with torch.no_grad():
        first, third, whole = states_of_depths(backbone, [1, 3], ids, mask)
        torch.testing.assert_close(whole, backbone(ids, mask), rtol=0, atol=0)
        for layers, states in ((3, third), (1, first)):
            torch.testing.assert_close(states, cut(backbone, layers)(ids, mask), rtol=0, atol=0)


@pytest.mark.parametrize("cached", [False, True], ids=["passes", "grad_cache"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_gradients_at_several_depths_are_those_of_the_cut_decoders(tmp_path, checkpointing: bool, cached: bool) -> None:
    folder = str(make_tiny_model(tmp_path, num_hidden_layers=3))
    together, expected = adapted(folder, checkpointing), dict[str, torch.Tensor]()
    rows = batch(together)
    weights = torch.randn(len(SENTENCES), 3, 32)
    vectors = together.embed(**rows, layers=[1, 2], micro_batch_tokens=40, grad_cache=cached)
    assert vectors.shape == weights.shape
    (vectors * weights).sum().backward()
    for depth, layers in enumerate((1, 2, 3)):
        alone = cut(adapted(folder), layers)
        one = alone.embed(**rows)
        torch.testing.assert_close(vectors[:, depth], one, rtol=1e-5, atol=1e-5)
        (one * weights[:, depth]).sum().backward()
        for name, parameter in trainable_parameters(alone).items():
            assert parameter.grad is not None
            expected[name] = expected.get(name, 0) + parameter.grad
    found = {name: parameter.grad for name, parameter in trainable_parameters(together).items()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_a_norm_that_is_not_the_last_thing_is_told(tmp_path) -> None:
    backbone = Backbone.load(str(make_tiny_model(tmp_path)))
    final_norm(backbone.decoder).register_forward_hook(lambda module, given, output: 2 * output if own() else None)
    calls = iter([True, False])

    def own() -> bool:
        return next(calls)

    with pytest.raises(L2VError, match=r"stage\.layers: .* cannot be cut; set stage\.layers=\[\]"):
        prove_final_norm(backbone)


def test_a_decoder_without_a_final_norm_is_told() -> None:
    decoder = nn.Module()
    decoder.layers = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(L2VError, match="no norm after its last layer"):
        final_norm(decoder)
