import pytest
import torch
from tiny import make_tiny_decoder, make_tiny_model
from transformers import BertConfig, BertModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from l2v.errors import L2VError
from l2v.models.backbone import Backbone
from l2v.models.bidirectional import ATTENTIONS, accepts_position_ids, decoder_layers, set_attention
from l2v.models.packing import packed_positions, packed_states, prove_packing
from l2v.models.proof import prove
from l2v.text.tokenization import position_ids

IMPLEMENTATIONS = ["eager", "sdpa", "flex_attention"]
LENGTH = 9


def decoder(family="llama", attention="bidirectional", attn_implementation="eager", **config_overrides):
    model = make_tiny_decoder(family, **config_overrides).base_model
    model.set_attn_implementation(attn_implementation)
    set_attention(model, attention)
    return model


def uncompiled():
    """flex_attention compiles for half a minute on a CPU; uncompiled it does the same arithmetic."""
    return torch.compiler.set_stance("force_eager")


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


WINDOWED = [("mistral", {}), ("gemma3_text", {"layer_types": ["sliding_attention"]})]


@pytest.mark.parametrize("attn_implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("family", "settings"), WINDOWED)
def test_a_sliding_window_sees_as_many_tokens_on_both_sides_and_none_beyond(family, settings, attn_implementation):
    """transformers' two-sided windows hold ``sliding_window`` tokens on each side, its causal ones one fewer."""
    settings = {"num_hidden_layers": 1, "sliding_window": 2, **settings}
    with uncompiled():
        model = decoder(family, "bidirectional", attn_implementation, **settings)
        assert moved_positions(model, 4) == [2, 3, 4, 5, 6]
        set_attention(model, "causal")
        assert moved_positions(model, 4) == [4, 5]


@pytest.mark.parametrize("attn_implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("family", "settings"), WINDOWED)
def test_a_text_longer_than_the_window_ignores_padding(family, settings, attn_implementation):
    text, filler = torch.arange(10, 40)[None], torch.arange(50, 57)[None]
    ids = torch.cat([text, filler], 1), torch.cat([filler, text], 1)
    with uncompiled():
        model = decoder(family, "bidirectional", attn_implementation, num_hidden_layers=1, sliding_window=3, **settings)
        alone = states(model, text)
        right = states(model, ids[0], (ids[0] < 50).long())[:, :30]
        left = states(model, ids[1], (ids[1] < 50).long())[:, 7:]
    torch.testing.assert_close(right, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(left, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_eager_sdpa_and_flex_give_the_same_states(family, attention):
    ids = torch.arange(10, 40).reshape(2, 15)
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    settings = {"sliding_window": 4} if family != "llama" else {}
    with uncompiled():
        eager, *others = (
            states(decoder(family, attention, name, **settings), ids, mask)[mask.bool()] for name in IMPLEMENTATIONS
        )
    for other in others:
        torch.testing.assert_close(other, eager, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "stablelm", "qwen3_moe"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_an_early_state_has_a_gradient_from_later_ones_in_every_layer(family, attention, attn_implementation):
    model = decoder(family, attention, attn_implementation)
    inputs, outputs = [], []
    for layer in decoder_layers(model):
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: inputs.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        layer.register_forward_hook(lambda _, args, output: outputs.append(output))
    model(input_ids=torch.arange(10, 20)[None], use_cache=False)
    assert len(inputs) == 2
    for before, after in zip(inputs, outputs, strict=True):
        state = (after[0] if isinstance(after, tuple) else after)[0, 0]
        (gradient,) = torch.autograd.grad(state.square().sum(), before, retain_graph=True)
        assert gradient[0].any(dim=-1).tolist() == [True] + [attention == "bidirectional"] * 9


def give_sdpa_another_scale(monkeypatch):
    """An implementation that leaves out, without an error, what a family adds to attention."""
    original = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(*tensors, scaling, **rest):
        return original(*tensors, scaling=2 * scaling, **rest)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", attend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_an_implementation_that_leaves_something_out_is_caught(monkeypatch, attention, dtype):
    give_sdpa_another_scale(monkeypatch)
    model = decoder(attention=attention, attn_implementation="sdpa").to(dtype)
    with pytest.raises(L2VError, match="sdpa: its states differ from those of eager .*model.attn_implementation=eager"):
        prove(model, attention)
    assert model.config._attn_implementation == "sdpa"


def test_auto_passes_over_an_implementation_that_differs_from_eager(monkeypatch, tiny_model):
    assert Backbone.load(str(tiny_model)).proof.attn_implementation == "sdpa"
    give_sdpa_another_scale(monkeypatch)
    assert Backbone.load(str(tiny_model)).proof.attn_implementation == "eager"
    with pytest.raises(L2VError, match="differ from those of eager"):
        Backbone.load(str(tiny_model), attn_implementation="sdpa")


def test_an_implementation_that_transformers_would_silently_replace_is_refused(tmp_path):
    folder = str(make_tiny_model(tmp_path, family="bloom"))
    with pytest.raises(L2VError, match="model.attn_implementation=sdpa: bloom has eager only"):
        Backbone.load(folder, attn_implementation="sdpa")
    assert Backbone.load(folder).proof.attn_implementation == "eager"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_rounding_of_deep_models_in_16_bits_does_not_add_up(attention, dtype):
    model = decoder("qwen3", attention, "sdpa", num_hidden_layers=24, initializer_range=0.5).to(dtype)
    proof = prove(model, attention)
    assert proof.causal_layers == ([] if attention == "bidirectional" else list(range(24)))


def test_products_in_tf32_are_rounding(monkeypatch):
    """As ``torch.set_float32_matmul_precision("high")`` makes them on a GPU, each shape in a way of its own."""
    model = decoder()
    generator = torch.Generator().manual_seed(0)

    def rounded(module, given, y):
        return y * (1 + 2**-11 * torch.randn(y.shape, generator=generator))

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(rounded)
    with pytest.raises(L2VError, match="at most 1e-04 is rounding"):
        prove(model, "bidirectional")
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert prove(model, "bidirectional").padding_change > 1e-4
    finally:
        torch.set_float32_matmul_precision(precision)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert prove(model, "bidirectional").backward_change > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_padding_that_leaks_is_caught_in_16_bits(monkeypatch, dtype):
    model = decoder().to(dtype)
    ignore_the_mask(model, monkeypatch)
    with pytest.raises(L2VError, match="padding on the right"):
        prove(model, "bidirectional")


TEXTS = torch.tensor([[1] * 5 + [2] * 8 + [3] + [0] * 2, [0] + [1] * 6 + [0] * 2 + [2] * 7])


@pytest.mark.parametrize("attn_implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "phi"])
def test_texts_packed_into_rows_have_the_states_that_they_have_alone(family, attention, attn_implementation):
    settings = {"sliding_window": 3} if family in ("mistral", "gemma3_text") else {}
    ids = torch.arange(10, 10 + TEXTS.numel()).reshape(TEXTS.shape)
    with uncompiled(), torch.no_grad():
        model = decoder(family, attention, attn_implementation, **settings)
        packed = packed_states(model, ids, TEXTS)
        assert prove_packing(model) < 1e-4
        for row in range(2):
            for number in range(1, int(TEXTS[row].max()) + 1):
                here = TEXTS[row] == number
                alone = states(model, ids[row, here][None])[0]
                torch.testing.assert_close(packed[row, here], alone, rtol=1e-5, atol=1e-5)


def test_positions_start_anew_with_each_text():
    assert packed_positions(torch.tensor([[1, 1, 1, 2, 2, 0, 0, 3]])).tolist() == [[0, 1, 2, 0, 1, 0, 1, 0]]


@pytest.mark.parametrize("family", ["bloom", "mpt"])
def test_a_decoder_without_positions_packs_nothing(family):
    with pytest.raises(
        L2VError, match=f"{family}: texts cannot be packed into one row, since it takes no position_ids"
    ):
        prove_packing(decoder(family, "causal"))


def test_layers_that_carry_a_state_pack_nothing():
    model = decoder("lfm2", layer_types=["conv", "full_attention"])
    with pytest.raises(L2VError, match="lfm2: texts cannot be packed into one row through layers of conv"):
        prove_packing(model)


def test_texts_that_see_each_other_in_a_row_are_caught(monkeypatch):
    monkeypatch.setattr("l2v.models.packing.packed_mask", lambda config, segments, dtype: segments.sign())
    with pytest.raises(L2VError, match="packed into one row; it changes their states by .*at most 1e-04 is rounding"):
        prove_packing(decoder())


def test_a_backbone_proves_packing_once_before_it_packs(tiny_model, tmp_path, monkeypatch):
    backbone, proofs = Backbone.load(str(tiny_model)), []
    monkeypatch.setattr("l2v.models.backbone.prove_packing", proofs.append)
    ids = torch.arange(10, 10 + TEXTS.numel()).reshape(TEXTS.shape)
    with torch.no_grad():
        packed = [backbone(ids, TEXTS.sign(), segment_ids=TEXTS) for _ in range(2)]
    assert torch.equal(*packed) and proofs == [backbone.decoder]
    monkeypatch.undo()
    bloom = Backbone.load(str(make_tiny_model(tmp_path, family="bloom")))
    with pytest.raises(L2VError, match="bloom: texts cannot be packed"):
        bloom(ids, TEXTS.sign(), segment_ids=TEXTS)


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
