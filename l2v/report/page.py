"""The page: a section each for scores, analyses, words, contamination, training, speed, settings and lineage."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from l2v.errors import L2VError
from l2v.report.analyses import analyses_section
from l2v.report.contamination import contamination_section
from l2v.report.markup import (
    NONE,
    Html,
    cell,
    column_head,
    decimals_for,
    duration,
    el,
    join,
    moment,
    number_text,
    row_head,
    table,
    text_cell,
)
from l2v.report.plots import PALETTE, curve_plot, loss_plot, score_plot
from l2v.report.runs import Record, finite, read_runs
from l2v.report.tables import choose_reference, make_document, shown
from l2v.report.words import words_section
from l2v.sources import Lineage, write_json, write_text


def write_report(
    folders: Sequence[Path], output: Path, *, title: str = "l2v report", reference: str | None = None
) -> Path:
    """Write the page, and ``runs.json`` in the same folder.

    Args:
        folders: run folders, in the order of the rows.
        output: the HTML file; its folder is made where it is missing.
        title: of the page.
        reference: label of the run that the others are compared with; None takes the one that is labelled
            ``bidirectional``, else the first.

    Returns:
        ``output``.

    Raises:
        L2VError: a folder is no run, a file is broken, or no run has the label ``reference``.
    """
    if output.is_dir():
        raise L2VError(f"{output}: expected a file to write the page to, found a folder")
    runs = read_runs(folders)
    document = make_document(runs, title, choose_reference(runs, reference))
    page = _page(runs, document)
    write_json(output.with_name("runs.json"), document)
    write_text(output, page)
    return output


def _page(runs: list[Record], document: dict[str, Any]) -> str:
    versions = [f"{package} {', '.join(found)}" for package, found in document["versions"].items()]
    made = f"Made {moment(document['made'])} from {len(runs)} run{'s' if len(runs) > 1 else ''}"
    sections = [
        ("Scores", _scores_section(document)),
        ("Analyses", analyses_section(runs)),
        ("Words", words_section(runs)),
        ("Contamination", contamination_section(runs)),
        ("Training", _training_section(runs)),
        ("Speed", _speed_section(document["runs"])),
        ("Settings", _settings_section(runs, document["settings"])),
        ("Lineage", _lineage_section(runs)),
    ]
    main = el(
        "main",
        el("header", el("h1", document["title"]), el("p", " · ".join([made, *versions]), class_="note")),
        join(el("section", el("h2", name), content) for name, content in sections if content),
        el("footer", "The tables in machine-readable form: ", el("a", "runs.json", href="runs.json")),
    )
    light, dark = ("".join(f"--{name}:{colours[i]};" for name, colours in PALETTE.items()) for i in (0, 1))
    style = f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{_resource('style.css')}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"{el('title', document['title'])}\n<style>{style}</style>\n</head>\n"
        f"<body>\n{main}\n<script>\n{_resource('script.js')}</script>\n</body>\n</html>\n"
    )


def _resource(name: str) -> str:
    """A file that is installed beside this module."""
    return resources.files("l2v.report").joinpath(name).read_text(encoding="utf-8")


def _scores_section(document: dict[str, Any]) -> Html | None:
    rows, reference = document["runs"], document["reference"]
    tasks = {task: score for row in rows for task, score in row["scores"].items()}
    if not tasks:
        return None
    columns = {task: [row["scores"].get(task) for row in rows] for task in tasks}
    decimals = {task: decimals_for(s["value"] for s in column if s) for task, column in columns.items()}
    head = [column_head("run")] + [
        column_head(
            score["label"], score["metric"] + ("" if score["higher_is_better"] else ", lower is better"), number=True
        )
        for score in tasks.values()
    ]
    body = [
        [_run_head(row, reference)] + [_score_cell(row["scores"].get(task), decimals[task]) for task in tasks]
        for row in rows
    ]
    note = (
        f"Bold: the best of a column. ▲ better, ▼ worse, = same as {reference}, with the difference in the metric's "
        "own unit."
    )
    plots = [
        el(
            "figure",
            el("figcaption", score["label"], el("small", score["metric"])),
            score_plot(f"score-{number}", rows, task, reference, decimals[task]),
        )
        for number, (task, score) in enumerate(tasks.items())
        if any(s and s["value"] is not None for s in columns[task])
    ]
    legend = f"● best, ○ other runs; the dashed line is {reference}. Each plot has its own scale."
    parts = [table(head, body), el("p", note, class_="note"), el("div", join(plots), class_="plots")]
    return join([*parts, el("p", legend, class_="note") if plots else None])


def _run_head(row: dict[str, Any], reference: str) -> Html:
    kinds = (("attention", ""), ("pooling", " pooling"))
    facts = [f"{e[key]}{word}" for key, word in kinds for e in row["evaluations"].values() if e.get(key)]
    note = " · ".join(dict.fromkeys(facts))
    unfinished = row["status"] if row["status"] != "finished" else None
    return row_head(row["label"], note, unfinished or ("reference" if row["label"] == reference else None))


def _score_cell(score: dict[str, Any] | None, decimals: int) -> Html:
    if not score or score["value"] is None:
        return cell(join([NONE, _difference(None, decimals, True)]))
    value, difference = score["value"], score["difference"]
    text = el("b", number_text(value, decimals), title="best") if score["best"] else number_text(value, decimals)
    return cell(join([text, _difference(difference, decimals, score["higher_is_better"])]), value)


def _difference(difference: float | None, decimals: int, higher_is_better: bool) -> Html:
    """A difference's mark and signed number; empty, but as wide, without one."""
    if difference is None:
        return el("small", class_="difference")
    if round(difference, decimals) == 0:
        return el("small", "= ", number_text(0.0, decimals), class_="difference")
    better = (difference > 0) == higher_is_better
    mark, name = ("▲", "better") if better else ("▼", "worse")
    return el("small", f"{mark} {number_text(difference, decimals, '+')}", class_=f"difference {name}", title=name)


