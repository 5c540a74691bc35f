"""docs/models.md says what holds; and what the table finds can also be found wanting."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SENTENCES, make_tiny_model, make_tiny_tokenizer
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

import l2v.models.adapters
from l2v.encoders.encoder import Encoder
from l2v.encoders.load import known_dimension
from l2v.errors import L2VError
from l2v.models import examination
from l2v.models.adapters import Lora, trainable_parameters
from l2v.models.backbone import Backbone
from l2v.models.bidirectional import set_attention
from l2v.models.examination import examine, examine_all, table, update, versions
from l2v.models.families import FAMILIES, Family
from l2v.models.proof import prove
from l2v.models.settings import EncoderSettings

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")
# One of each kind: plain, windows, experts, causal layers (refused and partial), no positions, one that breaks.
QUICK = ("llama", "mistral, sliding window", "olmoe", "lfm2", "lfm2, partial", "bloom", "mpt")


def lines() -> list[str]:
    """The rows of the page's table, without its header."""
    return PAGE.read_text("utf-8").partition("| --- |")[2].splitlines()[1:-2]


@pytest.mark.parametrize(
    "family",
    [pytest.param(one, id=one.name, marks=() if one.name in QUICK else pytest.mark.slow) for one in FAMILIES],
)
def test_the_page_is_true(family: Family) -> None:
    if f"With {versions()}:" not in PAGE.read_text("utf-8"):
        pytest.skip(f"docs/models.md was made with other versions than {versions()}")
    rows = [examine(family, implementation) for implementation in IMPLEMENTATIONS]
    assert table(rows).splitlines()[2:] == [line for line in lines() if line.startswith(f"| {family.name} |")]


def test_the_page_has_every_family_and_no_other() -> None:
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines()]
    assert names == [family.name for family in FAMILIES for _ in IMPLEMENTATIONS]


def proven(family: str = "llama", implementation: str = "eager", **settings):
    model = examination.tiny_model(Family(family, settings), implementation)
    return model, prove(model, "bidirectional")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_causal_attention_is_found_without_the_proof(implementation) -> None:
    with torch.compiler.set_stance("force_eager"):
        model, proof = proven(implementation=implementation)
        set_attention(model, "causal")
        assert examination._sees_both_sides(model, proof) == "no: layer 0 sees 55 of 100 pairs of positions"


def test_a_decoder_that_was_not_switched_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("l2v.models.families.set_attention", lambda *_: None)
    row = examine(Family("llama"), "sdpa")
    assert row.bidirectional == "refused: layers 0-1 stay causal" and row.padding == row.lora == ""


def test_a_window_of_another_width_is_found() -> None:
    model, proof = proven("mistral", sliding_window=3)
    assert examination._sees_both_sides(model, proof) == "yes, windows on both sides"
    layer = model.layers[1]
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "attention_mask": kwargs["attention_mask"].triu(-1)}),
        with_kwargs=True,
    )
    assert examination._sees_both_sides(model, proof).startswith("no: layer 1 sees ")


def ignoring_the_mask(model: PreTrainedModel, monkeypatch) -> None:
    original = model.forward

    def forward(attention_mask=None, **rest):
        return original(attention_mask=None, **rest)

    monkeypatch.setattr(model, "forward", forward)


def test_padding_that_is_seen_is_found(monkeypatch) -> None:
    model, proof = proven()
    ignoring_the_mask(model, monkeypatch)
    assert examination._sees_both_sides(model, proof) == "no: layer 0 sees padding"
    assert examination._ignores_padding(model) == "no: padding on the left changes a text's states"
    assert examination._ignores_neighbours(model, proof) == "no: a text's embedding depends on its batch"


def test_texts_that_see_each_other_in_a_row_are_found(monkeypatch) -> None:
    model, proof = proven()
    monkeypatch.setattr("l2v.models.packing.packed_mask", lambda config, segments, dtype: segments.sign())
    monkeypatch.setattr("l2v.models.backbone.prove_packing", lambda model: 0.0)
    assert examination._packs(model, proof) == "no: packing changes a text's states"


