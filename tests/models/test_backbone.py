import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import SENTENCES, make_tiny_decoder, make_tiny_model, make_tiny_tokenizer
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, BertModel, LlamaModel, T5Config, T5Model

from l2v.errors import L2VError
from l2v.kernels import linear
from l2v.losses.info_nce import info_nce
from l2v.models.adapters import Lora, trainable_parameters
from l2v.models.backbone import Backbone
from l2v.models.bidirectional import decoder_layers
from l2v.pooling import POOLINGS
from l2v.text.masking import IGNORED
from l2v.text.tokenization import Tokens, pad, position_ids, tokenize

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def batch(backbone, texts=SENTENCES, side="right", instruction=None):
    tokens = tokenize(texts, backbone.tokenizer, max_length=64, instructions=[instruction] * len(texts))
    return dict(pad(tokens, backbone.tokenizer.pad_token_id, side))


def states(backbone):
    rows = batch(backbone)
    with torch.no_grad():
        return backbone(rows["input_ids"], rows["attention_mask"])[rows["attention_mask"].bool()]


def with_adapter(source, lora=None):
    """A backbone with an adapter that changes something: LoRA's B is zero at first."""
    backbone = Backbone.load(str(source))
    backbone.add_adapter(lora or Lora(rank=4, alpha=8))
    for parameter in trainable_parameters(backbone).values():
        torch.nn.init.normal_(parameter, std=0.1)
    return backbone.eval()


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    """An adapter's folder, and the states of the backbone that it was saved from."""
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    torch.manual_seed(0)
    backbone = with_adapter(tiny_model)
    backbone.save_adapter(folder)
    return folder, states(backbone)


def changed_adapter(adapter, folder, change):
    shutil.copytree(adapter[0], folder)
    weights = load_file(folder / ADAPTER_WEIGHTS)
    change(weights)
    save_file(weights, folder / ADAPTER_WEIGHTS)
    return folder


@pytest.mark.parametrize("place", ["loading", "proof"])
def test_a_shortage_of_memory_is_no_fault_of_the_model(tiny_model, monkeypatch, place):
    """Another implementation of attention, which an error of the model advises, would need as much."""

    def short(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    owner, name = (AutoModel, "from_pretrained") if place == "loading" else (LlamaModel, "forward")
    monkeypatch.setattr(owner, name, short)
    with pytest.raises(torch.OutOfMemoryError, match="20.00 MiB"):
        Backbone.load(str(tiny_model))


def test_a_folder_is_loaded_as_a_bidirectional_decoder_in_evaluation_mode(tiny_model):
    backbone = Backbone.load(str(tiny_model))
    assert backbone.attention == backbone.proof.attention == "bidirectional"
    assert backbone.hidden_size == 32 and backbone.head is None and not backbone.has_adapter
    assert not any(module.training for module in backbone.decoder.modules())
    assert backbone.tokenizer.padding_side == "right"
    assert backbone.tokenizer.pad_token_id == backbone.tokenizer.eos_token_id


def test_causal_states_are_those_of_transformers(tiny_model):
    backbone = Backbone.load(str(tiny_model), attention="causal")
    rows = batch(backbone)
    reference = AutoModel.from_pretrained(tiny_model).eval()
    with torch.no_grad():
        expected = reference(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).last_hidden_state
    torch.testing.assert_close(states(backbone), expected[rows["attention_mask"].bool()])


def test_bidirectional_states_are_those_of_full_attention_written_out(tiny_model):
    """One text without padding, through transformers' own layers with no mask and no causal kernel."""
    backbone = Backbone.load(str(tiny_model), attn_implementation="eager")
    ids = torch.tensor([backbone.tokenizer(SENTENCES[0]).input_ids])
    model = AutoModel.from_pretrained(tiny_model, attn_implementation="eager").eval()
    with torch.no_grad():
        hidden = model.embed_tokens(ids)
        rotary = model.rotary_emb(hidden, torch.arange(ids.shape[1])[None])
        for layer in model.layers:
            hidden = layer(hidden, attention_mask=None, position_embeddings=rotary)
        expected = model.norm(hidden)
        torch.testing.assert_close(backbone(ids, torch.ones_like(ids)), expected)


def test_eager_and_sdpa_agree(tiny_model):
    eager, sdpa = (Backbone.load(str(tiny_model), attn_implementation=name) for name in ("eager", "sdpa"))
    assert (eager.proof.attn_implementation, sdpa.proof.attn_implementation) == ("eager", "sdpa")
    torch.testing.assert_close(states(eager), states(sdpa), rtol=1e-5, atol=1e-5)


def test_auto_falls_back_to_what_the_family_supports(tmp_path):
    assert Backbone.load(str(make_tiny_model(tmp_path, family="gemma2"))).proof.attn_implementation == "eager"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_come_in_the_type_asked_for(tiny_model, dtype):
    backbone = Backbone.load(str(tiny_model), dtype=dtype, with_head=True)
    assert {parameter.dtype for parameter in backbone.parameters()} == {getattr(torch, dtype)}
    rows = batch(backbone)
    assert backbone.embed(**rows).dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_states_of_a_text_do_not_depend_on_its_batch(tmp_path, family, side):
    backbone = Backbone.load(str(make_tiny_model(tmp_path, family=family)))
    rows = batch(backbone, side=side)
    together = backbone.embed(**rows)
    alone = torch.cat([backbone.embed(**batch(backbone, [text])) for text in SENTENCES])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 30, 64, 10_000])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_micro_batches_give_the_same_vectors(tiny_model, side, pooling, budget):
    backbone = Backbone.load(str(tiny_model))
    rows = batch(backbone, [*SENTENCES, "cat", "", "dog " * 30], side=side, instruction="Find")
    whole = backbone.embed(**rows, pooling=pooling)
    parts = backbone.embed(**rows, pooling=pooling, micro_batch_tokens=budget)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    rows.pop("position_ids", None)  # which many decoders do without
    parts = backbone.embed(**rows, pooling=pooling, micro_batch_tokens=budget)
    torch.testing.assert_close(parts, backbone.embed(**rows, pooling=pooling), rtol=1e-5, atol=1e-5)


