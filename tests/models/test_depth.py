"""A model with its first layers only is what the whole one is after them, wherever it is loaded, trained or planned."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import Tiny, composed
from tiny import SENTENCES, make_tiny_model
from transformers import AutoModel

from l2v import Encoder
from l2v.config.planning import build_plan
from l2v.errors import L2VError
from l2v.export.export import Export, Merge, export
from l2v.models.backbone import Backbone, hidden_states
from l2v.models.bidirectional import decoder_layers, set_attention
from l2v.models.depth import number_of_layers, with_layers
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
    assert torch.equal(one, other)


def test_layers_that_take_keys_of_earlier_ones_still_do() -> None:
    config = tiny_model(Family("gemma3_text"), "eager").config
    config.num_hidden_layers, config.num_kv_shared_layers = 10, 4
    assert with_layers(config, 8).num_kv_shared_layers == 2
    assert with_layers(config, 5).num_kv_shared_layers == 0


def test_states_are_those_of_the_layer_after_the_final_norm(deep_model: Path) -> None:
    whole, short = Backbone.load(str(deep_model)), Backbone.load(str(deep_model), layers=3)
    batch = pad(tokenize(SENTENCES, whole.tokenizer, max_length=64), whole.tokenizer.pad_token_id, "right")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        found = short(ids, mask)
        expected = whole.decoder.norm(hidden_states(whole, ids, mask)[3])
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-6)


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
        config = composed("plan", [f"model.source={deep_model}", "stage=mntp", "trainer=cpu", *overrides])
        from l2v import config as configs

        return measure(build_plan(configs.plain(config))[0]).parameters

    layers = [parameters(f"model.layers={count}") for count in (1, 2, 3)]
    assert layers[2] - layers[1] == layers[1] - layers[0] > 0
    assert parameters() - layers[2] == layers[1] - layers[0]
