"""The curves as small multiples, in the report's colours."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from l2v.report.plots import COLOUR, PLOT_SETTINGS

_COLUMNS = 3
_WIDTH, _HEIGHT = 3.7, 2.75  # inches of a plot
_LEGEND_LINE = 0.1
"""Of a plot's height."""
Row = dict[str, Any]
Line = tuple[str, list[Row], Callable[[Row], float]]
"""Label, points, and the value of a point."""


def draw(results: dict[str, Any], file: Path) -> None:
    """Draw what was measured; a plot without a point is left out."""
    plots = [plot for plot in _plots(results["rows"]) if any(points for _, points, _ in plot[4])]
    lines = -(-len(plots) // _COLUMNS)
    with matplotlib.rc_context({**PLOT_SETTINGS, "figure.facecolor": COLOUR["page"]}):
        figure = Figure(figsize=(_WIDTH * _COLUMNS, _HEIGHT * lines), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.12)
        grid = figure.subplots(lines, _COLUMNS, squeeze=False)
        for axes in grid.flat[len(plots) :]:
            axes.set_axis_off()
        for axes, plot in zip(grid.flat, plots, strict=False):
            _plot(axes, *plot)
        figure.savefig(file, dpi=100)


def _plots(rows: Sequence[Row]) -> list[tuple[str, str, str, str, list[Line]]]:
    """Title, unit, what is on the horizontal axis and its key, and the lines."""

    def of(curve: str, **wanted: Any) -> list[Row]:
        return [
            row
            for row in rows
            if row["curve"] == curve and all(row["spec"][name] == value for name, value in wanted.items())
        ]

    def found(*names: str, scale: float = 1.0) -> Callable[[Row], float]:
        def value(row: Row) -> float:
            inner = row["found"]
            for name in names:
                inner = inner[name]
            return inner * scale

        return value

    rate, peak, stages = found("tokens_per_second"), found("peak_mib", scale=1 / 1024), ("mntp", "simcse")
    trained = {curve: [(s, of(curve, stage=s)) for s in stages] for curve in ("train_length", "train_rows")}
    data = {stage: of("corpus", stage=stage) for stage in stages}
    return [
        ("Encoding", "tokens/s", "tokens a text", "length", [("encode", of("encode_length"), rate)]),
        ("Encoding", "tokens/s", "batch_size, mixed lengths", "batch_size", [("encode", of("encode_batch"), rate)]),
        (
            "Encoding: memory",
            "peak, GiB",
            "tokens a text",
            "length",
            [("encode", of("encode_length"), peak)],
        ),
        *(
            (title, unit, axis, key, [(stage, points, value) for stage, points in trained[curve]])
            for curve, axis, key in (
                ("train_length", "tokens a row, same tokens a step", "length"),
                ("train_rows", "rows a batch", "rows"),
            )
            for title, unit, value in (("Training", "tokens/s", rate), ("Training: memory", "peak, GiB", peak))
        ),
        ("LoRA", "seconds a step", "rank", "rank", [("mntp", of("lora_rank"), found("seconds"))]),
        (
            "LoRA: memory",
            "MiB",
            "rank",
            "rank",
            [
                ("peak", of("lora_rank"), found("peak_mib")),
                ("checkpoint", of("lora_rank"), found("checkpoint_mib")),
            ],
        ),
        (
            "Corpus: time",
            "seconds",
            "lines",
            "lines",
            [
                *((f"first start, {s}", data[s], found("first_start", "seconds")) for s in stages),
                *((f"later start, {s}", data[s], found("later_start", "first_batch_seconds")) for s in stages),
            ],
        ),
        (
            "Corpus: memory",
            "MiB",
            "lines",
            "lines",
            [
                *((f"tokenizing {s}", data[s], found("first_start", "peak_mib")) for s in stages),
                *((f"loading {s}, anonymous", data[s], found("later_start", "anonymous_mib")) for s in stages),
                ("encode.py", of("bulk"), found("peak_mib")),
            ],
        ),
        (
            "Processes",
            "tokens/s",
            "processes of one thread",
            "processes",
            [
                ("train.py, mntp", of("train_processes", threads=1), rate),
                ("encode.py", of("encode_processes", threads=1), rate),
            ],
        ),
    ]


def _plot(axes: Axes, title: str, unit: str, axis: str, key: str, lines: list[Line]) -> None:
    highest = 0.0
    numbers: set[float] = set()
    for number, (label, points, value) in enumerate(lines):
        if points:
            along, values = [row["spec"][key] for row in points], [value(row) for row in points]
            highest = max([highest, *values])
            numbers.update(along)
            axes.plot(along, values, "o-", color=COLOUR[f"c{number}"], markersize=4, linewidth=1.4, label=label)
    axes.set_xscale("log")
    shown = sorted(numbers)
    axes.set_xticks(shown, [_short(one) for one in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(axis)
    if unit == "seconds":
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        room = _LEGEND_LINE * len(lines) if len(lines) > 2 else 0.1  # a legend of two lines finds its place
        axes.set_ylim(0, highest / (1 - room))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold")
    axes.set_title(unit, loc="right", fontsize=10, color=COLOUR["muted"])
    if len(lines) > 1:
        axes.legend(loc="best" if len(lines) == 2 else "upper left", fontsize=9)


def _short(number: float) -> str:
    """1000000 as 1M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size and number % (size / 10) == 0:
            return f"{number / size:g}{letter}"
    return f"{number:g}"
