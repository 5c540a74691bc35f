"""Plots of the analyses: one row, bar group, line or colour a run."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from l2v.report.markup import Html, number_text
from l2v.report.plots import COLOUR, clipped, plot_svg

CATEGORIES = tuple(name for name in COLOUR if re.fullmatch(r"c\d", name))
"""Colours for runs, poolings and labels, in their order."""
MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"))
"""Of labels beyond the number of colours: for matplotlib, and as text."""
_HEAT = to_rgb("#3f83d6")
"""Seen on light and dark pages; a cell's value is its opacity."""

Named = Sequence[tuple[str, dict[str, Any]]]
"""Labels of runs, with what is drawn of each."""


def states_plot(name: str, runs: Named, colours: Sequence[int]) -> Html:
    """Mean cosine of each layer: a line a run, each in the colour of its number."""

    def draw(axes: Axes) -> None:
        for number, (label, plot) in zip(colours, runs, strict=True):
            colour = category(number)
            axes.plot(plot["layers"], color=colour, linewidth=1.4, label=clipped(label))
            axes.plot(len(plot["layers"]) - 1, plot["layers"][-1], "o", color=colour, markersize=4)
        axes.set_xlabel("layer (0: embeddings)")
        axes.set_ylabel("mean cosine")
        axes.set_ylim(top=1.02)
        axes.legend(loc="best")

    told = ", ".join(f"{label} {plot['layers'][-1]:.2f}" for label, plot in runs)
    return plot_svg(name, f"Mean cosine by layer; of the last: {told}", draw)


def states_map(name: str, label: str, plot: dict[str, Any], lowest: float) -> Html:
    """Cosine by layer and position: the stronger the colour, the higher, from ``lowest`` to 1."""
    table, begins = np.array(plot["cosine"]), plot["positions"]
    depth, columns = table.shape

    def draw(axes: Axes) -> None:
        axes.grid(False)
        box = (0, plot["length"], -0.5, depth - 0.5)
        axes.imshow(_shades(table, lowest), aspect="auto", origin="lower", interpolation="none", extent=box)
        axes.set_xlabel("position (tokens)")
        axes.set_ylabel("layer (0: embeddings)")
        scale = axes.inset_axes((1.04, 0, 0.05, 1))
        shades = _shades(np.linspace(lowest, 1, 64)[:, None], lowest)
        scale.imshow(shades, aspect="auto", origin="lower", interpolation="none", extent=(0, 1, lowest, 1))
        scale.grid(False)
        scale.set_xticks([])
        scale.yaxis.tick_right()
        scale.locator_params(axis="y", nbins=4)

    described = f"{label}: cosine by layer ({depth}) and position ({plot['length']} tokens in {columns} columns)"
    return plot_svg(
        name, f"{described}, from {table.min():.2f} to {table.max():.2f}; first {begins[0]}", draw, height=3.0
    )


def _shades(values: NDArray[np.float64], lowest: float) -> NDArray[np.float64]:
    """Red, green, blue and opacity (rows, columns, 4) of values from ``lowest`` to 1."""
    opacity = ((values - lowest) / (1 - lowest)).clip(0, 1)
    return np.concatenate([np.broadcast_to(_HEAT, (*values.shape, 3)), opacity[..., None]], axis=-1)


def cosines_plot(name: str, runs: Named) -> Html:
    """Cosines of prefixes with those of positives (above) and negatives (below): two rows of dots a run."""

    def draw(axes: Axes) -> None:
        for place, (_, plot) in enumerate(runs):
            for key, side in (("positive", -0.2), ("negative", 0.2)):
                _dots(axes, np.array(plot[key]), place + side, COLOUR["accent" if side < 0 else "second"])
        _rows(axes, runs)
        axes.set_xlabel("cosine with the query's prefix")

    told = ", ".join(
        f"{label}: {np.mean(plot['positive']):.4f} and {np.mean(plot['negative']):.4f}" for label, plot in runs
    )
    return plot_svg(name, f"Cosines of positives and negatives; means of {told}", draw, height=0.7 + 0.6 * len(runs))


def margins_plot(name: str, runs: Named) -> Html:
    """Of each triple the positive's cosine less the negative's: a row of dots a run."""

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=COLOUR["muted"], linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        for place, (_, plot) in enumerate(runs):
            margins = np.array(plot["positive"]) - np.array(plot["negative"])
            for chosen, colour in ((margins >= 0, "accent"), (margins < 0, "second")):
                _dots(axes, margins[chosen], place, COLOUR[colour], mean=None)
            _mean(axes, float(margins.mean()), place, COLOUR["ink"])
        _rows(axes, runs)
        axes.set_xlabel("positive − negative")

    means = ((label, np.mean(plot["positive"]) - np.mean(plot["negative"])) for label, plot in runs)
    told = ", ".join(f"{label} {mean:+.4f}" for label, mean in means)
    return plot_svg(name, f"Positive less negative; means: {told}", draw, height=0.7 + 0.6 * len(runs))


