"""Vectors that are not finite are told with the dtype to change, wherever they are made, and no score comes of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SENTENCES, make_tiny_decoder, make_tiny_tokenizer

from l2v.data.texts import FileTexts
from l2v.embedding.embed import encode
from l2v.embedding.job import Encoding
from l2v.encoders.encoder import Encoder
from l2v.errors import L2VError
from l2v.evaluation.analyses.attention_states import AttentionStates
from l2v.evaluation.results import ResultStore
from l2v.evaluation.tasks.masked import MaskedAccuracy
from l2v.evaluation.tasks.sts import StsPairs
from l2v.models.settings import EncoderSettings


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose states go beyond what float16 holds, and whose weights do not."""
    folder = tmp_path_factory.mktemp("large")
    model = make_tiny_decoder()
    with torch.no_grad():
        model.model.norm.weight.fill_(6e4)
    model.save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


def test_encode_in_float16_says_what_to_change(large: Path) -> None:
    assert np.isfinite(Encoder.from_pretrained(large, device="cpu").encode(SENTENCES)).all()
    assert np.isfinite(Encoder.from_pretrained(large, device="cpu", dtype="bfloat16").encode(SENTENCES)).all()
    with pytest.raises(L2VError, match=r"not finite; use dtype=float32 or dtype=bfloat16: float16 ends at 65,504"):
        Encoder.from_pretrained(large, device="cpu", dtype="float16").encode(SENTENCES)


def test_broken_weights_are_told_as_such(tiny_model: Path) -> None:
    encoder = Encoder.from_pretrained(tiny_model, device="cpu")
    with torch.no_grad():
        encoder.backbone.decoder.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(
        L2VError, match="6 vectors are not finite, in dtype=float32: the model's weights or states are not"
    ):
        encoder.encode(SENTENCES)


def test_an_evaluation_of_such_a_model_prints_no_score(large: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("".join(f"{n}\t{text}\t{SENTENCES[n - 1]}\n" for n, text in enumerate(SENTENCES)))
    texts = FileTexts(str(pairs))
    encoder = Encoder.from_pretrained(large, device="cpu", dtype="float16", with_head=True)
    for task in (StsPairs(str(pairs), first=1, second=2, score=0), MaskedAccuracy(texts, block_length=8)):
        with pytest.raises(L2VError, match="not finite; use dtype=float32 or dtype=bfloat16"):
            task.run(encoder)
    with pytest.raises(L2VError, match="not finite; use dtype=float32 or dtype=bfloat16"):
        AttentionStates(texts).evaluate("states", encoder, ResultStore(tmp_path, "l2v/tiny", "0"))


@pytest.mark.parametrize("kind", ["float16", "float32", "int8", "binary"])
def test_shards_of_finite_vectors_are_finite(large: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "t.txt").write_text("\n".join(SENTENCES))
    job = Encoding(str(tmp_path / "t.txt"), str(tmp_path / "v"), vector_dtype=kind)  # type: ignore[arg-type]
    trainer = {"accelerator": "cpu", "devices": 1}
    if kind != "float16":
        encode(EncoderSettings(str(large)), job, trainer, show=False)
        return
    with pytest.raises(
        L2VError, match=r"vector_dtype=float16: ends at 65,504, and a vector has \d.*use vector_dtype=float"
    ):
        encode(EncoderSettings(str(large)), job, trainer, show=False)
    assert not list((tmp_path / "v").glob("*.parquet"))


def test_a_sentence_transformers_encoder_says_so_too(large: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    from l2v.encoders.external import SentenceTransformersEncoder

    Encoder.from_pretrained(large, device="cpu").save(large / "saved")
    model = library.SentenceTransformer(str(large / "saved"), device="cpu", model_kwargs={"dtype": torch.float16})
    with pytest.raises(L2VError, match="not finite; use dtype"):
        SentenceTransformersEncoder(model.eval()).encode(SENTENCES)
