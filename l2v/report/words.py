"""Word-level scores on the page: by layer, by class, and which label was taken for which."""

from typing import Any

from l2v.report.markup import Html, cell, column_head, el, join, number_text, row_head, table
from l2v.report.plots import layer_plot
from l2v.report.runs import Record

_NUMBERS = ("precision", "recall", "f1")


def words_section(runs: list[Record]) -> Html | None:
    """A part for each run and task of ``stage=word``; None where there is none."""
    found = [
        (run, suite["words"]) for run in runs for suite in run.suites.values() if isinstance(suite.get("words"), dict)
    ]
    if not found:
        return None
    note = "Scores of the layer that validates best. Confusion: rows are the labels, columns what was predicted."
    return join([el("p", note, class_="note"), *(_task(number, *pair) for number, pair in enumerate(found))])


def _task(number: int, run: Record, words: dict[str, Any]) -> Html:
    part = words["part"]
    scores = words["scores"][part]
    metric = "f1" if "f1" in scores else "paper_accuracy"
    facts = [
        f"{part}: token accuracy {scores['paper_accuracy']:.4f}",
        *(f"{name} {scores[name]:.4f}" for name in _NUMBERS if name in scores),
        f"layer {words['layer']}",
        words["shift"].replace("_", " "),
        f"{scores['words']:,} words",
    ]
    curve = [(row["layer"], row[part][metric]) for row in words["by_layer"]]
    mix = [(int(layer), weight) for layer, weight in (words["mix"] or {}).items()]
    plots = [
        layer_plot(f"layers-{number}", curve, f"{words['task']} {metric}") if len(curve) > 1 else None,
        layer_plot(f"mix-{number}", mix, "weight in the mix") if mix else None,
    ]
    drawn = join(el("figure", plot) for plot in plots if plot)
    return join(
        [
            el("h3", f"{run.label}: {words['task']}"),
            el("p", " · ".join(facts), class_="note"),
            el("div", drawn, class_="plots") if any(plots) else None,
            _classes(scores),
            el("details", el("summary", "confusion"), _confusion(scores)),
        ]
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
    return table(head, rows)


def _shaded(count: int, total: int) -> Html:
    share = round(100 * count / max(total, 1))
    colour = f"background:color-mix(in srgb, var(--accent) {share * 0.6:.0f}%, transparent)" if count else None
    return el(
        "td", count or "", class_="number", data_value=repr(float(count)), style=colour, title=f"{share}% of the row"
    )
