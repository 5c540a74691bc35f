"""Tokenizers that are odd in ways that published ones are: padding, ends of texts and tokens that the model has not."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import ROOT, Tiny
from tiny import SENTENCES, make_tiny_decoder, make_tiny_model, make_tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from l2v.data.texts import FileTexts
from l2v.data.tokens import block_rows
from l2v.encoders.encoder import Encoder
from l2v.errors import L2VError
from l2v.models.loading import load_tokenizer_and_config
from l2v.runs.locations import locate
from l2v.text.tokenization import mask_token_id, tokenize
from l2v.text.vocabulary import token_count

CASES = ROOT.parent / "shared" / "cases"


def without_special_tokens() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=make_tiny_tokenizer().backend_tokenizer)


def padded_outside() -> PreTrainedTokenizerFast:
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def grown() -> PreTrainedTokenizerFast:
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_tokens(["<new1>", "<new2>"])
    return tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with the tiny model and an odd tokenizer."""
    folder = tmp_path_factory.mktemp("odd")
    made = {"without": without_special_tokens(), "outside": padded_outside(), "grown": grown()}
    for name, tokenizer in made.items():
        make_tiny_decoder(vocab_size=len(make_tiny_tokenizer())).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in made}


@pytest.mark.parametrize("name", ["without", "outside", "grown"])
def test_vectors_do_not_depend_on_the_padding(models: dict[str, Path], name: str) -> None:
    encoder = Encoder.from_pretrained(models[name], device="cpu")
    texts = [*SENTENCES, "", "a"]
    together = encoder.encode(texts)
    alone = np.stack([encoder.encode(text) for text in texts])
    assert np.isfinite(together).all() and np.abs(together - alone).max() < 1e-5
    assert encoder.backbone.tokenizer.pad_token_id < encoder.backbone.config.vocab_size


@pytest.mark.parametrize("name", ["without", "outside", "grown"])
def test_a_saved_encoder_gives_the_same_vectors_here_and_in_sentence_transformers(
    models: dict[str, Path], name: str, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers")
    encoder = Encoder.from_pretrained(models[name], device="cpu")
    encoder.save(tmp_path)
    wanted = encoder.encode(SENTENCES)
    assert np.abs(Encoder.from_pretrained(tmp_path, device="cpu").encode(SENTENCES) - wanted).max() < 1e-6
    theirs = library.SentenceTransformer(str(tmp_path), device="cpu").encode(SENTENCES)
    assert np.abs(theirs - wanted).max() < 1e-5


@pytest.mark.parametrize("stage", ["mntp", "simcse", "supervised"])
@pytest.mark.parametrize("name", ["without", pytest.param("outside", marks=pytest.mark.slow)])
def test_stages_train_with_them(
    models: dict[str, Path], name: str, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Tiny(tmp_path, models[name], monkeypatch).train("run", stage, "stage.max_steps=1")
    assert np.isfinite(Encoder.from_pretrained(run, device="cpu").encode([*SENTENCES, "a"])).all()


def test_a_token_without_an_embedding_is_told_with_its_text(models: dict[str, Path], tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(models["grown"], device="cpu")
    size = encoder.backbone.config.vocab_size
    told = rf"the text 'a <new2> b': its token '<new2>' has the number {size + 1}, and the model has .* 0 to {size - 1}"
    with pytest.raises(L2VError, match=told) as error:
        encoder.encode(["fine", "a <new2> b"])
    assert "\n" not in str(error.value)
    preparation = pickle.loads(pickle.dumps(encoder.preparation()))  # as loader processes get it
    with pytest.raises(L2VError, match=told):
        preparation.items(["a <new2> b"])
    (tmp_path / "t.txt").write_text("fine\na <new2> b\n")
    with pytest.raises(L2VError, match=told):
        block_rows(FileTexts(str(tmp_path / "t.txt")), encoder.backbone.tokenizer, 4, show=False)


def test_random_and_mask_tokens_are_those_of_the_model(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, config = load_tokenizer_and_config(locate(str(models["grown"])))
    assert token_count(tokenizer) == config.vocab_size < len(tokenizer)
    assert token_count(make_tiny_tokenizer()) == len(make_tiny_tokenizer())
    with pytest.raises(L2VError, match="mask_token='<new1>' is not one token"):
        mask_token_id(tokenizer, "<new1>")
    big = make_tiny_tokenizer()
    big.add_tokens([f"<new{number}>" for number in range(5000)])
    folder = tmp_path / "big"
    make_tiny_decoder(vocab_size=len(make_tiny_tokenizer())).save_pretrained(folder)
    big.save_pretrained(folder)
    Tiny(tmp_path, folder, monkeypatch).train("run", "mntp", "stage.max_steps=3", "stage.masking_probability=1.0")


def test_a_padding_token_that_stands_for_one_is_in_no_text(models: dict[str, Path], tmp_path: Path) -> None:
    tokenizer, _ = load_tokenizer_and_config(locate(str(models["without"])))
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert tokenizer.pad_token.startswith("Ġ") or not tokenizer.pad_token.isascii()
    texts = [*SENTENCES, "Über uns", "日本語", "<s>"]
    plain = [row.input_ids for row in tokenize(texts, without_special_tokens(), max_length=64)]
    assert plain == [row.input_ids for row in tokenize(texts, again, max_length=64)]


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_learned_positions_bound_the_length(family: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"word_embed_proj_dim": 32} if family == "opt" else {}
    source = make_tiny_model(tmp_path / "model", family=family, max_position_embeddings=24, **more)
    encoder = Encoder.from_pretrained(source, device="cpu")
    assert encoder.max_length == encoder.backbone.positions == 24
    long = " ".join(SENTENCES)
    assert np.isfinite(encoder.encode(long)).all()
    told = "max_length=25: this model has learned 24 positions"
    with pytest.raises(L2VError, match=told):
        Encoder.from_pretrained(source, device="cpu", max_length=25)
    with pytest.raises(L2VError, match=told):
        encoder.encode(long, max_length=25)
    with pytest.raises(L2VError, match="tokens of a row=25: this model has learned 24"):
        encoder.backbone(torch.zeros(1, 25, dtype=torch.long), torch.ones(1, 25, dtype=torch.long))


def test_a_stage_that_is_longer_than_the_positions_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tiny_model(tmp_path / "gpt2", family="gpt2", max_position_embeddings=24)
    tiny = Tiny(tmp_path, source, monkeypatch)
    for stage, setting in (("mntp", "stage.block_length"), ("simcse", "stage.max_length")):
        with pytest.raises(L2VError, match=f"{setting}=25: this model has learned 24 positions"):
            tiny.train(stage, stage, f"{setting}=25", "model.max_length=24")


def test_rotary_positions_bound_nothing(tiny_model: Path) -> None:
    assert Encoder.from_pretrained(tiny_model, device="cpu").backbone.positions is None


@pytest.mark.slow
def test_the_shared_cases(tmp_path: Path) -> None:
    if not CASES.is_dir():
        pytest.skip("../shared/cases is not there")
    subprocess.run([sys.executable, str(CASES / "odd_tokenizers.py"), str(tmp_path)], check=True, capture_output=True)
    for name in ("no_special_tokens", "pad_outside", "grown"):
        encoder = Encoder.from_pretrained(tmp_path / name, device="cpu")
        assert np.isfinite(encoder.encode(["A cat.", "", "A dog sat."])).all()
    with pytest.raises(L2VError, match="its token '<new1>' has the number"):
        Encoder.from_pretrained(tmp_path / "grown", device="cpu").encode(["A <new1> cat."])
