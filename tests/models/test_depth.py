"""A model with its first layers only is what the whole one is after them, wherever it is loaded, trained or planned."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import Tiny, composed
from tiny import SENTENCES, make_tiny_model
from torch import nn
from transformers import AutoModel

from l2v import Encoder
from l2v.config.planning import build_plan
from l2v.errors import L2VError
from l2v.export.export import Export, Merge, export
from l2v.models.adapters import Lora, trainable_parameters
from l2v.models.backbone import Backbone
from l2v.models.bidirectional import decoder_layers, set_attention
from l2v.models.depth import number_of_layers, prove_depths, states_of_depths, with_layers
from l2v.models.families import FAMILIES, Family, tiny_model
from l2v.planning.measure import measure
from l2v.runs.run import Run
from l2v.text.tokenization import pad, tokenize

QUICK = ("llama", "mistral, sliding window", "gemma3_text, sliding window", "falcon_h1", "gpt2", "lfm2, partial")
WARM = ["stage.max_steps=2", "stage.learning_rate=0.05"]


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers."""
    return make_tiny_model(tmp_path_factory.mktemp("deep") / "model", num_hidden_layers=4)


@pytest.fixture
def tiny(tmp_path: Path, deep_model: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    return Tiny(tmp_path, deep_model, monkeypatch)


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


def vectors(source: str | Path, **settings) -> np.ndarray:
    return Encoder.from_pretrained(source, device="cpu", **settings).encode(SENTENCES)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(one, id=one.name, marks=() if one.name in QUICK else pytest.mark.slow)
        for one in FAMILIES
        if one.model_type != "mpt"  # which transformers saves and cannot run again
    ],
)
def test_the_first_layer_of_any_family_is_what_the_whole_model_has_there(family: Family, tmp_path: Path) -> None:
    whole = tiny_model(family, "eager")
    whole.save_pretrained(tmp_path)
    short, info = AutoModel.from_pretrained(
        tmp_path, config=with_layers(whole.config, 1), attn_implementation="eager", output_loading_info=True
    )
    set_attention(short.eval(), "bidirectional")
    assert len(decoder_layers(short)) == 1 and not info["missing_keys"]
    ids = torch.randint(2, 100, (2, 7), generator=torch.Generator().manual_seed(0))
    del decoder_layers(whole)[1:]
    with torch.no_grad():
        one, other = (
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
            for model in (short, whole)
        )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_layers_that_take_keys_of_earlier_ones_still_do() -> None:
    config = tiny_model(Family("gemma3_text"), "eager").config
    config.num_hidden_layers, config.num_kv_shared_layers = 10, 4
    assert with_layers(config, 8).num_kv_shared_layers == 2
    assert with_layers(config, 5).num_kv_shared_layers == 0


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "opt", "bloom", "gpt_neox"])
def test_the_states_at_a_depth_are_those_of_the_cut_decoder(tmp_path, family: str) -> None:
    folder = str(make_tiny_model(tmp_path, family=family, num_hidden_layers=4, n_layer=4))
    backbone = Backbone.load(folder)
    prove_depths(backbone)
    rows = batch(backbone)
    ids, mask = rows["input_ids"], rows["attention_mask"]
    with torch.no_grad():
        first, third, whole = states_of_depths(backbone, [1, 3], ids, mask)
        torch.testing.assert_close(whole, backbone(ids, mask), rtol=0, atol=1e-5)
        for layers, states in ((3, third), (1, first)):
            torch.testing.assert_close(states, cut(backbone, layers)(ids, mask), rtol=0, atol=1e-5)


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


def test_what_stands_behind_the_layers_is_proven(deep_model: Path) -> None:
    backbone = Backbone.load(str(deep_model))
    prove_depths(backbone)
    forward = backbone.decoder.forward

    def doubled(**inputs):
        output = forward(**inputs)
        output.last_hidden_state = 2 * output.last_hidden_state
        return output

    backbone.decoder.forward = doubled
    with pytest.raises(L2VError, match="does after its last layer cannot be told"):
        prove_depths(backbone)


@pytest.mark.slow
@pytest.mark.parametrize("family", [pytest.param(one, id=one.name) for one in FAMILIES if one.model_type != "mpt"])
def test_what_stands_behind_the_layers_is_found_in_every_family(family: Family, deep_model: Path) -> None:
    backbone = Backbone.load(str(deep_model))
    backbone.decoder = tiny_model(family, "eager")
    prove_depths(backbone)


@pytest.mark.parametrize(("wanted", "kept"), [(21, 21), (0.7, 21), (30, 30), (1.0, 30), (1, 1), (0.01, 1), (0.45, 14)])
def test_a_whole_number_is_a_number_and_a_decimal_one_a_share(wanted: int | float, kept: int) -> None:
    assert number_of_layers(wanted, 30) == kept


@pytest.mark.parametrize("wanted", [0, -1, 31, 1.5, 21.0, 0.0, -0.5, True])
def test_what_is_neither_is_refused(wanted: int | float) -> None:
    with pytest.raises(L2VError, match=r"^model\.layers="):
        number_of_layers(wanted, 30, "model.layers")


