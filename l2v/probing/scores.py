"""Scores of labelled words: token accuracy, and precision, recall and F1 of spans by seqeval."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np


def tagging_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str], *, spans: bool
) -> dict[str, Any]:
    """Scores over all words.

    ``paper_accuracy`` is the paper's number (table 4): micro precision over all labelled tokens, which is token
    accuracy. With ``spans`` (labels in IOB2), ``precision``, ``recall`` and ``f1`` are micro averages over spans, a
    span being right when its borders and its type are; a predicted I- that follows nothing of its type begins a span,
    as in conlleval. ``classes`` are types of spans, else labels.

    Args:
        gold: sentences of labels.
        predicted: of the same lengths.
        labels: the order of the confusion matrix.
        spans: whether labels stand for spans.

    Returns:
        fractions from 0 to 1, counts, and ``confusion``: rows are gold labels, columns predicted ones.
    """
    number_of = {label: number for number, label in enumerate(labels)}
    pairs = [(number_of[g], number_of[p]) for a, b in zip(gold, predicted, strict=True) for g, p in _same(a, b)]
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(confusion, tuple(np.array(pairs).T), 1)
    scores: dict[str, Any] = {
        "paper_accuracy": float(np.trace(confusion) / confusion.sum()),
        "words": int(confusion.sum()),
        "sentences": len(gold),
    }
    if spans:
        report = _span_report(gold, predicted)
        scores |= {ours: report["micro avg"][theirs] for theirs, ours in _NAMES.items() if ours != "support"}
        averages = ("micro avg", "macro avg", "weighted avg")
        scores["classes"] = {
            name: {ours: values[theirs] for theirs, ours in _NAMES.items()}
            for name, values in report.items()
            if name not in averages
        }
    else:
        scores["classes"] = _classes(confusion, labels)
    return {**scores, "labels": list(labels), "confusion": confusion.tolist()}


_NAMES = {"precision": "precision", "recall": "recall", "f1-score": "f1", "support": "support"}


def _same(a: Sequence[str], b: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(a, b, strict=True))


def _span_report(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    from seqeval.metrics import classification_report

    a, b = [list(sentence) for sentence in gold], [list(sentence) for sentence in predicted]
    if all(label == "O" for sentences in (a, b) for sentence in sentences for label in sentence):
        return {"micro avg": {"precision": 0.0, "recall": 0.0, "f1-score": 0.0, "support": 0}}  # seqeval fails on none
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = classification_report(a, b, output_dict=True, zero_division=0)
    return {
        name: {key: int(value) if key == "support" else float(value) for key, value in values.items()}
        for name, values in report.items()
    }


def _classes(confusion: np.ndarray, labels: Sequence[str]) -> dict[str, dict[str, float | int]]:
    """Precision, recall and F1 of each label that occurs."""
    right, support, found = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    precision = right / np.maximum(found, 1)
    recall = right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(support + found, 1)
    return {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
        for label, p, r, f, s, n in zip(labels, precision, recall, f1, support, found, strict=True)
        if s or n
    }
