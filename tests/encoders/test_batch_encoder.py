"""Vectors in a pipeline of batches."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from tiny import SENTENCES

from l2v.encoders.batch_encoder import BatchEncoder
from l2v.encoders.encoder import Encoder
from l2v.errors import L2VError
from l2v.models.settings import EncoderSettings


def test_a_column_of_vectors_is_added(tiny_model: Path) -> None:
    settings = EncoderSettings(str(tiny_model), pooling="last_token")
    wanted = {"instruction": "Find it", "normalize": True, "truncate_dim": 7}
    add_vectors = BatchEncoder(settings, column="title", vector_column="of title", batch_size=2, device="cpu", **wanted)
    expected = Encoder.from_pretrained(settings).encode(SENTENCES, **wanted)
    batch = {"title": np.array(SENTENCES, dtype=object), "id": np.arange(6)}
    added = add_vectors(batch)
    assert list(added) == ["title", "id", "of title"] and list(batch) == ["title", "id"]
    assert added["of title"].dtype == np.float32
    np.testing.assert_allclose(added["of title"], expected, atol=1e-5)
    assert add_vectors({"title": []})["of title"].shape == (0, 7)


def test_datasets_maps_it(tiny_model: Path) -> None:
    add_vectors = BatchEncoder(EncoderSettings(str(tiny_model)), device="cpu")
    mapped = datasets.Dataset.from_dict({"text": SENTENCES}).map(add_vectors, batched=True, batch_size=4)
    expected = Encoder.from_pretrained(tiny_model, device="cpu").encode(SENTENCES)
    np.testing.assert_allclose(np.array(mapped["vector"]), expected, atol=1e-5)


def test_a_batch_that_it_cannot_take_is_an_error(tiny_model: Path) -> None:
    add_vectors = BatchEncoder(EncoderSettings(str(tiny_model)))
    with pytest.raises(L2VError, match="^column=text: not in the batch, which has title, id$"):
        add_vectors({"title": ["a"], "id": [1]})
    with pytest.raises(L2VError, match="^batch_format: expected numpy, whose batches are dictionaries, found list$"):
        add_vectors(["a"])  # type: ignore[arg-type]
    with pytest.raises(L2VError, match="text 1 is NoneType, expected str"):
        add_vectors({"text": ["a", None]})
