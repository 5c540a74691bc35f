import pytest
import torch
from tiny import make_tiny_decoder
from transformers import BertConfig, BertModel

from l2v.bidirectional import ATTENTIONS, accepts_position_ids, decoder_layers, position_ids, prove, set_attention
from l2v.errors import L2VError

LENGTH = 9


def decoder(family="llama", attention="bidirectional", attn_implementation="eager", **config_overrides):
    model = make_tiny_decoder(family, **config_overrides).base_model
    model.set_attn_implementation(attn_implementation)
    set_attention(model, attention)
    return model


def states(model, ids, mask=None):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def moved_positions(model, replaced):
    """Positions whose states move when the token at ``replaced`` becomes another, seen without the code under test."""
    ids = torch.arange(10, 10 + LENGTH)[None]
    other = ids.clone()
    other[0, replaced] = 200
    change = (states(model, other) - states(model, ids)).abs().amax(dim=-1)[0]
    return (change > 1e-5).nonzero().flatten().tolist()


def make_causal(layer):
    """Let one layer look back only, whatever mask it is given."""

    def look_back_only(module, args, kwargs):
        length, lowest = kwargs["hidden_states"].shape[1], torch.finfo(torch.float32).min
        mask = torch.full((1, 1, length, length), lowest).triu(1)
        if kwargs["attention_mask"] is not None:
            mask = torch.minimum(mask, kwargs["attention_mask"])
        return args, {**kwargs, "attention_mask": mask}

    layer.self_attn.register_forward_pre_hook(look_back_only, with_kwargs=True)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "stablelm", "nemotron", "qwen3", "opt"])
def test_a_decoder_is_made_bidirectional_and_proven(family, attn_implementation):
    model = decoder(family, "bidirectional", attn_implementation)
    proof = prove(model, "bidirectional")
    assert proof.backward_change > 1e-2 and proof.padding_change < 1e-5 and proof.causal_layers == []
    assert proof.attn_implementation == attn_implementation
    assert moved_positions(model, LENGTH - 1) == list(range(LENGTH))


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "stablelm", "nemotron", "qwen3", "opt"])
def test_a_decoder_stays_causal_and_is_proven(family, attn_implementation):
    model = decoder(family, "causal", attn_implementation)
    proof = prove(model, "causal")
    assert proof.backward_change == 0 and proof.padding_change < 1e-5 and proof.causal_layers == [0, 1]
    assert moved_positions(model, 4) == list(range(4, LENGTH))


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_switching_back_gives_the_causal_states_again(attn_implementation):
    model = decoder("qwen3", "causal", attn_implementation)
    ids = torch.arange(10, 20)[None]
    before = states(model, ids)
    set_attention(model, "bidirectional")
    assert not torch.allclose(states(model, ids), before, atol=1e-3)
    set_attention(model, "causal")
    assert torch.equal(states(model, ids), before)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_a_sliding_window_opens_to_both_sides(attn_implementation):
    layer = {"num_hidden_layers": 1, "layer_types": ["sliding_attention"], "sliding_window": 2}
    model = decoder("gemma3_text", "bidirectional", attn_implementation, **layer)
    assert moved_positions(model, 4) == [2, 3, 4, 5, 6]


def test_a_model_with_alibi_instead_of_positions_is_proven():
    assert prove(decoder("bloom"), "bidirectional").backward_change > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2", "stablelm", "nemotron", "gemma3_text"])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_a_decoder_whose_attention_was_not_set_fails_and_its_layers_are_named(family, attn_implementation):
    model = make_tiny_decoder(family, num_hidden_layers=3).base_model
    model.set_attn_implementation(attn_implementation)
    with pytest.raises(L2VError, match=rf"^{family} .*{attn_implementation}: layers 0-2 stay causal"):
        prove(model, "bidirectional")


def test_a_mask_builder_that_stays_causal_is_caught_although_the_kernels_are_not():
    model = decoder(attn_implementation="eager")
    model.config.is_causal = True
    with pytest.raises(L2VError, match="stay causal"):
        prove(model, "bidirectional")


@pytest.mark.parametrize("family", ["stablelm", "nemotron"])
def test_a_kernel_that_is_causal_where_it_gets_no_mask_is_caught_although_the_mask_is_not(family):
    model = decoder(family, attn_implementation="sdpa")
    for layer in model.layers:
        layer.self_attn.is_causal = True
    with pytest.raises(L2VError, match="stay causal"):
        prove(model, "bidirectional")