def _dots(axes: Axes, values: NDArray[np.float64], place: float, colour: str, mean: bool | None = True) -> None:
    """Values as dots around a row, spread a little, with a bar at their mean."""
    if len(values):
        spread = 0.11 * np.sin(2.4 * np.arange(len(values)))  # no two neighbours at one height
        axes.plot(values, place + spread, "o", color=colour, markersize=3.2, markeredgewidth=0, alpha=0.55, zorder=2)
        if mean:
            _mean(axes, float(values.mean()), place, COLOUR["ink"])


def _mean(axes: Axes, value: float, place: float, colour: str) -> None:
    axes.plot([value, value], [place - 0.17, place + 0.17], color=colour, linewidth=1.6, zorder=3)


def _rows(axes: Axes, runs: Named) -> None:
    """A row a run, the first above."""
    axes.set_yticks(range(len(runs)), [clipped(label) for label, _ in runs])
    axes.tick_params(axis="y", length=0, labelcolor=COLOUR["ink"], labelsize=10)
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")


def pooling_plot(name: str, runs: Sequence[tuple[str, dict[str, float | None]]], metric: str) -> Html:
    """A group of bars a run: one for each pooling."""
    poolings = list(dict.fromkeys(pooling for _, values in runs for pooling in values))
    width = 0.8 / len(poolings)
    known = [value for _, values in runs for value in values.values() if value is not None]

    def draw(axes: Axes) -> None:
        for place, (_, values) in enumerate(runs):
            for number, pooling in enumerate(poolings):
                if (value := values.get(pooling)) is None:
                    continue
                middle = place + (number - (len(poolings) - 1) / 2) * width
                axes.barh(middle, value, height=width * 0.88, color=category(number))
                axes.annotate(
                    number_text(value, 3),
                    (max(value, 0), middle),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8.5,
                )
        _rows(axes, [(label, {}) for label, _ in runs])
        axes.set_xlim(min(0, *known), 1.15 * max(0.01, *known))
        axes.set_xlabel(metric)

    told = "; ".join(
        f"{label}: " + ", ".join(f"{pooling} {number_text(value, 3)}" for pooling, value in values.items())
        for label, values in runs
    )
    return plot_svg(name, told, draw, height=0.7 + 0.17 * (len(poolings) + 1) * len(runs))


def alignment_plot(name: str, runs: Named, colours: Sequence[int]) -> Html:
    """Alignment over uniformity: a point a run, the lower left the better (Wang and Isola)."""

    def draw(axes: Axes) -> None:
        for number, (label, details) in zip(colours, runs, strict=True):
            marker = MARKERS[number // len(CATEGORIES) % len(MARKERS)][0]
            point = (details["uniformity"], details["alignment"])
            axes.plot(*point, marker, color=category(number), markersize=8, label=clipped(label))
        axes.margins(0.25)
        axes.set_xlabel("uniformity (lower is better)")
        axes.set_ylabel("alignment (lower is better)")
        axes.legend(loc="best")

    told = ", ".join(f"{label} {row['uniformity']:.2f} and {row['alignment']:.2f}" for label, row in runs)
    return plot_svg(name, f"Uniformity and alignment: {told}", draw)


def anisotropy_plot(name: str, runs: Named, colours: Sequence[int]) -> Html:
    """Anisotropy: a bar a run."""

    def draw(axes: Axes) -> None:
        for place, (_, details) in enumerate(runs):
            value = details["anisotropy"]
            axes.barh(place, value, height=0.55, color=category(colours[place]))
            axes.annotate(
                number_text(value, 3), (max(value, 0), place), xytext=(4, 0), textcoords="offset points", va="center"
            )
        _rows(axes, runs)
        axes.set_xlim(min(0, *(row["anisotropy"] for _, row in runs)), 1.15)
        axes.set_xlabel("anisotropy: mean cosine of different texts")

    told = ", ".join(f"{label} {row['anisotropy']:.3f}" for label, row in runs)
    return plot_svg(name, f"Anisotropy: {told}", draw, height=0.7 + 0.4 * len(runs))


def map_plot(name: str, label: str, plot: dict[str, Any]) -> Html:
    """A point a text, in the colour and shape of its label."""
    points, numbers = np.array(plot["points"]), np.array(plot["label"])
    size = min(max(60 / len(points) ** 0.5, 3.0), 5.5)

    def draw(axes: Axes) -> None:
        for number in range(len(plot["labels"])):
            shape = MARKERS[number // len(CATEGORIES) % len(MARKERS)][0]
            chosen = points[numbers == number]
            axes.plot(*chosen.T, shape, color=category(number), markersize=size, markeredgewidth=0, alpha=0.85)
        # a square around places from 0 to 1 at most
        (left, right), (bottom, top) = [(middle - 0.53, middle + 0.53) for middle in _middles(points)]
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(True)

    drawn = plot_svg(name, f"{label}: {len(points)} texts with {len(plot['labels'])} labels", draw, height=3.5)
    return Html(re.sub(r"(\d\.\d{2})\d+", r"\1", drawn))


def _middles(points: NDArray[np.float64]) -> list[float]:
    return ((points.min(axis=0) + points.max(axis=0)) / 2).tolist()


def category(number: int) -> str:
    return COLOUR[CATEGORIES[number % len(CATEGORIES)]]
