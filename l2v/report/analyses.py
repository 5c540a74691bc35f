"""The analyses on the page: states under both attentions, shared prefixes, poolings, geometry and maps.

An entry of a suite's scores that has a ``plot`` is drawn by its ``kind``; the same task of several runs is drawn side
by side.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from l2v.report.analysis_plots import (
    CATEGORIES,
    MARKERS,
    alignment_plot,
    anisotropy_plot,
    cosines_plot,
    map_plot,
    margins_plot,
    pooling_plot,
    states_map,
    states_plot,
)
from l2v.report.markup import Html, cell, column_head, el, join, number_text, row_head, table
from l2v.report.runs import Record, finite

_GEOMETRY = {"anisotropy", "uniformity", "alignment"}
"""Details that make an entry one of ``evaluation=geometry``."""


class _Found(NamedTuple):
    """An entry that can be drawn."""

    run: str
    number: int
    """The run's place among all runs, and so its colour."""
    entry: dict[str, Any]

    @property
    def plot(self) -> dict[str, Any]:
        return self.entry["plot"]

    @property
    def details(self) -> dict[str, float]:
        return self.entry["details"]


def analyses_section(runs: list[Record]) -> Html | None:
    """A part for each analysis that a run has; None where there is none."""
    groups: dict[tuple[str, str, str], list[_Found]] = {}
    for number, run in enumerate(runs):
        for suite, content in run.suites.items():
            for task, entry in content["scores"].items():
                if kind := _kind(entry):
                    key = (kind, suite, entry.get("plot", {}).get("task", task))
                    groups.setdefault(key, []).append(_Found(run.label, number, entry))
    parts = [
        _PARTS[kind](f"analysis-{number}", found)
        for number, ((kind, _, _), found) in enumerate(
            sorted(groups.items(), key=lambda group: list(_PARTS).index(group[0][0]))
        )
    ]
    return join(parts) if parts else None


def _kind(entry: dict[str, Any]) -> str | None:
    plot = entry.get("plot")
    if isinstance(plot, dict):
        return plot.get("kind") if plot.get("kind") in _PARTS else None
    details = entry.get("details")
    known = isinstance(details, dict) and all(finite(details.get(key)) is not None for key in _GEOMETRY)
    return "geometry" if known else None


def _part(title: str, note: str, figures: list[Html], *more: Html | None) -> Html:
    plots = el("div", join(figures), class_="plots")
    return join([el("h3", title), el("p", note, class_="note"), plots, *(part for part in more if part)])


def _figure(title: object, small: str, plot: Html) -> Html:
    return el("figure", el("figcaption", title, el("small", small) if small else None), plot)


def _states(name: str, found: list[_Found]) -> Html:
    note = (
        "Cosine of each token's state under causal attention with the one under bidirectional attention, from the same "
        "weights. High: the switch changes little. What is below a map's scale has no colour."
    )
    # the first position, which is far below the others, would take most of the scale
    low = min(float(np.quantile(f.plot["cosine"], 0.05)) for f in found)
    lowest = min(max(0.0, float(np.floor(low * 10) / 10)), 0.9)
    lines = states_plot(f"{name}-layers", [(f.run, f.plot) for f in found], [f.number for f in found])
    maps = [
        _figure(f.run, _about_states(f), states_map(f"{name}-{number}", f.run, f.plot, lowest))
        for number, f in enumerate(found)
    ]
    return _part(found[0].entry["label"], note, [_figure("By layer", "mean over positions", lines), *maps])


def _about_states(found: _Found) -> str:
    text = f"all layers {found.details['all_layers']:.3f}"
    if layers := found.plot["causal_layers"]:
        text += f"; {len(layers)} layers stay causal"
    return text


def _prefixes(name: str, found: list[_Found]) -> Html:
    note = (
        "Query, positive and negative begin alike, and only what they share is pooled. A causal model cannot know what "
        "follows: both cosines are 1, and 0.5 of the triples count as told apart."
    )
    named = [(f.run, f.plot) for f in found]
    figures = [
        _figure("Cosines", "", cosines_plot(f"{name}-cosines", named)),
        _figure("Margins", "a dot a triple", margins_plot(f"{name}-margins", named)),
    ]
    same, other = (
        el("span", mark, style=f"color:var(--{colour})") for mark, colour in (("●", "accent"), ("●", "second"))
    )
    legend = el("p", same, " positive, or right · ", other, " negative, or wrong · ▎mean", class_="note")
    keys = (("accuracy", 3), ("positive", 4), ("negative", 4), ("margin", 4))
    columns = ("told apart", "cosine, positive", "cosine, negative", "margin")
    head = [column_head("run"), *(column_head(text, number=True) for text in columns)]
    rows = [
        [row_head(f.run), *(cell(number_text(f.details[key], digits), f.details[key]) for key, digits in keys)]
        for f in found
    ]
    title = f"{found[0].entry['label']}: {found[0].details['triples']:,} triples"
    return _part(title, note, figures, legend, table(head, rows))


