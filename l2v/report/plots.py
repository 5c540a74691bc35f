"""Plots as inline SVG, in the page's colours and font."""

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
    "category-1": ("#2f6fbf", "#7db3f5"),
    "category-2": ("#c65a11", "#f2a05e"),
    "category-3": ("#23825a", "#63cf9c"),
    "category-4": ("#8a4bb3", "#c79bf0"),
    "category-5": ("#a87a00", "#e3c04f"),
    "category-6": ("#c13b6f", "#f48fb4"),
    "category-7": ("#12868c", "#58ccd3"),
    "category-8": ("#6e5a4b", "#bfae9f"),
}
_COLOUR = {name: light for name, (light, _) in PALETTE.items()}
_PLOT_SETTINGS: dict[Any, Any] = {
    "font.size": 10,
    "text.color": _COLOUR["ink"],
    "text.parse_math": False,
    "axes.labelcolor": _COLOUR["muted"],
    "axes.labelsize": 10,
    "axes.edgecolor": _COLOUR["rule"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _COLOUR["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": _COLOUR["rule"],
    "ytick.color": _COLOUR["rule"],
    "xtick.labelcolor": _COLOUR["muted"],
    "ytick.labelcolor": _COLOUR["muted"],
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "path.simplify": True,
    "path.simplify_threshold": 0.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "l2v",
}
_WIDTH = 3.7  # inches; a plot is as wide as its place on the page, and a little larger on a phone


def _plot(name: str, description: str, draw: Callable[[Axes], None], height: float = 2.7) -> Html:
    """Draw on one pair of axes and return it as inline SVG, in the page's colours and font.

    Args:
        name: unique in the page; the prefix of every id in the drawing.
        description: for readers who do not see it.
        draw: draws on the axes.
        height: in inches, for a width of 3.7.
    """
    with matplotlib.rc_context(_PLOT_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's browser has the glyphs
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.locator_params(axis="x", nbins=5)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    body = buffer.getvalue().partition("<svg")[2].partition(">")[2]  # without the XML prologue and the fixed size
    opening = f'<svg viewBox="0 0 {72 * _WIDTH:g} {72 * height:g}" role="img" aria-label="{html.escape(description)}">'
    return Html(opening + re.sub(r"<[^<>]*>", lambda tag: _adopted(tag[0], name), body))


def _adopted(tag: str, prefix: str) -> str:
    """A tag of a drawing with its own ids and the page's colours."""
    tag = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", tag)
    for name, colour in _COLOUR.items():
        tag = tag.replace(colour, f"var(--{name})")
    return tag


def score_plot(name: str, rows: list[dict[str, Any]], task: str, reference: str, decimals: int) -> Html:
    """A dot per run on the task's own scale."""
    scored = [
        (row["label"], row["scores"][task]) for row in rows if row["scores"].get(task, {}).get("value") is not None
    ]
    values = [score["value"] for _, score in scored]
    span = max(values) - min(values) or abs(values[0]) * 0.1 or 1.0

    def draw(axes: Axes) -> None:
        for place, (label, score) in enumerate(scored):
            face = _COLOUR["accent"] if score["best"] else _COLOUR["page"]
            axes.plot(score["value"], place, "o", markersize=7, color=_COLOUR["accent"], markerfacecolor=face, zorder=3)
            weight = "bold" if score["best"] else "normal"
            axes.annotate(
                number_text(score["value"], decimals),
                (score["value"], place),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize=9.5,
                fontweight=weight,
            )
            if label == reference:
                axes.axvline(score["value"], color=_COLOUR["muted"], linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.set_yticks(range(len(scored)), [_clipped(label) for label, _ in scored])
        axes.tick_params(axis="y", length=0, labelcolor=_COLOUR["ink"], labelsize=10)
        axes.set_xlim(min(values) - 0.08 * span, max(values) + 0.5 * span)
        axes.set_ylim(len(scored) - 0.5, -0.5)
        axes.spines["left"].set_visible(False)

    told = ", ".join(f"{label} {number_text(score['value'], decimals)}" for label, score in scored)
    return _plot(name, f"{scored[0][1]['label']}: {told}", draw, height=0.55 + 0.3 * len(scored))


def _clipped(label: str, length: int = 16) -> str:
    """A label that fits beside a plot: the middle of a long one is left out."""
    return label if len(label) <= length else f"{label[: length // 2 - 1]}…{label[-length // 2 :]}"


def loss_plot(name: str, run: Record) -> Html | None:
    """Training loss, raw and smoothed, and validation loss, over the steps."""
    train, validation = _visible(run.series("train/loss")), _visible(run.series("validation/loss"))
    if not len(train[0]) and not len(validation[0]):
        return None
    unit = "nats per masked token" if run.record.get("stage") == "mntp" else "nats"

    def draw(axes: Axes) -> None:
        if len(train[0]):
            window = max(1, len(train[0]) // 20)
            axes.plot(*train, color=_COLOUR["accent"], alpha=0.45, linewidth=0.8, label="training")
            if window > 1:
                smoothed = _smoothed(train[1], window)
                axes.plot(train[0], smoothed, color=_COLOUR["ink"], linewidth=1.4, label=f"mean of {window}")
        if len(validation[0]):
            axes.plot(*validation, "o-", color=_COLOUR["second"], markersize=4, linewidth=0.9, label="validation")
        axes.set_xlabel("training (steps)")
        axes.set_ylabel(f"loss ({unit})")
        axes.legend(loc="best")

    return _plot(name, f"Loss of {run.label} over the training steps, in {unit}", draw)


def curve_plot(name: str, run: Record, key: str, label: str, line: str) -> Html | None:
    """One metric over the steps."""
    points = _visible(run.series(key))
    if not len(points[0]):
        return None

    def draw(axes: Axes) -> None:
        axes.plot(*points, line, color=_COLOUR["second" if "o" in line else "accent"], markersize=4, linewidth=1.2)
        axes.set_xlabel("training (steps)")
        axes.set_ylabel(label)

    return _plot(name, f"{label} of {run.label} over the training steps", draw)


def layer_plot(name: str, points: Sequence[tuple[int, float]], label: str) -> Html:
    """A value over the layers of a model."""

    def draw(axes: Axes) -> None:
        layers, values = zip(*sorted(points), strict=True)
        axes.plot(layers, values, "o-", color=_COLOUR["second"], markersize=4, linewidth=1.2)
        axes.set_xlabel("layer (0: embeddings)")
        axes.set_ylabel(label)

    told = ", ".join(f"{layer}: {value:.4f}" for layer, value in sorted(points))
    return _plot(name, f"{label} by layer: {told}", draw)


def _visible(series: Series) -> Series:
    finite = np.isfinite(series[1])
    return series[0][finite], series[1][finite]


def _smoothed(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred running mean over ``window`` points, over fewer at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")