def test_a_shallower_encoder_is_loaded_saved_and_loaded_again(deep_model: Path, tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(deep_model, layers=0.5, device="cpu")
    encoder.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["num_hidden_layers"] == 2
    np.testing.assert_allclose(vectors(tmp_path / "saved"), encoder.encode(SENTENCES), atol=1e-6)
    assert np.abs(vectors(deep_model) - encoder.encode(SENTENCES)).max() > 1e-3


def test_stages_train_the_same_layers_and_say_so(tiny: Tiny, deep_model: Path, tmp_path: Path) -> None:
    first = Run(tiny.train("one", "mntp", *WARM, "model.layers=0.75"))
    second = Run(tiny.train("two", "simcse", *WARM, f"init_from={first.folder}", "export=adapter"))
    assert (first.lineage().layers, second.lineage().layers) == (3, 3)
    assert json.loads((first.encoder / "config.json").read_text())["num_hidden_layers"] == 3
    assert len(decoder_layers(Encoder.from_pretrained(second.folder, device="cpu").backbone.decoder)) == 3
    assert not any(".layers.3." in key for key in Encoder.from_pretrained(first.folder).backbone.state_dict())
    export(second, tmp_path / "out")
    np.testing.assert_allclose(vectors(tmp_path / "out"), vectors(second.folder), atol=1e-5)
    assert "the first 3 are kept" in (tmp_path / "out" / "README.md").read_text()
    # another depth is another encoder
    assert np.abs(vectors(second.folder, layers=2) - vectors(second.folder)).max() > 1e-3
    with pytest.raises(L2VError, match="the model has 3 layers"):
        vectors(second.folder, layers=4)


def test_a_later_stage_may_keep_fewer_layers_than_the_adapters_before_it(tiny: Tiny, deep_model: Path) -> None:
    first = Run(tiny.train("one", "mntp", *WARM))
    second = Run(tiny.train("two", "simcse", *WARM, f"init_from={first.folder}", "model.layers=2"))
    continued = Run(
        tiny.train("three", "simcse", *WARM, f"init_from={first.folder}", "model.layers=2", "adapter.init=continue")
    )
    expected = Backbone.load(str(deep_model), merge=[first.adapter])
    del decoder_layers(expected.decoder)[2:]
    begun = Backbone.load(str(deep_model), layers=2, merge=[second.folder / second.lineage().merged[0].path])
    for name, weight in expected.decoder.named_parameters():
        torch.testing.assert_close(begun.decoder.get_parameter(name), weight, rtol=0, atol=1e-6)
    assert continued.lineage().initial is not None and continued.lineage().layers == 2
    with pytest.raises(L2VError, match=r"model\.layers=4: init_from has kept 2 layers"):
        tiny.train("four", "simcse", *WARM, f"init_from={second.folder}", "model.layers=4")


def test_a_run_goes_on_with_the_layers_that_it_began_with(tiny: Tiny) -> None:
    run = tiny.train("one", "mntp", *WARM, "model.layers=2")
    with pytest.raises(L2VError, match=r"model\.layers=3, but the run is one of model\.layers=2"):
        tiny.resume(run, "model.layers=3", "stage.max_steps=4")
    tiny.resume(run, "stage.max_steps=4")
    assert Run(run).record()["step"] == 4 and len(decoder_layers(AutoModel.from_pretrained(Run(run).encoder))) == 2


def test_a_share_counts_the_layers_of_the_original_after_full_training(tiny: Tiny, tmp_path: Path) -> None:
    first = tiny.train("one", "mntp", *WARM, "model.layers=0.5", "adapter=none")
    second = Run(tiny.train("two", "simcse", *WARM, f"init_from={first}", "model.layers=0.5"))
    assert len(decoder_layers(AutoModel.from_pretrained(second.encoder))) == 2
    export(second, tmp_path / "mixed", Export(merge=Merge(base_ratio=0.5)))
    assert "the first 2 are kept" in (tmp_path / "mixed" / "README.md").read_text()


def test_an_adapter_of_fewer_layers_is_not_exported_for_all(tiny: Tiny, tmp_path: Path) -> None:
    run = Run(tiny.train("one", "mntp", *WARM, "model.layers=2"))
    with pytest.raises(L2VError, match="has kept 2 layers of its base"):
        export(run, tmp_path / "out", Export(form="adapter"))


def test_a_plan_counts_the_layers_that_are_kept(deep_model: Path) -> None:
    def parameters(*overrides: str) -> int:
        small = ["stage.block_length=16", "stage.global_batch_size=2", "stage.micro_batch_tokens=null"]
        config = composed("plan", [f"model.source={deep_model}", "stage=mntp", "trainer=cpu", *small, *overrides])
        from l2v import config as configs

        return measure(build_plan(configs.plain(config))[0]).parameters

    layers = [parameters(f"model.layers={count}") for count in (1, 2, 3)]
    assert layers[2] - layers[1] == layers[1] - layers[0] > 0
    assert parameters() - layers[2] == layers[1] - layers[0]