def _training_section(runs: list[Record]) -> Html | None:
    parts = []
    for number, run in enumerate(runs):
        plots = [
            loss_plot(f"loss-{number}", run),
            curve_plot(f"accuracy-{number}", run, "validation/accuracy", "validation accuracy (fraction)", "o-"),
            curve_plot(f"rate-{number}", run, "learning_rate", "learning rate", "-"),
        ]
        if any(plots):
            panels = join(el("figure", plot) for plot in plots if plot)
            parts += [el("h3", run.label), el("p", _last_values(run), class_="note")]
            parts += [el("div", panels, class_="plots")]
    return join(parts) if parts else None


def _last_values(run: Record) -> str:
    """The first and last values of the curves in words, and what a plot cannot show."""
    facts = []
    for key in ("train/loss", "validation/loss", "validation/accuracy", "validation/perplexity"):
        _, values = run.series(key)
        if len(values) and finite(values[-1]) is not None:
            facts.append(f"{key.replace('/', ' ')} {values[0]:.4g} → {values[-1]:.4g}")
    if facts and run.steps:
        facts[-1] += f" (first → last of {run.steps:,} steps)"
    if lost := int((~np.isfinite(run.series("train/loss")[1])).sum()):
        facts.append(f"training losses that are not finite: {lost}")
    return "; ".join(facts)


def _speed_section(rows: list[dict[str, Any]]) -> Html | None:
    measured = ("steps", "seconds", "tokens_per_second", "evaluation_seconds")
    if all(row[key] is None for row in rows for key in measured):
        return None
    head = [
        column_head("run"),
        column_head("stage"),
        column_head("status"),
        column_head("seed", number=True),
        column_head("steps", number=True),
        column_head("training", "wall time", number=True),
        column_head("speed", "tokens/s, median", number=True),
        column_head("evaluation", "wall time", number=True),
        column_head("finished"),
    ]
    body = [
        [
            row_head(row["label"], f"config {_short(str(row['config_hash']))}" if row["config_hash"] else ""),
            text_cell(row["stage"]),
            text_cell(row["status"]),
            cell(NONE if row["seed"] is None else row["seed"], finite(row["seed"])),
            cell(number_text(row["steps"], 0), row["steps"]),
            cell(duration(row["seconds"]), row["seconds"]),
            cell(number_text(row["tokens_per_second"], 0), row["tokens_per_second"]),
            cell(duration(row["evaluation_seconds"]), row["evaluation_seconds"]),
            text_cell(row["finished"] and moment(row["finished"])),
        ]
        for row in rows
    ]
    return table(head, body)


def _settings_section(runs: list[Record], settings: dict[str, dict[str, Any]]) -> Html | None:
    shown = [run for run in runs if run.config or run.record.get("choices")]
    parts: list[Html] = []
    if settings:
        head = [column_head("setting"), *(column_head(run.label) for run in shown)]
        body = [[row_head(key), *(_text_cell_of(row, run.label) for run in shown)] for key, row in settings.items()]
        parts = [el("p", "Settings that differ between the runs.", class_="note"), table(head, body)]
    elif len(shown) > 1:
        parts = [el("p", "All settings are the same.", class_="note")]
    for run in runs:
        record = {key: run.record[key] for key in ("machine", "versions", "proof") if run.record.get(key)}
        about = yaml.safe_dump(record, sort_keys=False, allow_unicode=True) if record else ""
        for name, text in (("the whole config", run.config_text), ("machine, versions and proof", about)):
            if text:
                parts.append(el("details", el("summary", el("b", run.label), f": {name}"), el("pre", text)))
    return join(parts) if parts else None


def _text_cell_of(row: dict[str, Any], label: str) -> Html:
    """A setting's cell: null is a value, and no entry is none."""
    return el("td", shown(row[label])) if label in row else text_cell(None)


def _lineage_section(runs: list[Record]) -> Html | None:
    parts = [join([el("h3", run.label), _chain(run.lineage)]) for run in runs if run.lineage]
    return join(parts) if parts else None


def _chain(lineage: Lineage) -> Html:
    """Base, merged adapters and adapter, in the order in which they apply."""
    trained = " → ".join(record.get("stage", "?") for record in lineage.history)
    name = lineage.base + (f" at {lineage.revision}" if lineage.revision else "")
    nodes = [_node("base", name, lineage.base_hash, f"trained in full: {trained}" if trained else "")]
    nodes += [_node("merged adapter", record.stage, record.hash) for record in lineage.merged]
    if top := lineage.adapter:
        nodes.append(_node("adapter", top.stage, top.hash))
    return el("ol", join(nodes), class_="chain")


def _node(kind: str, name: str, full_hash: str, note: str = "") -> Html:
    parts = [el("small", kind), el("b", name), el("small", note) if note else None]
    return el("li", *parts, el("code", _short(full_hash), title=full_hash), class_=kind.split()[-1])


def _short(full_hash: str) -> str:
    """The first ten digits of a hash, after its scheme where it has one."""
    scheme, colon, digest = full_hash.rpartition(":")
    return scheme + colon + digest[:10]
