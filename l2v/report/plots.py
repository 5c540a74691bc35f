"""Plots as inline SVG, in the page's colours and font."""

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from numpy.typing import NDArray

from l2v.report.markup import Html, number_text
from l2v.report.runs import Record, Series

# Name of a CSS variable: colour on a light page, on a dark one. Plots are drawn in the light ones, which are then
# replaced by the variables, so they follow the page.
PALETTE = {
    "ink": ("#1c2229", "#e4e8ed"),
    "muted": ("#59636f", "#9ba6b3"),
    "rule": ("#d9dee4", "#363e48"),
    "page": ("#fefefe", "#15191e"),
    "panel": ("#f4f6f8", "#1d2229"),
    "accent": ("#1d5fae", "#7fb4f2"),
    "second": ("#b0500e", "#f0a365"),
    "better": ("#1b6a3d", "#74d09b"),
    "worse": ("#9b2c2c", "#f29090"),
    "c0": ("#2166b0", "#7db7f5"),
    "c1": ("#c2500c", "#f39b5c"),
    "c2": ("#1a7a4c", "#6fd19c"),
    "c3": ("#8a3fa0", "#cf9be8"),
    "c4": ("#c21f5b", "#f5799f"),
    "c5": ("#0f8a9d", "#5fd0de"),
    "c6": ("#7a5a00", "#d9b84a"),
    "c7": ("#6b7280", "#aab3bf"),
    "c8": ("#d17fb5", "#f2b8dc"),
    "c9": ("#8fae1b", "#c9e265"),
}
COLOUR = {name: light for name, (light, _) in PALETTE.items()}
PLOT_SETTINGS: dict[Any, Any] = {
    "font.size": 10.5,
    "text.color": COLOUR["ink"],
    "text.parse_math": False,
    "axes.labelcolor": COLOUR["muted"],
    "axes.labelsize": 10.5,
    "axes.edgecolor": COLOUR["rule"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOUR["rule"],
    "grid.linewidth": 0.6,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.color": COLOUR["rule"],
    "ytick.color": COLOUR["rule"],
    "xtick.labelcolor": COLOUR["muted"],
    "ytick.labelcolor": COLOUR["muted"],
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "path.simplify": True,
    "path.simplify_threshold": 0.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "l2v",
}
_WIDTH = 3.7  # inches; a plot is as wide as its place on the page, where its text is then as large as the page's
_COLOURS, _DASHES = 10, (("solid", "-"), ("dashed", (0, (4, 2))), ("dotted", (0, (1, 1.5))))
_POINTS = 200  # of a curve, which are more than its plot is wide on most screens


@dataclass(frozen=True)
class Curve:
    """A curve among others: those of the same run have the same number in all plots of a group."""

    label: str
    number: int
    """Decides colour and dashes."""
    series: Series
    marked: bool = False
    """A dot at each point."""


def plot_svg(
    name: str,
    description: str,
    draw: Callable[[Axes], None],
    height: float = 2.7,
    ticks: dict[float, str] | None = None,
) -> Html:
    """Draw on one pair of axes and return it as inline SVG, in the page's colours and font.

    Args:
        name: unique in the page; the prefix of every id in the drawing.
        description: for readers who do not see it.
        draw: draws on the axes.
        height: in inches, for a width of 3.7.
        ticks: what stands where along the plot; None: numbers.
    """
    with matplotlib.rc_context(PLOT_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's browser has the glyphs
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        if ticks is None:
            axes.locator_params(axis="x", nbins=5)
        else:
            axes.set_xticks(list(ticks), [clipped(text) for text in ticks.values()])
        if isinstance(axes.yaxis.get_major_formatter(), ScalarFormatter):
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 5))
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    body = buffer.getvalue().partition("<svg")[2].partition(">")[2]  # without the XML prologue and the fixed size
    body = re.sub(r'<g id="(?!run\d)[^"]*"', "<g", body)
    body = re.sub(r"font-family: [^;]*; |\s*\n\s*", lambda found: "\n" if "\n" in found[0] else "", body)
    opening = f'<svg viewBox="0 0 {72 * _WIDTH:g} {72 * height:g}" role="img" aria-label="{html.escape(description)}">'
    return Html(opening + re.sub(r"<[^<>]*>", lambda tag: _adopted(tag[0], name), body))