def test_checkpointing_that_recomputes_nothing_is_found(monkeypatch) -> None:
    monkeypatch.setattr(PreTrainedModel, "gradient_checkpointing_enable", lambda *_: None)
    assert examination._checkpoints(Family("llama"), "eager") == "no: nothing is recomputed"


def test_what_lora_leaves_out_is_named(monkeypatch) -> None:
    monkeypatch.setattr(
        examination, "Lora", lambda rank: l2v.models.adapters.Lora(rank=rank, target_modules=["q_proj", "v_proj"])
    )
    row = examine(Family("llama"), "sdpa")
    assert row.lora == ("q_proj v_proj; not self_attn.k_proj self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj")


def test_a_model_type_that_is_not_listed_gets_the_common_settings() -> None:
    rows = examine_all(["cwm"], show=False)
    assert [row.bidirectional for row in rows[:2]] == ["yes", "yes"]


def test_a_model_type_that_is_unknown_is_refused() -> None:
    with pytest.raises(L2VError, match="has no model type lama"):
        examine_all(["llama", "lama"], show=False)


def test_a_page_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(L2VError, match="expected a page with the lines"):
        update("# Models", [])


def test_the_page_is_updated_in_place() -> None:
    row = replace(examination.HEADER, family="new")
    page = update(PAGE.read_text("utf-8"), [row])
    assert page.count("| new |") == 1 and "| llama |" not in page and page.startswith("# Models")
    assert update(page, [row]) == page


def test_vectors_are_as_long_as_the_states_that_a_family_projects(tmp_path: Path) -> None:
    """OPT 350m."""
    settings = {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    model = make_tiny_model(tmp_path / "model", family="opt", **settings)
    encoder = Encoder.from_pretrained(model, device="cpu")
    assert encoder.encode(["a"]).shape == (1, 16) and encoder.dimension == 16
    assert known_dimension(EncoderSettings(str(model))) == 16
    encoder.save(tmp_path / "saved")
    assert np.array_equal(
        Encoder.from_pretrained(tmp_path / "saved", device="cpu").encode(["a"]), encoder.encode(["a"])
    )


def test_of_a_model_that_sees_images_the_decoder_is_taken(tmp_path: Path) -> None:
    text = {"vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 8}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "sliding_window": 4}
    image = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "gemma3",
        text_config=text | {"pad_token_id": 0},
        vision_config=image | {"image_size": 280, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "model")
    make_tiny_tokenizer().save_pretrained(tmp_path / "model")
    encoder = Encoder.from_pretrained(tmp_path / "model", device="cpu", max_length=1000)
    assert encoder.backbone.config.model_type == "gemma3_text"
    encoder.save(tmp_path / "saved")
    again = Encoder.from_pretrained(tmp_path / "saved", device="cpu")
    assert np.array_equal(again.encode(SENTENCES), encoder.encode(SENTENCES))
    backbone = Backbone.load(str(tmp_path / "model"), with_head=True, layers=2)
    backbone.add_adapter(Lora(2))
    assert len(trainable_parameters(backbone)) == 2 * 7 * 2  # layers, linear layers, A and B


@pytest.mark.parametrize("family", ["stablelm", "nemotron"])
def test_sentence_transformers_is_told_what_keeps_a_family_bidirectional(family: str, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    encoder = Encoder.from_pretrained(make_tiny_model(tmp_path / "model", family=family), device="cpu")
    encoder.save(tmp_path / "saved")
    theirs = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(["a dog sat"])
    assert np.abs(theirs - encoder.encode(["a dog sat"])).max() < 1e-5


def test_alibi_without_a_causal_mask_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_tiny_model(tmp_path / "model", family="bloom", pad_token_id=0)
    with caplog.at_level("INFO", "l2v"):
        Encoder.from_pretrained(model, device="cpu", attention="causal")
        assert "ALiBi" not in caplog.text
        Encoder.from_pretrained(model, device="cpu")
    assert "bloom: its attention is biased towards later tokens (ALiBi)" in caplog.text