def rows_of_passes(backbone, rows, **settings):
    """The shapes of the ids that the decoder is given."""
    backbone.embed(**rows, micro_batch_tokens=1)  # texts in one row are tried out first
    shapes = []

    def keep(_, args, kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))

    hook = backbone.decoder.register_forward_pre_hook(keep, with_kwargs=True)
    backbone.embed(**rows, **settings)
    hook.remove()
    return shapes


@pytest.mark.parametrize("attention", ["eager", "sdpa of transformers"])
@pytest.mark.parametrize("budget", [50, 200])
def test_micro_batches_stay_within_their_budget(tiny_model, budget, attention, monkeypatch):
    """With padding, by attention that would compute all pairs of a row."""
    monkeypatch.setattr("l2v.models.backbone.is_registered", lambda: False)
    backbone = Backbone.load(str(tiny_model), attn_implementation=attention.partition(" ")[0])
    rows = batch(backbone, SENTENCES + ["cat"] * 20)
    shapes = rows_of_passes(backbone, rows, micro_batch_tokens=budget)
    assert sum(count for count, _ in shapes) == len(SENTENCES) + 20
    assert all(count * length <= budget or count == 1 for count, length in shapes)
    assert sum(count * length for count, length in shapes) < rows["input_ids"].numel()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("budget", [8, 50, 10_000])
def test_the_texts_of_a_pass_are_one_row_without_padding_on_a_cpu(tiny_model, budget, side):
    backbone = Backbone.load(str(tiny_model))
    rows = batch(backbone, SENTENCES + ["cat"] * 20, side=side)
    shapes = rows_of_passes(backbone, rows, micro_batch_tokens=budget)
    lengths = rows["attention_mask"].sum(dim=1)
    assert sum(count * length for count, length in shapes) == lengths.sum()
    assert all(count * length <= max(budget, lengths.max()) for count, length in shapes)
    if budget == 10_000:
        assert shapes == [(1, lengths.sum())]