def _adopted(tag: str, prefix: str) -> str:
    """A tag of a drawing with its own ids and the page's colours."""
    tag = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", tag)
    if tag.startswith(("<path", "<use", "<text")):
        tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)
    for name, colour in COLOUR.items():
        tag = tag.replace(colour, f"var(--{name})")
    return tag


def score_plot(name: str, rows: list[dict[str, Any]], task: str, reference: str, decimals: int) -> Html:
    """A dot per run on the task's own scale, and a line where the paper's number of its model is."""
    scored = [
        (row["label"], row["scores"][task]) for row in rows if row["scores"].get(task, {}).get("value") is not None
    ]
    values = [score["value"] for _, score in scored]
    papers = [score["paper"]["value"] if score.get("paper") else None for _, score in scored]
    all_values = [*values, *(paper for paper in papers if paper is not None)]
    span = max(all_values) - min(all_values) or abs(values[0]) * 0.1 or 1.0

    def draw(axes: Axes) -> None:
        for place, (label, score) in enumerate(scored):
            face = COLOUR["accent"] if score["best"] else COLOUR["page"]
            axes.plot(score["value"], place, "o", markersize=7, color=COLOUR["accent"], markerfacecolor=face, zorder=3)
            weight = "bold" if score["best"] else "normal"
            axes.annotate(
                number_text(score["value"], decimals),
                (1, place),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="center",
                fontsize=10.5,
                fontweight=weight,
            )
            if label == reference:
                axes.axvline(score["value"], color=COLOUR["muted"], linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        for place, paper in enumerate(papers):
            if paper is not None:
                axes.plot(paper, place, "|", markersize=13, markeredgewidth=1.8, color=COLOUR["second"], zorder=2)
        axes.set_yticks(range(len(scored)), [clipped(label) for label, _ in scored])
        axes.tick_params(axis="y", length=0, labelcolor=COLOUR["ink"], labelsize=10.5)
        axes.set_xlim(min(all_values) - 0.08 * span, max(all_values) + 0.5 * span)  # room for the numbers
        axes.set_ylim(len(scored) - 0.5, -0.5)
        axes.spines["left"].set_visible(False)

    told = ", ".join(
        f"{label} {number_text(score['value'], decimals)}"
        + (f" (paper {number_text(paper, decimals)})" if paper is not None else "")
        for (label, score), paper in zip(scored, papers, strict=True)
    )
    return plot_svg(name, f"{scored[0][1]['label']}: {told}", draw, height=0.55 + 0.3 * len(scored))


def clipped(label: str, length: int = 16) -> str:
    """A label that fits beside a plot: the middle of a long one is left out."""
    return label if len(label) <= length else f"{label[: length // 2 - 1]}…{label[-length // 2 :]}"


def loss_plot(name: str, run: Record) -> Html | None:
    """Training loss of one run, raw and smoothed, and validation loss, over the steps."""
    train, validation = _visible(run.series("train/loss")), _visible(run.series("validation/loss"))
    if not len(train[0]) and not len(validation[0]):
        return None

    def draw(axes: Axes) -> None:
        if len(train[0]):
            window = _window(train)
            axes.plot(*train, color=COLOUR["accent"], alpha=0.45, linewidth=0.8, label="training")
            if window > 1:
                smoothed = _smoothed(train[1], window)
                axes.plot(train[0], smoothed, color=COLOUR["ink"], linewidth=1.4, label=f"mean of {window}")
        if len(validation[0]):
            axes.plot(*validation, "o-", color=COLOUR["second"], markersize=4, linewidth=0.9, label="validation")
        axes.set_xlabel("steps")
        axes.legend(loc="best")

    return plot_svg(name, f"Loss of {run.label} over the training steps", draw)


def curves_plot(name: str, title: str, curves: Sequence[Curve], along: str = "steps") -> Html | None:
    """Curves of several runs in one plot; their legend is the page's. None without a point that can be drawn.

    Args:
        name: unique in the page.
        title: for readers who do not see it.
        curves: each is a group in the drawing whose id ends with ``-run`` and its number.
        along: what the horizontal axis counts.
    """
    shown = [(curve, _thinned(_visible(curve.series))) for curve in curves]
    if not any(len(steps) for _, (steps, _) in shown):
        return None

    def draw(axes: Axes) -> None:
        for curve, points in shown:
            if len(points[0]):
                line = axes.plot(
                    *points,
                    color=COLOUR[f"c{curve.number % _COLOURS}"],
                    linestyle=_DASHES[curve.number // _COLOURS % len(_DASHES)][1],
                    marker="o" if curve.marked or len(points[0]) == 1 else None,
                    markersize=3.6,
                    linewidth=1.5,
                )
                line[0].set_gid(f"run{curve.number}")
        axes.set_xlabel(along)

    return plot_svg(name, f"{title} of {', '.join(curve.label for curve in curves)}", draw)


@dataclass(frozen=True)
class Spread:
    """A line of means with their deviations."""

    label: str
    number: int
    """Decides colour and dashes."""
    points: list[tuple[float, float, float]]
    """Place along the plot, mean and deviation."""


def spread_plot(name: str, title: str, spreads: Sequence[Spread], along: str, ticks: dict[float, str]) -> Html:
    """Means over a setting, each with a bar of its deviation to either side; their legend is the page's.

    Args:
        name: unique in the page.
        title: for readers who do not see it.
        spreads: each is a group in the drawing whose id ends with ``-run`` and its number.
        along: what the horizontal axis is.
        ticks: place -> what stands there.
    """

    def draw(axes: Axes) -> None:
        for spread in filter(lambda one: one.points, spreads):
            means = [(place, mean) for place, mean, _ in spread.points]
            bars = [
                point
                for place, mean, deviation in spread.points
                for point in ((np.nan, np.nan), (place, mean - deviation), (place, mean + deviation))
            ]
            line = axes.plot(
                *zip(*means, *bars, strict=True),
                color=COLOUR[f"c{spread.number % _COLOURS}"],
                linestyle=_DASHES[spread.number // _COLOURS % len(_DASHES)][1],
                marker="o",
                markevery=list(range(len(means))),
                markersize=4,
                linewidth=1.5,
            )
            line[0].set_gid(f"run{spread.number}")
        axes.set_xlabel(along)
        axes.margins(x=0.06)

    told = "; ".join(
        f"{spread.label}: " + ", ".join(f"{ticks[place]} {mean:.4f}" for place, mean, _ in spread.points)
        for spread in spreads
    )
    return plot_svg(name, f"{title}. {told}", draw, ticks=ticks)


def line_style(number: int) -> str:
    """The line of the curves of that number, as CSS has a border's."""
    return f"{_DASHES[number // _COLOURS % len(_DASHES)][0]} var(--c{number % _COLOURS})"


def smoothed(series: Series) -> tuple[Series, int]:
    """A running mean over a twentieth of the points, and over how many that is."""
    steps, values = _visible(series)
    window = _window((steps, values))
    return (steps, _smoothed(values, window)) if window > 1 else (steps, values), window


def layer_plot(name: str, points: Sequence[tuple[int, float]], label: str) -> Html:
    """A value over the layers of a model."""

    def draw(axes: Axes) -> None:
        layers, values = zip(*sorted(points), strict=True)
        axes.plot(layers, values, "o-", color=COLOUR["second"], markersize=4, linewidth=1.2)
        axes.set_xlabel("layer (0: embeddings)")
        axes.set_ylabel(label)

    told = ", ".join(f"{layer}: {value:.4f}" for layer, value in sorted(points))
    return plot_svg(name, f"{label} by layer: {told}", draw)


def _visible(series: Series) -> Series:
    finite = np.isfinite(series[1])
    return series[0][finite], series[1][finite]


def _window(series: Series) -> int:
    return max(1, len(series[0]) // 20)


def _thinned(series: Series) -> Series:
    """At most some 200 points, evenly spaced, the last one among them."""
    count = len(series[0])
    if count <= _POINTS:
        return series
    kept = np.linspace(0, count - 1, _POINTS).round().astype(int)
    return series[0][kept], series[1][kept]


def _smoothed(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred running mean over ``window`` points, over fewer at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")
