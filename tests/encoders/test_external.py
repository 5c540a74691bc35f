"""Encoders of sentence-transformers: loaded by that library, used as l2v's own are."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from launch import composed, script
from tiny import SENTENCES, make_tiny_tokenizer
from transformers import BertConfig, BertModel

from l2v.encoders.encoder import Encoder
from l2v.encoders.external import SentenceTransformersEncoder, is_theirs
from l2v.encoders.load import load_encoder
from l2v.errors import L2VError
from l2v.models.settings import EncoderSettings

sentence_transformers = pytest.importorskip("sentence_transformers")
from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.models import Dense, Normalize, Pooling, Transformer  # noqa: E402


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder of sentence-transformers: BERT, mean pooling, a dense layer to 8 dimensions."""
    folder = tmp_path_factory.mktemp("theirs")
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "</s>"})
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=24)
    modules = [transformer, Pooling(16, "mean"), Dense(16, 8), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "encoder"))
    return folder / "encoder"


@pytest.fixture
def encoder(bert: Path) -> SentenceTransformersEncoder:
    found = load_encoder(EncoderSettings(str(bert)), device="cpu")
    assert isinstance(found, SentenceTransformersEncoder)
    return found


def test_its_vectors_are_those_of_the_library(encoder, bert):
    theirs = SentenceTransformer(str(bert), device="cpu", local_files_only=True)
    np.testing.assert_allclose(encoder.encode(SENTENCES), theirs.encode(SENTENCES), atol=1e-6)
    assert encoder.encode(SENTENCES).shape == (len(SENTENCES), encoder.dimension) == (len(SENTENCES), 8)
    assert encoder.max_length == 24 and encoder.encode("a text").shape == (8,)
    assert encoder.encode([]).shape == (0, 8)
    assert encoder.describe()["pooling"] == "mean"


def test_an_instruction_is_put_in_only_where_a_separator_says_how(encoder, bert):
    plain = encoder.encode(SENTENCES)
    np.testing.assert_array_equal(encoder.encode(SENTENCES, instruction="Find it"), plain)
    with_separator = load_encoder(EncoderSettings(str(bert), separator=": "), device="cpu")
    joined = encoder.encode([f"Find it: {text}" for text in SENTENCES])
    np.testing.assert_allclose(with_separator.encode(SENTENCES, instruction="Find it"), joined, atol=1e-6)
    pairs = [("Find it", SENTENCES[0]), ("Say it", SENTENCES[1])]
    np.testing.assert_allclose(with_separator.encode(pairs)[0], joined[0], atol=1e-6)


def test_odd_texts_and_sizes(encoder):
    vectors = encoder.encode(["", "\ud800 lone", "word " * 500], normalize=True, truncate_dim=3)
    assert vectors.shape == (3, 3) and np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    with pytest.raises(L2VError, match="text 1 is int"):
        encoder.encode(["a", 3])


def test_what_l2v_can_load_is_l2vs_own(tiny_model, tmp_path):
    Encoder.from_pretrained(tiny_model, device="cpu").save(tmp_path / "own")
    assert not is_theirs(EncoderSettings(str(tiny_model)))
    assert not is_theirs(EncoderSettings(str(tmp_path / "own")))
    (tmp_path / "own" / "l2v.json").unlink()  # a decoder, a pooling: saved by sentence-transformers, say
    assert not is_theirs(EncoderSettings(str(tmp_path / "own")))
    assert is_theirs(EncoderSettings(str(tmp_path / "own"), library="sentence-transformers"))
    forced = load_encoder(EncoderSettings(str(tmp_path / "own"), library="sentence-transformers"), device="cpu")
    ours = load_encoder(EncoderSettings(str(tmp_path / "own")), device="cpu")
    np.testing.assert_allclose(forced.encode(SENTENCES), ours.encode(SENTENCES), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"attention": "causal"}, "attention is no setting of library=sentence-transformers; it takes revision, dtype"),
        ({"pooling": "mean"}, "pooling is no setting of library=sentence-transformers"),
        ({"template": "[ {text} ]"}, "template is no setting"),
    ],
)
def test_settings_that_the_library_has_not_are_refused(bert, settings, told):
    with pytest.raises(L2VError, match=told):
        load_encoder(EncoderSettings(str(bert), **settings))


def test_a_missing_library_and_a_damaged_folder_end_in_one_line(bert, tmp_path, monkeypatch):
    (tmp_path / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.Strange"}]'
    )
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(L2VError, match="sentence-transformers: ") as error:
        load_encoder(EncoderSettings(str(tmp_path)))
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(L2VError, match=r"is not installed; `pip install 'l2v\[sentence-transformers\]'`"):
        load_encoder(EncoderSettings(str(bert)))


def test_encode_writes_its_vectors(bert, encoder, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES))
    given = [f"encoder={bert}", f"files={tmp_path / 'texts.txt'}", f"output={tmp_path / 'out'}", "trainer=cpu"]
    script("encode").main(composed("encode", [*given, "shard_rows=4", "batch_size=2"]))
    files = sorted((tmp_path / "out").glob("*.parquet"))
    vectors = np.concatenate([np.stack(pyarrow.parquet.read_table(file)["vector"].to_numpy()) for file in files])
    np.testing.assert_allclose(vectors, encoder.encode(SENTENCES), atol=1e-6)
    with pytest.raises(L2VError, match="truncate_dim=9: expected at most the 8 dimensions"):
        script("encode").main(composed("encode", [*given[:2], f"output={tmp_path / 'o'}", given[3], "truncate_dim=9"]))


def test_mine_ranks_with_it(bert, tmp_path):
    pairs = [{"query": text[:12], "positive": text} for text in SENTENCES]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    given = [f"encoder={bert}", f"pairs={tmp_path / 'pairs.jsonl'}", f"output={tmp_path / 'out.jsonl'}"]
    script("mine").main(
        composed("mine", [*given, f"cache={tmp_path / 'c'}", "percentage_margin=null", "num_negatives=2"])
    )
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == len(SENTENCES) and all(len(row["negative"]) == 2 for row in rows)
