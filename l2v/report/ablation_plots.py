"""Scores against the settings of an ablation: plots with a line a value, and a table with seeds folded."""

from typing import Any

from l2v.report.ablation import order
from l2v.report.curves import figure, legend
from l2v.report.markup import (
    Html,
    cell,
    column_head,
    decimals_for,
    el,
    join,
    number_text,
    row_head,
    score_head,
    table,
    text_cell,
)
from l2v.report.plots import Spread, spread_plot
from l2v.report.tables import best_of, shown


def ablation_section(ablations: list[dict[str, Any]], tasks: dict[str, dict[str, Any]]) -> Html | None:
    """A part for each ablation of ``runs.json``.

    Args:
        ablations: as there.
        tasks: task -> one of its scores, with label, metric and direction.
    """
    parts = [_part(number, one, tasks) for number, one in enumerate(ablations)]
    if not parts:
        return None
    note = "Runs that differ in these settings only, and in seeds: mean ± standard deviation over a point (n − 1)."
    return join([el("p", note, class_="note"), *parts])


def _part(number: int, ablation: dict[str, Any], tasks: dict[str, dict[str, Any]]) -> Html:
    settings, points = ablation["settings"], ablation["points"]
    named = {task: score for task, score in tasks.items() if any(task in point["scores"] for point in points)}
    title = (
        f"{ablation['stage']} by {' and '.join(map(_called, settings))}" if settings else f"{ablation['stage']}: seeds"
    )
    lines = _Lines(settings, points) if settings else None
    figures = [
        figure(score["label"], score["metric"], lines.plot(f"ablation-{number}-{place}", task, score))
        for place, (task, score) in enumerate(named.items())
        if lines
    ]
    plots = el("div", join(figures), class_="plots") if figures else None
    return el(
        "div",
        join([el("h3", title), lines and lines.buttons(), plots, _table(settings, points, named)]),
        class_="curves",
    )


class _Lines:
    """Which of the settings runs along the plots, and which has a line a value."""

    def __init__(self, settings: list[str], points: list[dict[str, Any]]) -> None:
        values = {key: _distinct(points, key) for key in settings}
        numeric = [key for key in settings if all(not order(value)[0] for value in values[key])]
        self.along = max(numeric or settings, key=lambda key: len(values[key]))
        self.places = values[self.along]
        self.is_numeric = self.along in numeric
        self.by = next((key for key in settings if key != self.along), None)
        self.kinds = values[self.by] if self.by else [None]
        self.points = points

    def buttons(self) -> Html | None:
        if self.by is None:
            return None
        return legend([f"{_called(self.by)} = {shown(kind)}" for kind in self.kinds])

    def plot(self, name: str, task: str, score: dict[str, Any]) -> Html:
        spreads = []
        for line, kind in enumerate(self.kinds):
            found = [
                (self._place(point["settings"][self.along]), one["mean"], one["deviation"] or 0.0)
                for point in self.points
                if (self.by is None or point["settings"][self.by] == kind) and (one := point["scores"].get(task))
            ]
            label = score["label"] if self.by is None else f"{_called(self.by)} = {shown(kind)}"
            spreads.append(Spread(label, line, found))
        ticks = {self._place(value): shown(value) for value in self.places}
        return spread_plot(name, f"{score['label']} by {_called(self.along)}", spreads, _called(self.along), ticks)

    def _place(self, value: Any) -> float:
        return float(value) if self.is_numeric else float(self.places.index(value))


def _called(setting: str) -> str:
    """``mntp: stage.masking_probability`` without what needs no word."""
    return setting.replace("stage.", "", 1)


def _distinct(points: list[dict[str, Any]], key: str) -> list[Any]:
    by_text = {shown(point["settings"][key]): point["settings"][key] for point in points}
    return sorted(by_text.values(), key=order)


def _table(settings: list[str], points: list[dict[str, Any]], tasks: dict[str, dict[str, Any]]) -> Html:
    decimals = {task: decimals_for(p["scores"][task]["mean"] for p in points if task in p["scores"]) for task in tasks}
    best = {
        task: best_of([p["scores"][task]["mean"] for p in points if task in p["scores"]], score["higher_is_better"])
        for task, score in tasks.items()
    }
    head = [column_head(_called(key)) for key in settings or ["first run"]]
    head += [column_head("runs", number=True), *map(score_head, tasks.values())]
    body = []
    for point in points:
        first, *others = [shown(value) for value in point["settings"].values()] or point["runs"][:1]
        count = len(point["runs"])
        scores = [
            _score(point["scores"].get(t), decimals[t], best[t] if len(points) > 1 else None, count) for t in tasks
        ]
        body.append([row_head(first), *map(text_cell, others), cell(count, count), *scores])
    return table(head, body)


def _score(score: dict[str, Any] | None, decimals: int, best: float | None, runs: int) -> Html:
    if score is None:
        return cell(number_text(None, decimals))
    text: Any = number_text(score["mean"], decimals)
    if score["mean"] == best:
        text = el("b", text, title="best")
    deviation = score["deviation"]
    spread = None if deviation is None else f" ± {number_text(deviation, decimals)}"
    fewer = None if (known := len(score["values"])) == runs else f" ({known} of {runs})"
    return cell(join([text, spread, fewer]), score["mean"])
