"""Scores of labelled words against numbers worked out by hand."""

import pytest

from l2v.probing.scores import tagging_scores

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def test_spans_are_right_when_borders_and_type_are() -> None:
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O", "B-PER"], ["O", "O"]]
    predicted = [["B-PER", "I-PER", "O", "B-PER"], ["B-LOC", "I-LOC", "B-PER"], ["O", "I-LOC"]]
    # gold: PER 0-1, LOC 3 | LOC 0, PER 2; predicted: PER 0-1, PER 3 | LOC 0-1, PER 2 | LOC 1: right are two of PER
    scores = tagging_scores(gold, predicted, LABELS, spans=True)
    assert scores["paper_accuracy"] == pytest.approx(6 / 9)
    assert (scores["precision"], scores["recall"]) == pytest.approx((2 / 5, 2 / 4))
    assert scores["f1"] == pytest.approx(2 * 2 / (5 + 4))
    assert scores["classes"]["PER"] == pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "support": 2})
    assert scores["classes"]["LOC"] == pytest.approx({"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2})
    assert scores["confusion"] == [[2, 0, 0, 0, 2], [0, 2, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]
    assert (scores["words"], scores["sentences"]) == (9, 3)


def test_labels_without_spans() -> None:
    scores = tagging_scores([["N", "V", "N"]], [["N", "N", "N"]], ["N", "V", "X"], spans=False)
    assert scores["paper_accuracy"] == pytest.approx(2 / 3) and "f1" not in scores
    assert scores["classes"]["N"] == pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "support": 2})
    assert scores["classes"].keys() == {"N", "V"}


def test_no_span_at_all() -> None:
    scores = tagging_scores([["O"]], [["O"]], LABELS, spans=True)
    assert (scores["paper_accuracy"], scores["f1"], scores["classes"]) == (1.0, 0.0, {})
