"""Checkpoints laid out like those of the LLM2Vec authors.

``reference/llm2vec`` was saved by llm2vec 0.2.3 itself, and so were the vectors that it expects
(``benchmarks/parity/reference.py published``).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l2v.encoder import Encoder

FOLDER = Path(__file__).parent / "reference" / "llm2vec"
INPUTS = json.loads((FOLDER / "texts.json").read_text(encoding="utf-8"))
LEAST_COSINE = 0.99999


@pytest.fixture(autouse=True)
def in_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapters name ./base as their base, as published ones name a hub id."""
    monkeypatch.chdir(FOLDER)


def load(*adapters: str, **settings: Any) -> Encoder:
    return Encoder.from_pretrained(FOLDER / "mntp", adapters=[FOLDER / name for name in adapters], **settings)


def least_cosine(found: np.ndarray, expected: str) -> float:
    with np.load(FOLDER / "expected.npz") as vectors:
        wanted = vectors[expected]
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(wanted, axis=-1)
    return float(((found * wanted).sum(axis=-1) / norms).min())


@pytest.mark.parametrize(("adapters", "expected"), [([], "mntp"), (["simcse"], "simcse")])
def test_vectors_are_those_of_the_reference(adapters: list[str], expected: str) -> None:
    encoder = load(*adapters)
    texts, instruction = INPUTS["texts"], INPUTS["instruction"]
    assert least_cosine(encoder.encode(texts), expected) >= LEAST_COSINE
    with_instruction = encoder.encode(texts, instruction=instruction)
    assert least_cosine(with_instruction, f"{expected}_instruction") >= LEAST_COSINE


def test_one_folder_is_enough() -> None:
    assert least_cosine(Encoder.from_pretrained(FOLDER / "mntp").encode(INPUTS["texts"]), "mntp") >= LEAST_COSINE


def test_settings_are_those_of_the_last_adapter() -> None:
    mntp, simcse = load(), load("simcse")
    assert (mntp.pooling, mntp.max_length) == ("mean", 512)
    assert (simcse.pooling, simcse.max_length) == ("weighted_mean", 128)


def test_own_settings_go_before_saved_ones() -> None:
    encoder = load("simcse", pooling="mean", max_length=64)
    assert (encoder.pooling, encoder.max_length) == ("mean", 64)
    assert least_cosine(encoder.encode(INPUTS["texts"]), "simcse") < 0.999


def test_a_saved_encoder_gives_the_same_vectors(tmp_path: Path) -> None:
    load("simcse").save(tmp_path / "encoder")
    saved = Encoder.from_pretrained(tmp_path / "encoder")
    assert least_cosine(saved.encode(INPUTS["texts"]), "simcse") >= LEAST_COSINE
    with_instruction = saved.encode(INPUTS["texts"], instruction=INPUTS["instruction"])
    assert least_cosine(with_instruction, "simcse_instruction") >= LEAST_COSINE
