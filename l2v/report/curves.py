"""Training curves: those of the same stage over one another, with one legend, and where they ended."""

from collections.abc import Sequence

import numpy as np

from l2v.report.markup import Html, cell, column_head, decimals_for, el, join, number_text, row_head, table
from l2v.report.plots import Curve, curves_plot, line_style, loss_plot, smoothed
from l2v.report.runs import Record, finite

_FIRST = ("train/loss", "validation/loss", "validation/accuracy")
_LAST = ("learning_rate",)
_HIDDEN = ("step", "time", "train/tokens")
_FOLDED = ("validation/perplexity", "train/tokens_per_second")
"""Curves that say little beside the others."""
_NAMES = {"train": "training", "mrr": "MRR", "sts": "STS"}


def training_section(runs: list[Record]) -> Html | None:
    """A part for each stage; None where nothing was logged."""
    stages: dict[str, list[Record]] = {}
    for run in runs:
        if _keys([run]):
            stages.setdefault(str(run.record.get("stage") or "training"), []).append(run)
    parts = [_stage(number, stage, trained) for number, (stage, trained) in enumerate(stages.items())]
    return join(parts) if parts else None


def legend(labels: Sequence[str]) -> Html:
    """The runs and their lines; a click hides a run's curves in the plots beside it where scripts run."""
    keys = [
        el(
            "button",
            el("i", style=f"border-top:3px {line_style(number)}"),
            label,
            type="button",
            data_run=number,
            aria_pressed="true",
        )
        for number, label in enumerate(labels)
    ]
    return el("div", join(keys), class_="legend", role="group", aria_label="Runs shown in the plots")


def figure(title: str, note: str, plot: Html) -> Html:
    return el("figure", el("figcaption", title, el("small", note) if note else None), plot)


def _stage(number: int, stage: str, runs: list[Record]) -> Html:
    keys = _keys(runs)
    logged = [key for key in keys if key.startswith("evaluation/")]
    plain = [key for key in keys if key.count("/") == 1 and key.startswith("validation/")]
    main = [key for key in _FIRST if key in keys]
    main += [key for key in (*logged, *plain, *_LAST) if key in keys and key not in (*main, *_FOLDED)]
    rest = [key for key in keys if key not in main]
    title = stage if len(runs) > 1 or runs[0].label == stage else f"{stage}: {runs[0].label}"
    more = _plots(number, stage, runs, rest)
    folded = el("details", el("summary", f"{len(rest)} more plot{'s' * (len(rest) > 1)}"), more) if more else None
    shown = legend([run.label for run in runs]) if len(runs) > 1 else None
    return el(
        "div",
        join([el("h3", title), shown, _plots(number, stage, runs, main), folded, _ends(runs, main)]),
        class_="curves",
    )


def _keys(runs: list[Record]) -> list[str]:
    """What was logged, in the order in which it first was."""
    found = dict.fromkeys(key for run in runs for row in run.metrics for key in row if key not in _HIDDEN)
    return [key for key in found if any(np.isfinite(run.series(key)[1]).any() for run in runs)]


def _plots(number: int, stage: str, runs: list[Record], keys: list[str]) -> Html | None:
    alone = len(runs) == 1 and {"train/loss", "validation/loss"} & set(keys)
    drawn = [
        _figure(f"curve-{number}-{key.replace('/', '-')}", stage, runs, key)
        for key in keys
        if not (alone and key in ("train/loss", "validation/loss"))
    ]
    if alone:
        plot = loss_plot(f"loss-{number}", runs[0])
        drawn.insert(0, figure("Loss", _unit(stage), plot) if plot else None)
    found = [each for each in drawn if each is not None]
    return el("div", join(found), class_="plots") if found else None


def _figure(name: str, stage: str, runs: list[Record], key: str) -> Html | None:
    series, note = [run.series(key) for run in runs], ""
    if key.startswith("train/"):
        pairs = [smoothed(each) for each in series]
        series, windows = [pair[0] for pair in pairs], {pair[1] for pair in pairs}
        note = f"mean of {'–'.join(map(str, sorted({min(windows), max(windows)})))}" if max(windows) > 1 else ""
    marked = key.startswith(("validation/", "evaluation/"))
    curves = [
        Curve(run.label, number, each, marked) for number, (run, each) in enumerate(zip(runs, series, strict=True))
    ]
    title, unit = _called(key, stage)
    plot = curves_plot(_plain(name), title, curves)
    return figure(title, ", ".join(part for part in (unit, note) if part), plot) if plot else None


def _plain(name: str) -> str:
    """A name that can be an id."""
    return "".join(letter if letter.isalnum() or letter in "-." else f"_{ord(letter):x}" for letter in name)


def _called(key: str, stage: str) -> tuple[str, str]:
    """The title of a metric's plot, and its unit or what it is of."""
    kind, _, rest = key.partition("/")
    name, _, of = rest.partition("/")
    name = name.replace("_", " ")
    if kind == "evaluation":
        return (of, f"{name}, evaluated during training") if of else (name, "evaluated during training")
    if not rest:
        return key.replace("_", " ").capitalize(), ""
    unit = {"loss": _unit(stage), "accuracy": "fraction", "tokens per second": "tokens/s"}.get(name, "")
    words = " ".join(_words(key)[:2])
    return words[0].upper() + words[1:], ", ".join(part for part in (of, unit) if part)


def _unit(stage: str) -> str:
    return "nats per masked token" if stage == "mntp" else "nats"


def _ends(runs: list[Record], keys: list[str]) -> Html:
    """Where the curves ended, and where they began."""
    keys = [key for key in keys if key not in _LAST]
    ends = {key: [_end(run, key) for run in runs] for key in keys}
    decimals = {key: decimals_for(end[1] for end in found if end) for key, found in ends.items()}
    head = [column_head("run"), column_head("steps", number=True)]
    head += [column_head(" ".join(_words(key)), "last, from first", number=True) for key in keys]
    body = [
        [
            row_head(run.label, _lost(run)),
            cell(number_text(run.steps, 0), run.steps),
            *(_end_cell(ends[key][place], decimals[key]) for key in keys),
        ]
        for place, run in enumerate(runs)
    ]
    return table(head, body)


def _words(key: str) -> list[str]:
    kind, *rest = key.replace("_", " ").split("/")
    return ([] if kind == "evaluation" else [_NAMES.get(kind, kind)]) + [_NAMES.get(word, word) for word in rest]


def _end(run: Record, key: str) -> tuple[float, float] | None:
    """The first and the last value."""
    values = run.series(key)[1]
    known = [value for value in values.tolist() if finite(value) is not None]
    return (known[0], known[-1]) if known else None


def _end_cell(end: tuple[float, float] | None, decimals: int) -> Html:
    if end is None:
        return cell(number_text(None, decimals))
    first = el("small", f"from {number_text(end[0], decimals)}", class_="from")
    return cell(join([number_text(end[1], decimals), first]), end[1])


def _lost(run: Record) -> str:
    lost = int((~np.isfinite(run.series("train/loss")[1])).sum())
    return f"training losses that are not finite: {lost}" if lost else ""
