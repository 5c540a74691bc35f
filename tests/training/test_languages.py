"""Runs on texts in two languages: what their batches hold, and that a resumed run goes on with the same ones."""

import json
from pathlib import Path

import pytest
from launch import Batches, Tiny
from omegaconf import OmegaConf
from tiny import SENTENCES, make_tiny_tokenizer

from l2v import config as configs
from l2v.cli.contamination import _training_data
from l2v.data.text_mix import TextMix

UPPER, LOWER = ([text.upper() if upper else text.lower() for text in SENTENCES] for upper in (True, False))


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    return Tiny(tmp_path, tiny_model, monkeypatch)


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Overrides: a set of texts in capitals and one in small letters, of which one has thrice as many."""
    for name, texts, count in (("upper", UPPER, 10), ("lower", LOWER, 30)):
        lines = [f"{text} {number}" for number in range(count) for text in texts]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = ", ".join(f"{name}: {tmp_path / f'{name}.txt'}" for name in ("upper", "lower"))
    return ["data=languages", f"data.files={{{files}}}", "data.held_out=6"]


def in_capitals(ids: list[int]) -> bool:
    return make_tiny_tokenizer().decode(ids, skip_special_tokens=True).isupper()