def test_the_texts_of_a_row_are_kept_apart_in_training_too(tiny_model):
    """With dropout in attention and adapter: a text's gradient comes from its own tokens."""
    backbone = Backbone.load(str(tiny_model), attention_dropout=0.5)
    backbone.add_adapter(Lora(rank=4, alpha=8, dropout=0.5))
    rows = batch(backbone.train())
    embedded = []

    def keep(_, args, output):
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = backbone.decoder.get_input_embeddings().register_forward_hook(keep)
    vectors = backbone.embed(**rows, micro_batch_tokens=10_000)
    hook.remove()
    states = embedded[-1]
    assert states.shape[:2] == (1, rows["attention_mask"].sum())
    lengths = rows["attention_mask"].sum(dim=1)
    order = lengths.argsort(descending=True)
    ends = lengths[order].cumsum(0)
    for place, row in enumerate(order):
        (gradient,) = torch.autograd.grad(vectors[row].sum(), states, retain_graph=True)
        reached = gradient[0].abs().sum(dim=-1) > 0
        own = torch.zeros_like(reached)
        own[ends[place] - lengths[row] : ends[place]] = True
        assert torch.equal(reached, own)


@pytest.mark.parametrize("side", ["right", "left"])
def test_micro_batches_give_the_same_gradients(tiny_model, side):
    gradients = []
    for budget in (None, 64):
        torch.manual_seed(0)
        backbone = with_adapter(tiny_model)
        vectors = backbone.embed(**batch(backbone, side=side), micro_batch_tokens=budget)
        info_nce(vectors[:3], vectors[3:], 0.05).backward()
        gradients.append([parameter.grad for parameter in trainable_parameters(backbone).values()])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [True, "selective"])
@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "adapter"])
def test_gradient_checkpointing_changes_no_gradient(tiny_model, checkpointing, adapter, autocast):
    """With dropout in the attention and in the adapter: what is computed again drops what was dropped before."""
    gradients = []
    for setting in (False, checkpointing):
        backbone = Backbone.load(str(tiny_model), gradient_checkpointing=setting, attention_dropout=0.1)
        if adapter:
            backbone = adapted(backbone)
        torch.manual_seed(3)
        with torch.autocast("cpu", enabled=autocast):
            vectors = backbone.train().embed(**batch(backbone))
        (vectors * torch.randn(vectors.shape)).sum().backward()
        gradients.append([parameter.grad for parameter in trainable_parameters(backbone).values()])
        assert all(layer.gradient_checkpointing == bool(setting) for layer in decoder_layers(backbone.decoder))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=0, atol=0)


def adapted(backbone):
    torch.manual_seed(0)
    backbone.add_adapter(Lora(rank=4, dropout=0.2))
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return backbone


def test_selective_checkpointing_multiplies_once(tiny_model, monkeypatch):
    """The backward pass does not repeat the two products of each of the 14 LoRA layers."""
    made = []
    plain = linear.product
    monkeypatch.setattr(linear, "product", lambda x, weight: made.append(tuple(weight.shape)) or plain(x, weight))
    counts, kept = {}, {}
    for checkpointing in (False, True, "selective"):
        backbone = adapted(Backbone.load(str(tiny_model), gradient_checkpointing=checkpointing)).train()
        weights = {parameter.data_ptr() for parameter in backbone.parameters()}
        stored = {}

        def keep(tensor, weights=weights, stored=stored):
            if tensor.data_ptr() not in weights:
                stored[tensor.data_ptr()] = tensor
            return tensor

        made.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            vectors = backbone.embed(**batch(backbone))
        kept[checkpointing] = sum(tensor.nbytes for tensor in stored.values())
        vectors.sum().backward()
        counts[checkpointing] = len(made)
    assert counts[True] - counts["selective"] == 2 * 14
    assert kept["selective"] == kept[True] < kept[False] / 4


def test_selective_checkpointing_sees_that_a_product_was_written_over(tiny_model):
    """A model may change a linear layer's output in place."""

    def gradient(checkpointing):
        backbone = adapted(Backbone.load(str(tiny_model), gradient_checkpointing=checkpointing)).train()
        for layer in decoder_layers(backbone.decoder):
            layer.mlp.down_proj.register_forward_hook(lambda module, args, output: output.mul_(1.5))
        torch.manual_seed(3)
        vectors = backbone.embed(**batch(backbone))
        (vectors * torch.randn(vectors.shape)).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in trainable_parameters(backbone).values()])

    torch.testing.assert_close(gradient("selective"), gradient(False), rtol=0, atol=0)


_MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("llama", {"tied": False}),
        ("gpt2", {}),
        ("granite", {"logits_scaling": 3.0, "embedding_multiplier": 2.0}),
        ("gemma2", {"final_logit_softcapping": 0.5}),
        ("gemma3_text", {}),
        ("cohere", {"logit_scale": 0.25}),
        ("hyperclovax", {"logits_scaling": 0.125}),
        ("falcon_h1", {**_MAMBA, "lm_head_multiplier": 0.0195}),
        ("qwen3", {"tied": False}),
    ],
)
def test_logits_of_the_causal_model_are_those_of_transformers(tmp_path, family, overrides):
    folder = make_tiny_model(tmp_path, family=family, **overrides)
    backbone = Backbone.load(str(folder), attention="causal", with_head=True)
    rows = batch(backbone)
    reference = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = backbone.logits(backbone(rows["input_ids"], rows["attention_mask"]))
        expected = reference(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    real = rows["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], rtol=1e-5, atol=1e-5)


def test_scores_that_a_model_makes_otherwise_are_refused(tmp_path, monkeypatch):
    folder = make_tiny_model(tmp_path, family="granite", logits_scaling=3.0)
    monkeypatch.setattr("l2v.kernels.masked_loss._SCALING_MULTIPLIES", ("granite",))
    with pytest.raises(L2VError, match="makes other scores of its token states than l2v knows to make"):
        Backbone.load(str(folder), with_head=True)
    assert Backbone.load(str(folder)).head is None


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_frozen_and_tied_only_where_the_model_ties_it(tmp_path, tied):
    backbone = Backbone.load(str(make_tiny_model(tmp_path, tied=tied)), with_head=True)
    backbone.add_adapter(Lora(rank=2))
    assert not backbone.head.weight.requires_grad
    assert (backbone.head.weight is backbone.decoder.get_input_embeddings().weight) is tied


def test_logits_need_a_head(tiny_model):
    with pytest.raises(RuntimeError, match="without its output head"):
        Backbone.load(str(tiny_model)).logits(torch.zeros(1, 32))


def test_masked_tokens_are_predicted_from_the_state_before_them(tiny_model):
    backbone = Backbone.load(str(tiny_model), with_head=True)
    rows = batch(backbone)
    labels = torch.full_like(rows["input_ids"], IGNORED)
    labels[0, 3], labels[0, 4], labels[2, 1] = 50, 60, 70
    with torch.no_grad():
        logits, targets = backbone.predict_masked(rows["input_ids"], rows["attention_mask"], labels)
        hidden = backbone(rows["input_ids"], rows["attention_mask"])
        expected = backbone.logits(torch.stack([hidden[0, 2], hidden[0, 3], hidden[2, 0]]))
    assert targets.tolist() == [50, 60, 70]
    torch.testing.assert_close(logits, expected)


def test_a_new_adapter_changes_nothing_at_first_and_is_all_that_trains(tiny_model):
    backbone = Backbone.load(str(tiny_model))
    before = states(backbone)
    backbone.add_adapter(Lora(rank=4, target_modules=["q_proj", "v_proj"]))
    assert torch.equal(states(backbone), before)
    trainable = trainable_parameters(backbone)
    assert len(trainable) == 2 * 2 * 2 and all("lora_" in name for name in trainable)


def test_all_linear_adapts_every_linear_layer(tiny_model):
    backbone = Backbone.load(str(tiny_model))
    backbone.add_adapter(Lora(rank=4))
    adapted = {name.split(".")[-4] for name in trainable_parameters(backbone) if "lora_A" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("setting", [{"rank": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_lora_settings_out_of_range_are_refused(setting):
    with pytest.raises(L2VError, match=f"adapter.lora.{next(iter(setting))} must be"):
        Lora(**setting)


def test_modules_that_the_model_has_not_are_refused(tiny_model):
    with pytest.raises(L2VError, match=r"adapter.lora.target_modules=\['query'\]: .*query"):
        Backbone.load(str(tiny_model)).add_adapter(Lora(target_modules=["query"]))


def test_experts_that_take_no_dropout_are_told_with_the_override(tmp_path):
    backbone = Backbone.load(str(make_tiny_model(tmp_path, family="mixtral", num_local_experts=4)))
    with pytest.raises(L2VError, match=r"adapter.lora.dropout=0.05: the experts of this model take none; set it to 0"):
        backbone.add_adapter(Lora())
    backbone.add_adapter(Lora(dropout=0.0))
    assert any("experts" in name for name in trainable_parameters(backbone))


def test_a_saved_adapter_gives_the_same_states(adapter, tiny_model):
    folder, expected = adapter
    backbone = Backbone.load(str(tiny_model))
    assert not torch.allclose(states(backbone), expected, atol=1e-2)
    backbone.load_adapter(folder)
    assert torch.equal(states(backbone.eval()), expected)


def test_a_saved_adapter_is_read_by_peft(adapter, tiny_model):
    folder, expected = adapter
    backbone = Backbone.load(str(tiny_model))
    backbone.decoder = PeftModel.from_pretrained(backbone.decoder, str(folder)).eval()
    torch.testing.assert_close(states(backbone), expected)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_model)


@pytest.mark.parametrize("training", [True, False])
def test_an_adapter_takes_the_mode_of_its_decoder(adapter, tiny_model, training):
    for put_on in (lambda backbone: backbone.load_adapter(adapter[0]), lambda backbone: backbone.add_adapter(Lora())):
        backbone = Backbone.load(str(tiny_model))
        backbone.decoder.train(training)
        put_on(backbone)
        assert all(module.training is training for module in backbone.decoder.modules())


@pytest.mark.parametrize("trainable", [True, False])
def test_a_loaded_adapter_trains_only_when_asked_to(adapter, tiny_model, trainable):
    backbone = Backbone.load(str(tiny_model))
    backbone.load_adapter(adapter[0], training=Lora(4) if trainable else None)
    assert len(trainable_parameters(backbone)) == (28 if trainable else 0)  # 2 layers, 7 linear layers, A and B


def test_a_merged_adapter_gives_the_same_states(adapter, tiny_model):
    folder, expected = adapter
    backbone = Backbone.load(str(tiny_model))
    backbone.load_adapter(folder)
    backbone.merge_adapter()
    assert not backbone.has_adapter and not any("lora" in name for name in backbone.state_dict())
    torch.testing.assert_close(states(backbone), expected, rtol=1e-5, atol=1e-5)


def test_adapters_are_merged_while_loading_in_order(adapter, tiny_model, tmp_path):
    folder, expected = adapter
    once = Backbone.load(str(tiny_model), merge=[folder])
    torch.testing.assert_close(states(once), expected, rtol=1e-5, atol=1e-5)
    once.load_adapter(folder)
    twice = Backbone.load(str(tiny_model), merge=[folder, folder])
    torch.testing.assert_close(states(twice), states(once.eval()), rtol=1e-4, atol=1e-5)


def test_merging_does_not_touch_a_tied_head(adapter, tiny_model):
    backbone = Backbone.load(str(tiny_model), with_head=True, merge=[adapter[0]])
    original = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert torch.equal(backbone.head.weight, original.lm_head.weight)


def test_a_merged_backbone_is_saved_and_loaded(adapter, tiny_model, tmp_path):
    folder, expected = adapter
    backbone = Backbone.load(str(tiny_model), merge=[folder])
    backbone.save(tmp_path / "saved")
    torch.testing.assert_close(states(Backbone.load(str(tmp_path / "saved"))), expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_must_be_merged_before_saving(adapter, tiny_model, tmp_path):
    backbone = Backbone.load(str(tiny_model))
    backbone.load_adapter(adapter[0])
    with pytest.raises(RuntimeError, match="merge the adapter"):
        backbone.save(tmp_path)


def test_a_saved_encoder_has_no_head_and_takes_it_from_its_base(tmp_path):
    base = make_tiny_model(tmp_path / "base", tied=False)
    backbone = Backbone.load(str(base), with_head=True)
    backbone.save(tmp_path / "saved")
    with pytest.raises(L2VError, match="expected a decoder with an output head"):
        Backbone.load(str(tmp_path / "saved"), with_head=True)
    again = Backbone.load(str(tmp_path / "saved"), with_head=True, head_source=backbone.source)
    assert torch.equal(again.head.weight, backbone.head.weight)


def one_line(error):
    return "\n" not in str(error.value)


def missing_key(weights):
    del weights[next(key for key in weights if "q_proj.lora_A" in key)]


def unexpected_key(weights):
    weights["base_model.model.layers.7.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 32)


def other_shape(weights):
    key = next(key for key in weights if "q_proj.lora_B" in key)
    weights[key] = torch.zeros(48, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing_key, r"1 of 28 tensors .*q_proj.lora_A.weight \(expected 4x32, found none\)"),
        (unexpected_key, r"1 of 29 tensors .*layers.7.*lora_A.weight \(expected none, found 4x32\)"),
        (other_shape, r"1 of 28 tensors .*q_proj.lora_B.weight \(expected 32x4, found 48x4\)"),
    ],
)
def test_an_adapter_whose_tensors_do_not_fit_is_refused_and_the_first_is_named(
    adapter, tiny_model, tmp_path, change, message
):
    folder = changed_adapter(adapter, tmp_path / "changed", change)
    with pytest.raises(L2VError, match=message) as error:
        Backbone.load(str(tiny_model)).load_adapter(folder)
    assert one_line(error)


@pytest.mark.parametrize("overrides", [{"num_hidden_layers": 1}, {"intermediate_size": 96}, {"family": "gpt2"}])
def test_an_adapter_of_another_model_is_refused(adapter, tmp_path, overrides):
    folder, _ = adapter
    other = make_tiny_model(tmp_path / "other", **overrides)
    with pytest.raises(L2VError, match="the adapter does not fit") as error:
        Backbone.load(str(other), merge=[folder])
    assert one_line(error) and str(folder) in str(error.value)


def test_a_folder_without_an_adapter_is_refused(tiny_model, tmp_path):
    with pytest.raises(L2VError, match="no adapter_model.safetensors, so it holds no adapter"):
        Backbone.load(str(tiny_model)).load_adapter(tmp_path)


def damage(folder, name, content=b"\x10\x00\x00\x00\x00\x00\x00\x00{not json at all"):
    (folder / name).write_bytes(content)


@pytest.mark.parametrize("name", [ADAPTER_WEIGHTS, "adapter_config.json"])
def test_a_damaged_adapter_is_told_in_one_line(adapter, tiny_model, tmp_path, name):
    folder = tmp_path / "damaged"
    shutil.copytree(adapter[0], folder)
    damage(folder, name)
    with pytest.raises(L2VError, match=str(folder)) as error:
        Backbone.load(str(tiny_model)).load_adapter(folder)
    assert one_line(error)


def test_an_adapter_without_its_config_is_told_in_one_line(adapter, tiny_model, tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(adapter[0], folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(L2VError, match="adapter_config.json") as error:
        Backbone.load(str(tiny_model)).load_adapter(folder)
    assert one_line(error)


def encoder_decoder(folder, tiny_model):
    sizes = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4, "vocab_size": 384}
    T5Model(T5Config(**sizes)).save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)


def no_config(folder, tiny_model):
    folder.mkdir()


def no_tokenizer(folder, tiny_model):
    make_tiny_decoder().save_pretrained(folder)


def no_weights(folder, tiny_model):
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()


def damaged_weights(folder, tiny_model):
    shutil.copytree(tiny_model, folder)
    damage(folder, "model.safetensors")


def truncated_weights(folder, tiny_model):
    shutil.copytree(tiny_model, folder)
    damage(folder, "model.safetensors", (folder / "model.safetensors").read_bytes()[:-1000])


def lost_weight(folder, tiny_model):
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def other_sizes(folder, tiny_model):
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))


def damaged_config(folder, tiny_model):
    shutil.copytree(tiny_model, folder)
    damage(folder, "config.json", b'{"model_type": "llama",')


def unknown_family(folder, tiny_model):
    shutil.copytree(tiny_model, folder)
    (folder / "config.json").write_text('{"model_type": "no-such-family"}')


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (encoder_decoder, r"an encoder-decoder \(t5\); expected a decoder"),
        (no_config, "the folder has no config.json, so it holds no model"),
        (no_tokenizer, "tokenizer"),
        (no_weights, "no file named model.safetensors|model.safetensors"),
        (damaged_weights, ""),
        (truncated_weights, ""),
        (lost_weight, "layers.1.mlp.up_proj.weight"),
        (other_sizes, ""),
        (damaged_config, "JSON"),
        (unknown_family, "no-such-family"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_folder_that_holds_no_decoder_is_told_in_one_line(tmp_path, tiny_model, make, message):
    make(tmp_path / "model", tiny_model)
    with pytest.raises(L2VError, match=f"model.source={tmp_path}/model: .*({message})") as error:
        Backbone.load(str(tmp_path / "model"))
    assert one_line(error)


def test_a_plain_file_is_no_model(tmp_path):
    (tmp_path / "model.txt").write_text("cat")
    with pytest.raises(L2VError, match=r"expected a model folder, a .gguf file or a hub id, found a file") as error:
        Backbone.load(str(tmp_path / "model.txt"))
    assert one_line(error)


def test_a_file_that_is_no_gguf_inside_is_told_in_one_line(tmp_path):
    (tmp_path / "model.gguf").write_text("cat")
    with pytest.raises(L2VError, match=r"model.source=.*model.gguf: cannot be loaded as a decoder") as error:
        Backbone.load(str(tmp_path / "model.gguf"))
    assert one_line(error)


def test_a_path_that_does_not_exist_is_told_in_one_line(tmp_path):
    with pytest.raises(L2VError, match="no such file or folder") as error:
        Backbone.load(str(tmp_path / "missing"))
    assert one_line(error)


def test_a_hub_id_without_a_network_is_told_in_one_line():
    with pytest.raises(L2VError, match="^model.source=no-such-owner/no-such-model: not found on the hub or") as error:
        Backbone.load("no-such-owner/no-such-model")
    assert one_line(error)


def test_an_encoder_is_no_decoder(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=384, **sizes)).save_pretrained(tmp_path)
    make_tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(L2VError, match=r"an encoder \(bert\); expected a decoder") as error:
        Backbone.load(str(tmp_path))
    assert one_line(error)


def test_texts_are_cut_on_the_right_whatever_the_saved_tokenizer_does(tmp_path):
    settings = make_tiny_model(tmp_path) / "tokenizer_config.json"
    sides = {"truncation_side": "left", "padding_side": "left"}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | sides))
    backbone = Backbone.load(str(tmp_path))
    [row] = tokenize(["the cat sat on the mat"], backbone.tokenizer, max_length=2)
    assert backbone.tokenizer.decode(row.input_ids) == "the cat"


def test_a_padding_token_of_the_model_is_kept(tmp_path):
    make_tiny_decoder().save_pretrained(tmp_path)
    tokenizer = make_tiny_tokenizer()
    tokenizer.pad_token = "_"
    tokenizer.save_pretrained(tmp_path)
    assert Backbone.load(str(tmp_path)).tokenizer.pad_token == "_"


def test_attention_dropout_is_set_for_training_only(tiny_model):
    backbone = Backbone.load(str(tiny_model), attention_dropout=0.5)
    expected = states(Backbone.load(str(tiny_model)))
    torch.testing.assert_close(states(backbone), expected)
    backbone.train()
    assert not torch.allclose(states(backbone), expected, atol=1e-3)


def test_a_model_in_which_no_attention_dropout_is_found_refuses_it(tmp_path):
    folder = make_tiny_model(tmp_path, family="opt")
    with pytest.raises(L2VError, match=r"attention_dropout=0.5: found no attention dropout in this model") as error:
        Backbone.load(str(folder), attention_dropout=0.5)
    assert one_line(error)


def test_the_attention_of_a_model_cannot_be_set_to_an_implementation_that_it_lacks(tmp_path):
    folder = make_tiny_model(tmp_path, family="gemma2")
    with pytest.raises(L2VError, match="model.attn_implementation=sdpa") as error:
        Backbone.load(str(folder), attn_implementation="sdpa")
    assert one_line(error)


def test_the_real_model_is_loaded_from_its_package(real_encoder_source):
    backbone = Backbone.load(real_encoder_source, attention="causal", with_head=True)
    assert backbone.hidden_size == 576 and len(backbone.decoder.layers) == 30
    ids = backbone.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        best = backbone.logits(backbone(ids, torch.ones_like(ids))[0, -1]).argmax()
    assert backbone.tokenizer.decode(best) == " Paris"


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_may_be_given_whichever_side_is_padded(tiny_model, side):
    backbone = Backbone.load(str(tiny_model))
    rows = pad([Tokens([5, 6, 7, 8, 9]), Tokens([10, 11])], backbone.tokenizer.pad_token_id, side)
    given = {**rows, "position_ids": position_ids(rows["attention_mask"])}
    with torch.no_grad():
        torch.testing.assert_close(backbone.embed(**given, micro_batch_tokens=6), backbone.embed(**given))