@pytest.mark.parametrize(
    ("which", "named"),
    [([0], "layer 0 stays causal"), ([2], "layer 2 stays causal"), ([1, 2], "layers 1-2 stay causal")],
)
def test_a_few_causal_layers_among_bidirectional_ones_are_named(which, named):
    model = decoder(num_hidden_layers=4)
    for index in which:
        make_causal(model.layers[index])
    with pytest.raises(L2VError, match=named):
        prove(model, "bidirectional")


def test_separate_causal_layers_are_listed_one_by_one():
    model = decoder(num_hidden_layers=4)
    make_causal(model.layers[0])
    make_causal(model.layers[3])
    with pytest.raises(L2VError, match=r"layers 0, 3 stay causal.*model.partial=true.*model.attention=causal"):
        prove(model, "bidirectional")


def test_partial_accepts_causal_layers_and_says_which():
    model = decoder(num_hidden_layers=3)
    make_causal(model.layers[1])
    assert prove(model, "bidirectional", partial=True).causal_layers == [1]


def test_partial_does_not_excuse_padding_that_leaks(monkeypatch):
    model = decoder()
    make_causal(model.layers[1])
    ignore_the_mask(model, monkeypatch)
    with pytest.raises(L2VError, match="padding"):
        prove(model, "bidirectional", partial=True)


def test_a_bidirectional_model_fails_the_causal_proof():
    with pytest.raises(L2VError, match="is not causal though attention=causal was asked for"):
        prove(decoder(attention="bidirectional"), "causal")


def ignore_the_mask(model, monkeypatch):
    original = model.forward

    def forward(input_ids, attention_mask, use_cache, position_ids):
        mask = torch.ones_like(attention_mask)
        return original(input_ids=input_ids, attention_mask=mask, use_cache=use_cache, position_ids=position_ids)

    monkeypatch.setattr(model, "forward", forward)


def test_padding_that_leaks_on_the_right_is_caught(monkeypatch):
    model = decoder()
    ignore_the_mask(model, monkeypatch)
    with pytest.raises(L2VError, match="padding on the right changes a text's states by .*at most 1e-04 is rounding"):
        prove(model, "bidirectional")


def test_padding_on_the_left_that_shifts_positions_is_caught(monkeypatch):
    model = decoder("gpt2")
    original = model.forward

    def forward(input_ids, attention_mask, use_cache, position_ids):
        return original(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(L2VError, match="padding on the left changes a text's states"):
        prove(model, "bidirectional")


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_states_that_are_not_numbers_prove_nothing(attention):
    model = decoder(attention=attention)
    model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(L2VError):
        prove(model, attention)


def test_a_model_that_breaks_without_its_causal_mask_is_told_in_one_line():
    with pytest.raises(L2VError, match="^mpt with attn_implementation=eager cannot run") as error:
        prove(decoder("mpt"), "bidirectional")
    assert "\n" not in str(error.value)


def test_an_encoder_is_bidirectional_already_and_cannot_be_made_causal():
    model = BertModel(BertConfig(vocab_size=384, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)).eval()
    set_attention(model, "bidirectional")
    assert prove(model, "bidirectional").causal_layers == []
    set_attention(model, "causal")
    with pytest.raises(L2VError, match="bert .*is not causal"):
        prove(model, "causal")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_proof_leaves_the_mode_of_the_model_alone(training, attention):
    model = decoder(attention="bidirectional").train(training)
    if attention == "bidirectional":
        prove(model, attention)
    else:
        with pytest.raises(L2VError):
            prove(model, attention)
    assert all(module.training is training for module in model.modules())
    assert not model.layers[0]._forward_pre_hooks


def test_the_proof_runs_without_dropout_even_on_a_model_in_training():
    model = decoder(attention_dropout=0.5).train()
    assert prove(model, "bidirectional").padding_change < 1e-5


def test_the_same_model_gives_the_same_proof():
    assert prove(decoder(), "bidirectional") == prove(decoder(), "bidirectional")


def test_what_has_no_layers_is_refused():
    with pytest.raises(L2VError, match="Linear has no list of layers; expected a decoder-only transformer"):
        decoder_layers(torch.nn.Linear(2, 2))


def test_positions_count_from_each_rows_first_token():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert position_ids(mask)[mask.bool()].tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize(("family", "accepts"), [("llama", True), ("gpt2", True), ("bloom", False)])
def test_position_ids_are_passed_only_where_the_decoder_takes_them(family, accepts):
    assert accepts_position_ids(decoder(family)) is accepts
