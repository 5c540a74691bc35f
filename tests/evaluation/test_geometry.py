"""Anisotropy, uniformity and alignment against loops over all pairs."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from l2v.encoders.texts import unit
from l2v.errors import L2VError
from l2v.evaluation.analyses import geometry
from l2v.evaluation.analyses.geometry import Geometry, alignment, anisotropy, uniformity
from l2v.evaluation.tasks.sts import StsPairs


@pytest.mark.parametrize("block", [1, 3, 1024])
def test_they_equal_loops_over_pairs(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(geometry, "_BLOCK", block)
    vectors = unit(np.random.default_rng(0).normal(0.3, 1, (11, 5)))
    pairs = list(itertools.combinations(vectors, 2))
    assert anisotropy(vectors) == pytest.approx(np.mean([x @ y for x, y in pairs]))
    mean = np.mean([math.exp(-2 * ((x - y) ** 2).sum()) for x, y in pairs])
    assert uniformity(vectors) == pytest.approx(math.log(mean))
    assert alignment(vectors[:5], vectors[5:10]) == pytest.approx(
        np.mean([((x - y) ** 2).sum() for x, y in zip(vectors[:5], vectors[5:10], strict=True)])
    )


def test_worked_out_by_hand() -> None:
    same = unit(np.full((4, 3), 7.0, np.float64))
    assert (anisotropy(same), uniformity(same), alignment(same, same)) == pytest.approx((1, 0, 0))
    opposite = np.array([[1.0, 0], [-1.0, 0]])
    assert (anisotropy(opposite), uniformity(opposite)) == pytest.approx((-1, -8))
    assert alignment(opposite, opposite[::-1]) == pytest.approx(4)
    assert anisotropy(np.eye(6)) == pytest.approx(0) and uniformity(np.eye(6)) == pytest.approx(-4)
    assert np.isfinite(unit(np.zeros((2, 3), np.float32))).all()


@pytest.fixture
def pairs(tmp_path: Path) -> StsPairs:
    (tmp_path / "pairs.tsv").write_text("5\ta\tb\n4\tc\td\n4.5\ta\tc\n0\tb\td\n")
    return StsPairs(str(tmp_path / "pairs.tsv"), first=1, second=2, score=0, instruction="say")


def test_texts_count_once_and_pairs_above_the_score(pairs: StsPairs) -> None:
    asked = []

    def encode(texts: list[str], *, instruction: str | None, show_progress_bar: bool) -> np.ndarray:
        asked.append((texts, instruction))
        places = {"a": (2, 0), "b": (0, 3), "c": (1, 0), "d": (0, -1)}
        return np.array([places[text] for text in texts], np.float32)

    result = Geometry(pairs).run(SimpleNamespace(encode=encode))
    assert asked == [(["a", "c", "b", "d"], "say")]
    assert (result["texts"], result["pairs"]) == (4, 2)
    assert result["alignment"] == pytest.approx((2 + 0) / 2)
    assert result["anisotropy"] == pytest.approx((1 - 1 + 0) / 6)


def test_a_result_is_pinned_by_the_content_and_the_columns_of_the_pairs(pairs: StsPairs) -> None:
    pinned = [Geometry(pairs).fingerprint(), Geometry(replace(pairs, first=2)).fingerprint()]
    Path(str(pairs.file)).write_text("5\ta\tother\n5\tc\td\n")
    pinned += [Geometry(pairs).fingerprint(), pairs.fingerprint()]
    assert len({json.dumps(one) for one in pinned}) == 4


def test_no_positive_pair_is_told(pairs: StsPairs) -> None:
    with pytest.raises(L2VError, match=r"no pair has a score above 5\.0; lower the task's positive"):
        Geometry(pairs, positive=5.0).run(SimpleNamespace())


@pytest.mark.slow
def test_wikipedia_pairs_are_a_sentence_and_each_passage_of_its_article() -> None:
    pytest.importorskip("gensim", reason="the package gensim, which holds the texts, is not installed")
    task = Geometry(geometry.WikipediaRetrieval())
    queries, passages, owners = task.pairs.data()
    every, first, second = task._pairs()
    assert every == [*queries, *passages] == task.evaluated_texts()
    assert second == passages and first[4] == queries[owners[4]]
