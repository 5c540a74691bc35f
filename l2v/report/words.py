"""Word-level scores on the page: by layer, by class, and which label was taken for which."""

from typing import Any

import numpy as np

from l2v.report.curves import figure, legend
from l2v.report.markup import Html, cell, column_head, el, join, number_text, row_head, table
from l2v.report.plots import Curve, curves_plot, layer_plot
from l2v.report.runs import Record

_NUMBERS = ("precision", "recall", "f1")
_OPENED = 3
"""Parts that are shown without a click; more than that are folded."""


def words_section(runs: list[Record]) -> Html | None:
    """Scores by layer, runs over one another, and a part for each run and task of ``stage=word``; None without one."""
    found = [
        (run, suite["words"]) for run in runs for suite in run.suites.values() if isinstance(suite.get("words"), dict)
    ]
    if not found:
        return None
    note = "Scores of the layer that validates best. Confusion: rows are the labels, columns what was predicted."
    opened = "" if len(found) <= _OPENED else None
    parts = [_task(number, run, words, opened) for number, (run, words) in enumerate(found)]
    return join([el("p", note, class_="note"), _by_layer(found), *parts])


def _by_layer(found: list[tuple[Record, dict[str, Any]]]) -> Html | None:
    """A plot for each task that was probed at several layers."""
    several = [(run, words) for run, words in found if len(words["by_layer"]) > 1]
    labels = list(dict.fromkeys(run.label for run, _ in several))
    figures = []
    for number, task in enumerate(dict.fromkeys(words["task"] for _, words in several)):
        probed = [(run, words) for run, words in several if words["task"] == task]
        metric = "f1" if all(_metric(words) == "f1" for _, words in probed) else "paper_accuracy"
        curves = [_layers(run.label, labels.index(run.label), words, metric) for run, words in probed]
        title = f"{task} {_called(metric)} by layer"
        plot = curves_plot(f"layers-{number}", title, curves, "layer (0: embeddings)")
        figures += [figure(title, probed[0][1]["part"], plot)] if plot else []
    if not figures:
        return None
    shown = legend(labels) if len(labels) > 1 else None
    return el("div", join([shown, el("div", join(figures), class_="plots")]), class_="curves")


def _layers(label: str, number: int, words: dict[str, Any], metric: str) -> Curve:
    rows = sorted((row["layer"], row[words["part"]][metric]) for row in words["by_layer"])
    layers, values = zip(*rows, strict=True)
    return Curve(label, number, (np.array(layers, dtype=np.int64), np.array(values, dtype=np.float64)), marked=True)


def _metric(words: dict[str, Any]) -> str:
    return "f1" if "f1" in words["scores"][words["part"]] else "paper_accuracy"


def _called(metric: str) -> str:
    return {"f1": "F1", "paper_accuracy": "token accuracy"}[metric]


def _task(number: int, run: Record, words: dict[str, Any], opened: str | None) -> Html:
    part = words["part"]
    scores = words["scores"][part]
    facts = [
        f"{part}: token accuracy {scores['paper_accuracy']:.4f}",
        *(f"{name} {scores[name]:.4f}" for name in _NUMBERS if name in scores),
        f"layer {words['layer']}",
        words["shift"].replace("_", " "),
        f"{scores['words']:,} words",
    ]
    mix = [(int(layer), weight) for layer, weight in (words["mix"] or {}).items()]
    plot = figure("Weight in the mix", "", layer_plot(f"mix-{number}", mix, "weight in the mix")) if mix else None
    return el(
        "details",
        el("summary", el("b", f"{run.label}: {words['task']}")),
        el("p", " · ".join(facts), class_="note"),
        el("div", plot, class_="plots") if plot else None,
        _classes(scores),
        el("details", el("summary", "confusion"), _confusion(scores)),
        open=opened,
    )


def _classes(scores: dict[str, Any]) -> Html:
    head = [column_head("class"), *(column_head(name, number=True) for name in (*_NUMBERS, "support"))]
    rows = [
        [
            row_head(name),
            *(cell(number_text(row[key], 4), row[key]) for key in _NUMBERS),
            cell(number_text(row["support"], 0), row["support"]),
        ]
        for name, row in scores["classes"].items()
    ]
    return table(head, rows)


def _confusion(scores: dict[str, Any]) -> Html:
    """Counts, the darker the larger their share of the row. Labels that do not occur are left out."""
    counts = scores["confusion"]
    used = [n for n in range(len(counts)) if any(counts[n]) or any(row[n] for row in counts)]
    head = [column_head("label"), *(column_head(scores["labels"][n], number=True) for n in used)]
    rows = [[row_head(scores["labels"][n]), *(_shaded(counts[n][m], sum(counts[n])) for m in used)] for n in used]
    return table(head, rows, sortable=False)


def _shaded(count: int, total: int) -> Html:
    share = round(100 * count / max(total, 1))
    colour = f"background:color-mix(in srgb, var(--accent) {share * 0.6:.0f}%, transparent)" if count else None
    return el(
        "td", count or "", class_="number", data_value=repr(float(count)), style=colour, title=f"{share}% of the row"
    )