def _pooling(name: str, found: list[_Found]) -> Html:
    poolings = dict((key, label) for f in found for key, label in f.plot["poolings"])
    tasks = {task["label"]: task["metric"] for f in found for task in f.plot["tasks"]}
    scores = {
        label: [(f.run, {t["label"]: t["values"] for t in f.plot["tasks"]}.get(label, {})) for f in found]
        for label in tasks
    }

    def bars(label: str) -> list[tuple[str, dict[str, float | None]]]:
        return [
            (run, {shown: finite(values[key]) for key, shown in poolings.items() if key in values})
            for run, values in scores[label]
            if values
        ]

    averages = []
    for f in found:
        of = {shown: [finite(task["values"].get(key)) for task in f.plot["tasks"]] for key, shown in poolings.items()}
        averages.append((f.run, {shown: _mean(values) for shown, values in of.items()}))
    figures = []
    if len(tasks) > 1:
        figures.append(
            _figure("Average", f"{len(tasks)} tasks", pooling_plot(f"{name}-all", averages, "average of the scores"))
        )
    figures += [
        _figure(label, metric, pooling_plot(f"{name}-{number}", bars(label), metric))
        for number, (label, metric) in enumerate(tasks.items())
    ]
    note = join(
        [
            "A text's vector made of its states in several ways, each text run once. ",
            join(_legend(list(poolings.values())), Html(" · ")),
        ]
    )
    return _part("Pooling", note, figures)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _geometry(name: str, found: list[_Found]) -> Html:
    note = (
        "Uniformity: how evenly vectors of different texts are spread. Alignment: how near those of texts that belong "
        "together are. Anisotropy: the mean cosine of different texts, 0 if their directions are spread evenly."
    )
    named, colours = [(f.run, f.details) for f in found], [f.number for f in found]
    figures = [
        _figure("Uniformity and alignment", "", alignment_plot(f"{name}-both", named, colours)),
        _figure("Anisotropy", "lower is better", anisotropy_plot(f"{name}-anisotropy", named, colours)),
    ]
    return _part(found[0].entry["label"], note, figures)


def _maps(name: str, found: list[_Found]) -> Html:
    labels = list(dict.fromkeys(label for f in found for label in f.plot["labels"]))
    method = " and ".join(dict.fromkeys({"tsne": "t-SNE", "pca": "PCA"}[f.plot["method"]] for f in found))
    note = join(
        [
            f"Each point is a text ({method}; distances between far groups mean little). The scores are those of the "
            "whole vectors. ",
            join(_legend(labels), Html(" · ")),
        ]
    )
    figures = []
    for number, f in enumerate(found):
        order = [labels.index(label) for label in f.plot["labels"]]
        plot = {**f.plot, "labels": labels, "label": [order[label] for label in f.plot["label"]]}
        about = f"purity {f.details['purity']:.2f}, silhouette {f.details['silhouette']:.2f}"
        figures.append(_figure(f.run, about, map_plot(f"{name}-{number}", f.run, plot)))
    return _part(found[0].entry["label"], note, figures)


def _legend(names: list[str]) -> list[Html]:
    """Names after their marks, in the order of the colours."""
    made = []
    for number, name in enumerate(names):
        mark = MARKERS[number // len(CATEGORIES) % len(MARKERS)][1]
        colour = f"color:var(--{CATEGORIES[number % len(CATEGORIES)]})"
        made.append(join([el("span", mark, style=colour, aria_hidden="true"), Html("&nbsp;"), name]))
    return made


_PARTS: dict[str, Callable[[str, list[_Found]], Html]] = {
    "attention_states": _states,
    "prefix_triples": _prefixes,
    "pooling": _pooling,
    "geometry": _geometry,
    "embedding_map": _maps,
}
