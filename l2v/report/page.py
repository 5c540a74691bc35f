"""The page: ablations, scores, tasks, analyses, words, contamination, training, speed, settings and lineage."""

from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from l2v.errors import L2VError
from l2v.report.ablation import ablation_rows, find_ablations
from l2v.report.ablation_plots import ablation_section
from l2v.report.analyses import analyses_section
from l2v.report.benchmarks import benchmarks_section
from l2v.report.contamination import contamination_section
from l2v.report.curves import training_section
from l2v.report.lineage import lineage_section, short
from l2v.report.markup import (
    NONE,
    Html,
    breakable,
    cell,
    column_head,
    decimals_for,
    difference,
    duration,
    el,
    join,
    moment,
    number_text,
    row_head,
    score_head,
    table,
    text_cell,
)
from l2v.report.plots import PALETTE, score_plot
from l2v.report.runs import Record, finite, read_runs
from l2v.report.tables import choose_reference, make_document
from l2v.report.tables import shown as _written
from l2v.report.words import words_section
from l2v.runs.files import write_json, write_text

_LONG = 80
"""Letters of a setting's value that are shown without a click."""


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
    document["ablations"] = [
        {"stage": one.stage, "settings": one.settings, "points": ablation_rows(one, document["runs"])}
        for one in find_ablations(runs)
    ]
    page = _page(runs, document)
    write_json(output.with_name("runs.json"), document)
    write_text(output, page)
    return output


def _page(runs: list[Record], document: dict[str, Any]) -> str:
    versions = [f"{package} {', '.join(found)}" for package, found in document["versions"].items()]
    made = f"Made {moment(document['made'])} from {len(runs)} run{'s' if len(runs) > 1 else ''}"
    sections = [
        ("Ablation", ablation_section(document["ablations"], _tasks(document["runs"]))),
        ("Scores", _scores_section(document)),
        ("Tasks", benchmarks_section(runs)),
        ("Analyses", analyses_section(runs)),
        ("Words", words_section(runs)),
        ("Contamination", contamination_section(runs)),
        ("Training", training_section(runs)),
        ("Speed", _speed_section(document["runs"])),
        ("Settings", _settings_section(runs, document["settings"])),
        ("Lineage", lineage_section(runs)),
    ]
    shown = [(name, content) for name, content in sections if content]
    main = el(
        "main",
        el("header", el("h1", document["title"]), el("p", " · ".join([made, *versions]), class_="note")),
        el("nav", join(el("a", name, href=f"#{name.lower()}") for name, _ in shown), aria_label="Sections"),
        join(el("section", el("h2", name), content, id=name.lower()) for name, content in shown),
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
    tasks = _tasks(rows)
    if not tasks:
        return None
    columns = {task: [row["scores"].get(task) for row in rows] for task in tasks}
    decimals = {task: decimals_for(s["value"] for s in column if s) for task, column in columns.items()}
    head = [column_head("run"), *map(score_head, tasks.values())]
    body = [
        [_run_head(row, reference)] + [_score_cell(row["scores"].get(task), decimals[task]) for task in tasks]
        for row in rows
    ]
    papers = any(score["paper"] for row in rows for score in row["scores"].values())
    note = (
        f"Bold: the best of a column. ▲ better, ▼ worse, = same as {reference}, with the difference in the metric's "
        "own unit."
    )
    if papers:
        note += (
            " Under a score: what the LLM2Vec paper (arXiv 2404.05961) has for the same model, stages, attention and "
            "pooling, divided by 100, and the difference to it."
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
    legend += " ┃ the paper's number." if papers else ""
    parts = [table(head, body), el("p", note, class_="note"), el("div", join(plots), class_="plots")]
    return join([*parts, el("p", legend, class_="note") if plots else None])


def _tasks(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Task -> a score of it."""
    return {task: score for row in rows for task, score in row["scores"].items()}


def _run_head(row: dict[str, Any], reference: str) -> Html:
    kinds = (("attention", ""), ("pooling", " pooling"))
    facts = [f"{e[key]}{word}" for key, word in kinds for e in row["evaluations"].values() if e.get(key)]
    note = " · ".join(dict.fromkeys(facts))
    unfinished = row["status"] if row["status"] != "finished" else None
    return row_head(row["label"], note, unfinished or ("reference" if row["label"] == reference else None))


def _score_cell(score: dict[str, Any] | None, decimals: int) -> Html:
    if not score or score["value"] is None:
        return cell(join([NONE, difference(None, decimals)]))
    value = score["value"]
    text = el("b", number_text(value, decimals), title="best") if score["best"] else number_text(value, decimals)
    beside = difference(score["difference"], decimals, score["higher_is_better"])
    return cell(join([text, beside, _beside_paper(score, decimals)]), value)


def _beside_paper(score: dict[str, Any], decimals: int) -> Html | None:
    """The paper's number and the difference to it."""
    if not (paper := score["paper"]):
        return None
    text = f"paper {number_text(paper['value'], decimals)}"
    told = difference(paper["difference"], decimals, score["higher_is_better"])
    return el("div", text, told, class_="paper", title=f"{paper['row']} ({paper['source']})")


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
            row_head(row["label"], f"config {short(str(row['config_hash']))}" if row["config_hash"] else ""),
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
        labels = [run.label for run in shown]
        several = {key: row for key, row in settings.items() if len({_written(value) for value in row.values()}) > 1}
        single = {key: row for key, row in settings.items() if key not in several}
        note = "Settings that differ between the runs. Pale: the value that most of the runs have."
        parts = [el("p", note, class_="note"), _settings_table(several, labels)] if several else []
        if single:
            summary = el("summary", f"{len(single)} setting{'s' * (len(single) > 1)} that only some of the runs have")
            parts.append(el("details", summary, _settings_table(single, labels)))
    elif len(shown) > 1:
        parts = [el("p", "All settings are the same.", class_="note")]
    for run in runs:
        record = {key: run.record[key] for key in ("machine", "versions", "proof") if run.record.get(key)}
        about = yaml.safe_dump(record, sort_keys=False, allow_unicode=True) if record else ""
        found = {"config": run.config_text, "machine, versions, proof": about}
        if named := [name for name, text in found.items() if text]:
            summary = el("summary", el("b", run.label), f": {', '.join(named)}")
            parts.append(el("details", summary, join(el("pre", found[name]) for name in named)))
    return join(parts) if parts else None


def _settings_table(settings: dict[str, dict[str, Any]], labels: list[str]) -> Html:
    head = [column_head("setting"), *(column_head(label) for label in labels)]
    body = [[row_head(key), *_setting_cells(row, labels)] for key, row in settings.items()]
    return el("div", table(head, body, sortable=False), class_="settings")


def _setting_cells(row: dict[str, Any], labels: list[str]) -> list[Html]:
    """A setting's values: null is a value, and no entry is none."""
    texts = [_written(row[label]) if label in row else None for label in labels]
    counts = Counter(texts)
    most, count = counts.most_common(1)[0]
    common = most if 2 * count > len(texts) and len(texts) > 2 else ""
    return [
        text_cell(None) if text is None else el("td", _folded(text), class_="common" if text == common else None)
        for text in texts
    ]


def _folded(text: str) -> Html:
    """A long value to open."""
    if len(text) <= _LONG:
        return breakable(text)
    return el("details", el("summary", f"{text[: _LONG // 2]}…"), breakable(text))
