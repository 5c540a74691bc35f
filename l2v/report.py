"""Runs side by side: one HTML page that opens without a network, and ``runs.json`` with its tables beside it.

    python -m l2v.report runs/demo/* --output report.html

A run is a folder with any of ``run.json``, ``config.yaml``, ``lineage.json``, ``metrics.jsonl`` and
``evaluation/<suite>.json``; what is missing is left out of the page.
"""

import argparse
import html
import importlib.metadata
import io
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from l2v.errors import L2VError
from l2v.sources import Lineage, read_json, write_json, write_text

Series = tuple[NDArray[np.int64], NDArray[np.float64]]
_NONE = "–"


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
    document = _document(runs, title, _reference(runs, reference))
    page = _page(runs, document)
    write_json(output.with_name("runs.json"), document)
    write_text(output, page)
    return output


def summary_rows(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Scores of runs, a row per run: ``{"label", "scores": {task: ...}, "seconds"}``.

    A score is ``{"label", "metric", "value", "higher_is_better"}``; its value is None where it is not a finite number.
    A task that occurs in several suites is named ``suite/task``. ``seconds`` is the training's wall time, or None.

    Raises:
        L2VError: a folder is no run, or a file is broken.
    """
    return _summary(read_runs(folders))


# Reading


def print_scores(folders: Sequence[Path]) -> None:
    """Print the scores of run folders as a table, the best of each column in bold."""
    rows = summary_rows(folders)
    tasks = list(dict.fromkeys(task for row in rows for task in row["scores"]))
    table = Table("model")
    for task in tasks:
        score = next(row["scores"][task] for row in rows if task in row["scores"])
        table.add_column(f"{score['label']}\n[dim]{score['metric']}", justify="right")
    best = {task: _best([row["scores"][task] for row in rows if task in row["scores"]]) for task in tasks}
    for row in rows:
        values = {task: row["scores"].get(task, {}).get("value") for task in tasks}
        cells = ["-" if value is None else f"{value:.4f}" for value in values.values()]
        mark = [len(rows) > 1 and value is not None and value == best[task] for task, value in values.items()]
        table.add_row(
            escape(row["label"]), *(f"[bold]{cell}[/]" if b else cell for cell, b in zip(cells, mark, strict=True))
        )
    Console().print(table)


def _best(scores: list[dict[str, Any]]) -> float | None:
    values = [score["value"] for score in scores if score["value"] is not None]
    choose = max if all(score["higher_is_better"] for score in scores) else min
    return choose(values, default=None)


@dataclass(frozen=True)
class Run:
    """What a run folder holds. A file that is missing is an empty value."""

    label: str
    """The folder's name, with as many parents as tell it from the other runs."""
    folder: Path
    record: dict[str, Any]
    """``run.json``"""
    config: dict[str, Any]
    config_text: str
    lineage: Lineage | None
    metrics: list[dict[str, Any]]
    """Rows of ``metrics.jsonl``; their keys differ."""
    suites: dict[str, dict[str, Any]]
    """``evaluation/<suite>.json`` by suite."""

    def series(self, key: str) -> Series:
        """Steps and values of a metric, by step. After a resume the last row of a step counts."""
        values = {
            int(row["step"]): float(row[key])
            for row in self.metrics
            if isinstance(row.get("step"), int | float) and isinstance(row.get(key), int | float)
        }
        steps = np.array(sorted(values), dtype=np.int64)
        return steps, np.array([values[step] for step in steps.tolist()], dtype=np.float64)

    @property
    def steps(self) -> int | None:
        """Optimizer steps: as recorded, else the last one that was logged."""
        logged = [row["step"] for row in self.metrics if isinstance(row.get("step"), int | float)]
        steps = _finite(self.record.get("step"))
        return int(steps) if steps is not None else int(max(logged)) if logged else None

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the logged training steps."""
        values = self.series("train/tokens_per_second")[1]
        return _finite(np.median(values[np.isfinite(values)])) if np.isfinite(values).any() else None

    @property
    def evaluation_seconds(self) -> float | None:
        """Wall time of all suites together."""
        seconds = [s for suite in self.suites.values() if (s := _finite(suite.get("seconds"))) is not None]
        return sum(seconds) if seconds else None


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders, each once, in their order.

    Raises:
        L2VError: no folder is given, a folder is no run, or a file is broken.
    """
    unique: dict[Path, Path] = {}
    for folder in folders:
        unique.setdefault(Path(os.path.abspath(folder)), folder)
    paths = list(unique)
    if not paths:
        raise L2VError("no run folder is given; expected at least one, as in `python -m l2v.report runs/demo/*`")
    return [_read_run(unique[path], label) for path, label in zip(paths, _labels(paths), strict=True)]


def _labels(paths: list[Path]) -> list[str]:
    """The shortest ends of absolute paths that tell them apart."""
    labels, depth = [path.name for path in paths], 1
    while len(set(labels)) < len(labels):
        depth += 1
        labels = [
            "/".join(path.parts[-depth:]) if labels.count(label) > 1 else label
            for path, label in zip(paths, labels, strict=True)
        ]
    return labels


_FILES = ("run.json", "config.yaml", "lineage.json", "metrics.jsonl", "evaluation")


def _is_run(folder: Path) -> bool:
    return any((folder / file).exists() for file in _FILES)


def _runs_in(folder: Path) -> list[Path]:
    """A run, or the runs inside a recipe's or a sweep's folder."""
    inside = [] if _is_run(folder) else sorted(run for run in folder.glob("*/") if _is_run(run))
    return inside or [folder]


def _read_run(folder: Path, label: str) -> Run:
    if not _is_run(folder):
        raise L2VError(f"{folder} is not a run folder: no run.json and no evaluation/")
    config, config_text = _read_config(folder / "config.yaml")
    return Run(
        label=label,
        folder=folder,
        record=_read_object(folder / "run.json"),
        config=config,
        config_text=config_text,
        lineage=_read_lineage(folder / "lineage.json"),
        metrics=_read_metrics(folder / "metrics.jsonl"),
        suites={file.stem: _read_suite(file) for file in sorted((folder / "evaluation").glob("*.json"))},
    )


def _read_object(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    return _object(read_json(file), str(file)) if file.exists() else {}


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise L2VError(f"{where}: expected an object, found {type(value).__name__}")
    return value


def _read_suite(file: Path) -> dict[str, Any]:
    suite = _read_object(file)
    scores = _object(suite.get("scores", {}), f"{file}: scores")
    return {**suite, "scores": {task: _object(score, f"{file}: scores.{task}") for task, score in scores.items()}}


def _read_config(file: Path) -> tuple[dict[str, Any], str]:
    if not file.exists():
        return {}, ""
    text = file.read_text(encoding="utf-8")
    try:
        return _object(yaml.safe_load(text) or {}, str(file)), text
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place, problem = f"{file}:{mark.line + 1}" if mark else file, getattr(error, "problem", None) or "unreadable"
        raise L2VError(f"{place}: not YAML ({problem})") from None


def _read_lineage(file: Path) -> Lineage | None:
    if not file.exists():
        return None
    try:
        return Lineage.read(file)
    except (KeyError, TypeError, AttributeError):
        raise L2VError(f"{file}: not a lineage: expected base, base_hash, merged and adapter") from None


def _read_metrics(file: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file. A last line without its end, which is being written, may be broken."""
    rows: list[dict[str, Any]] = []
    lines = file.read_text(encoding="utf-8").split("\n") if file.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [_object(json.loads(line), f"{file}:{number}")] if line.strip() else []
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise L2VError(f"{file}:{number}: not JSON ({error.msg})") from None
    return rows


def _finite(value: Any) -> float | None:
    """A number as a float; None where it is no number, infinite or NaN."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


# What the tables hold


def _summary(runs: list[Run]) -> list[dict[str, Any]]:
    suites_of: dict[str, set[str]] = {}
    for run in runs:
        for suite, content in run.suites.items():
            for task in content["scores"]:
                suites_of.setdefault(task, set()).add(suite)
    rows = []
    for run in runs:
        scores = {}
        for suite, content in run.suites.items():
            for task, score in content["scores"].items():
                shared = len(suites_of[task]) > 1
                label = str(score.get("label", task))
                scores[f"{suite}/{task}" if shared else task] = {
                    "label": f"{label} ({suite})" if shared else label,
                    "metric": str(score.get("metric", "")),
                    "value": _finite(score.get("value")),
                    "higher_is_better": bool(score.get("higher_is_better", True)),
                }
        rows.append({"label": run.label, "scores": scores, "seconds": _finite(run.record.get("seconds"))})
    return rows


def _reference(runs: list[Run], wanted: str | None) -> str:
    labels = [run.label for run in runs]
    if wanted is not None and wanted not in labels:
        raise L2VError(f"reference={wanted}: no run has this label; expected one of {', '.join(labels)}")
    return wanted or ("bidirectional" if "bidirectional" in labels else labels[0])


def _document(runs: list[Run], title: str, reference: str) -> dict[str, Any]:
    """Everything in the tables, as JSON values: the content of ``runs.json``."""
    summary = _compared(_summary(runs), reference)
    facts = ("name", "stage", "status", "seed", "config_hash", "created", "finished", "choices", "versions")
    rows = [
        {
            **row,
            "folder": str(run.folder),
            **{fact: _plain(run.record.get(fact)) for fact in facts},
            "steps": run.steps,
            "tokens_per_second": run.tokens_per_second,
            "evaluation_seconds": run.evaluation_seconds,
            "evaluations": {
                suite: _plain({key: value for key, value in content.items() if key != "scores"})
                for suite, content in run.suites.items()
            },
            "lineage": asdict(run.lineage) if run.lineage else None,
        }
        for run, row in zip(runs, summary, strict=True)
    ]
    return {
        "title": title,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(runs),
        "reference": reference,
        "runs": rows,
        "settings": _differing_settings(runs),
    }


def _compared(rows: list[dict[str, Any]], reference: str) -> list[dict[str, Any]]:
    """Add to every score its ``difference`` to the reference's (None without one) and whether it is the ``best``.

    There is a best only among two values or more; equal values share it.
    """
    base = next(row["scores"] for row in rows if row["label"] == reference)
    values: dict[str, list[float]] = {}
    for row in rows:
        for task, score in row["scores"].items():
            values.setdefault(task, []).extend([score["value"]] if score["value"] is not None else [])

    def compared(task: str, score: dict[str, Any], label: str) -> dict[str, Any]:
        value, other = score["value"], base.get(task, {}).get("value")
        best = (max if score["higher_is_better"] else min)(values[task], default=None)
        known = value is not None and other is not None and label != reference
        return {
            **score,
            "difference": value - other if known else None,
            "best": value is not None and value == best and len(values[task]) > 1,
        }

    return [
        {**row, "scores": {task: compared(task, score, row["label"]) for task, score in row["scores"].items()}}
        for row in rows
    ]


def _versions(runs: list[Run]) -> dict[str, list[str]]:
    """Versions that the runs recorded, else those installed here, by package."""
    versions: dict[str, list[str]] = {}
    for package in ("l2v", "torch", "transformers"):
        recorded = [(run.record.get("versions") or {}).get(package) for run in runs]
        found = [str(version) for version in dict.fromkeys(recorded) if version]
        try:
            versions[package] = found or [importlib.metadata.version(package)]
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _differing_settings(runs: list[Run]) -> dict[str, dict[str, Any]]:
    """Settings that are not the same in all runs that recorded any: dotted key -> label -> value.

    The choices of config groups come first, as ``choices.<group>``. A run without the setting has no entry.
    """
    settings = {
        run.label: {
            **{f"choices.{key}": _plain(value) for key, value in (run.record.get("choices") or {}).items()},
            **_flat(run.config),
        }
        for run in runs
        if run.config or run.record.get("choices")
    }
    keys = dict.fromkeys(key for flat in settings.values() for key in flat)
    rows = {key: {label: flat[key] for label, flat in settings.items() if key in flat} for key in keys}
    return {
        key: row for key, row in rows.items() if len(row) < len(settings) or len({_shown(v) for v in row.values()}) > 1
    }


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": _plain(value)}
        )
    return flat


def _plain(value: Any) -> Any:
    """A value that JSON can hold: dates, NaN and infinity become text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int) or _finite(value) is not None:
        return value
    return str(value)


# Markup


class Html(str):
    """Text that is markup already; any other string is escaped where it enters the page."""


def _el(name: str, *children: object, **attributes: object) -> Html:
    """An element. Children and attributes are escaped unless they are :class:`Html`; None leaves one out.

    ``class_`` is the attribute ``class``, and ``_`` in other names stands for ``-``.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{_join(children)}</{name}>")


def _join(children: Iterable[object], between: Html | None = None) -> Html:
    parts = [child if isinstance(child, Html) else html.escape(str(child)) for child in children if child is not None]
    return Html((between or "").join(parts))


def _table(head: Sequence[Html], rows: Sequence[Sequence[Html]]) -> Html:
    """A table that scrolls in its own box; a click on a header sorts it where scripts run."""
    body = [_el("tr", _join(row)) for row in rows]
    table = _el("table", _el("thead", _el("tr", _join(head))), _el("tbody", _join(body)))
    return _el("div", table, class_="scroll", tabindex="0")


def _head(text: object, note: str = "", *, number: bool = False) -> Html:
    small = _el("small", note) if note else None
    return _el("th", text, small, scope="col", class_="number" if number else None)


def _row_head(label: str, note: str = "", badge: str | None = None) -> Html:
    mark = _el("span", badge, class_="badge") if badge else None
    name = _join(re.split(r"\.(?=[a-z])", label), Html(".<wbr>"))  # the keys of settings are long
    return _el(
        "th",
        _el("span", name, class_="label"),
        mark,
        _el("small", note) if note else None,
        scope="row",
        data_value=label,
    )


def _cell(text: object, value: float | None = None) -> Html:
    return _el("td", text, class_="number", data_value="" if value is None else repr(value))


def _text_cell(value: Any) -> Html:
    return _el("td", _shown(value)) if value is not None else _el("td", _NONE, class_="none", data_value="")


def _shown(value: Any) -> str:
    """A setting as one writes it: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: float | None, decimals: int, sign: str = "") -> str:
    """A number with a true minus sign."""
    return _NONE if value is None else f"{value:{sign},.{decimals}f}".replace("-", "−")


def _decimals(values: Iterable[float | None]) -> int:
    """Digits after the point for a column: 4 below 10, 2 below 1,000, else none."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return 4 if largest < 10 else 2 if largest < 1000 else 0


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _moment(value: Any) -> str:
    """An ISO time to the minute; anything else as it is."""
    try:
        return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M %Z").strip()
    except (TypeError, ValueError):
        return str(value)


# The page


def _page(runs: list[Run], document: dict[str, Any]) -> str:
    versions = [f"{package} {', '.join(found)}" for package, found in document["versions"].items()]
    made = f"Made {_moment(document['made'])} from {len(runs)} run{'s' if len(runs) > 1 else ''}"
    sections = [
        ("Scores", _scores_section(document)),
        ("Training", _training_section(runs)),
        ("Speed", _speed_section(document["runs"])),
        ("Settings", _settings_section(runs, document["settings"])),
        ("Lineage", _lineage_section(runs)),
    ]
    main = _el(
        "main",
        _el("header", _el("h1", document["title"]), _el("p", " · ".join([made, *versions]), class_="note")),
        _join(_el("section", _el("h2", name), content) for name, content in sections if content),
        _el("footer", "The tables in machine-readable form: ", _el("a", "runs.json", href="runs.json")),
    )
    light, dark = ("".join(f"--{name}:{colours[i]};" for name, colours in _PALETTE.items()) for i in (0, 1))
    style = f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}{_STYLE}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"{_el('title', document['title'])}\n<style>{style}</style>\n</head>\n"
        f"<body>\n{main}\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _scores_section(document: dict[str, Any]) -> Html | None:
    rows, reference = document["runs"], document["reference"]
    tasks = {task: score for row in rows for task, score in row["scores"].items()}
    if not tasks:
        return None
    columns = {task: [row["scores"].get(task) for row in rows] for task in tasks}
    decimals = {task: _decimals(s["value"] for s in column if s) for task, column in columns.items()}
    head = [_head("run")] + [
        _head(score["label"], score["metric"] + ("" if score["higher_is_better"] else ", lower is better"), number=True)
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
        _el(
            "figure",
            _el("figcaption", score["label"], _el("small", score["metric"])),
            _score_plot(f"score-{number}", rows, task, reference, decimals[task]),
        )
        for number, (task, score) in enumerate(tasks.items())
        if any(s and s["value"] is not None for s in columns[task])
    ]
    legend = f"● best, ○ other runs; the dashed line is {reference}. Each plot has its own scale."
    parts = [_table(head, body), _el("p", note, class_="note"), _el("div", _join(plots), class_="plots")]
    return _join([*parts, _el("p", legend, class_="note") if plots else None])


def _run_head(row: dict[str, Any], reference: str) -> Html:
    kinds = (("attention", ""), ("pooling", " pooling"))
    facts = [f"{e[key]}{word}" for key, word in kinds for e in row["evaluations"].values() if e.get(key)]
    note = " · ".join(dict.fromkeys(facts))
    unfinished = row["status"] if row["status"] != "finished" else None
    return _row_head(row["label"], note, unfinished or ("reference" if row["label"] == reference else None))


def _score_cell(score: dict[str, Any] | None, decimals: int) -> Html:
    if not score or score["value"] is None:
        return _cell(_join([_NONE, _difference(None, decimals, True)]))
    value, difference = score["value"], score["difference"]
    text = _el("b", _number(value, decimals), title="best") if score["best"] else _number(value, decimals)
    return _cell(_join([text, _difference(difference, decimals, score["higher_is_better"])]), value)


def _difference(difference: float | None, decimals: int, higher_is_better: bool) -> Html:
    """A difference's mark and signed number; empty, but as wide, without one."""
    if difference is None:
        return _el("small", class_="difference")
    if round(difference, decimals) == 0:
        return _el("small", "= ", _number(0.0, decimals), class_="difference")
    better = (difference > 0) == higher_is_better
    mark, name = ("▲", "better") if better else ("▼", "worse")
    return _el("small", f"{mark} {_number(difference, decimals, '+')}", class_=f"difference {name}", title=name)


def _training_section(runs: list[Run]) -> Html | None:
    parts = []
    for number, run in enumerate(runs):
        plots = [
            _loss_plot(f"loss-{number}", run),
            _curve_plot(f"accuracy-{number}", run, "validation/accuracy", "validation accuracy (fraction)", "o-"),
            _curve_plot(f"rate-{number}", run, "learning_rate", "learning rate", "-"),
        ]
        if any(plots):
            panels = _join(_el("figure", plot) for plot in plots if plot)
            parts += [_el("h3", run.label), _el("p", _last_values(run), class_="note")]
            parts += [_el("div", panels, class_="plots")]
    return _join(parts) if parts else None


def _last_values(run: Run) -> str:
    """The first and last values of the curves in words, and what a plot cannot show."""
    facts = []
    for key in ("train/loss", "validation/loss", "validation/accuracy", "validation/perplexity"):
        _, values = run.series(key)
        if len(values) and _finite(values[-1]) is not None:
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
        _head("run"),
        _head("stage"),
        _head("status"),
        _head("seed", number=True),
        _head("steps", number=True),
        _head("training", "wall time", number=True),
        _head("speed", "tokens/s, median", number=True),
        _head("evaluation", "wall time", number=True),
        _head("finished"),
    ]
    body = [
        [
            _row_head(row["label"], f"config {_short(str(row['config_hash']))}" if row["config_hash"] else ""),
            _text_cell(row["stage"]),
            _text_cell(row["status"]),
            _cell(_NONE if row["seed"] is None else row["seed"], _finite(row["seed"])),
            _cell(_number(row["steps"], 0), row["steps"]),
            _cell(_duration(row["seconds"]), row["seconds"]),
            _cell(_number(row["tokens_per_second"], 0), row["tokens_per_second"]),
            _cell(_duration(row["evaluation_seconds"]), row["evaluation_seconds"]),
            _text_cell(row["finished"] and _moment(row["finished"])),
        ]
        for row in rows
    ]
    return _table(head, body)


def _settings_section(runs: list[Run], settings: dict[str, dict[str, Any]]) -> Html | None:
    shown = [run for run in runs if run.config or run.record.get("choices")]
    parts: list[Html] = []
    if settings:
        head = [_head("setting"), *(_head(run.label) for run in shown)]
        body = [[_row_head(key), *(_text_cell_of(row, run.label) for run in shown)] for key, row in settings.items()]
        parts = [_el("p", "Settings that differ between the runs.", class_="note"), _table(head, body)]
    elif len(shown) > 1:
        parts = [_el("p", "All settings are the same.", class_="note")]
    for run in runs:
        record = {key: run.record[key] for key in ("machine", "versions", "proof") if run.record.get(key)}
        about = yaml.safe_dump(record, sort_keys=False, allow_unicode=True) if record else ""
        for name, text in (("the whole config", run.config_text), ("machine, versions and proof", about)):
            if text:
                parts.append(_el("details", _el("summary", _el("b", run.label), f": {name}"), _el("pre", text)))
    return _join(parts) if parts else None


def _text_cell_of(row: dict[str, Any], label: str) -> Html:
    """A setting's cell: null is a value, and no entry is none."""
    return _el("td", _shown(row[label])) if label in row else _text_cell(None)


def _lineage_section(runs: list[Run]) -> Html | None:
    parts = [_join([_el("h3", run.label), _chain(run.lineage)]) for run in runs if run.lineage]
    return _join(parts) if parts else None


def _chain(lineage: Lineage) -> Html:
    """Base, merged adapters and adapter, in the order in which they apply."""
    trained = " → ".join(record.get("stage", "?") for record in lineage.history)
    name = lineage.base + (f" at {lineage.revision}" if lineage.revision else "")
    nodes = [_node("base", name, lineage.base_hash, f"trained in full: {trained}" if trained else "")]
    nodes += [_node("merged adapter", record.stage, record.hash) for record in lineage.merged]
    if top := lineage.adapter:
        nodes.append(_node("adapter", top.stage, top.hash))
    return _el("ol", _join(nodes), class_="chain")


def _node(kind: str, name: str, full_hash: str, note: str = "") -> Html:
    parts = [_el("small", kind), _el("b", name), _el("small", note) if note else None]
    return _el("li", *parts, _el("code", _short(full_hash), title=full_hash), class_=kind.split()[-1])


def _short(full_hash: str) -> str:
    """The first ten digits of a hash, after its scheme where it has one."""
    scheme, colon, digest = full_hash.rpartition(":")
    return scheme + colon + digest[:10]


# Plots

# Name of a CSS variable: colour on a light page, on a dark one. Plots are drawn in the light ones, which are then
# replaced by the variables, so they follow the page.
_PALETTE = {
    "ink": ("#1c2229", "#e4e8ed"),
    "muted": ("#59636f", "#9ba6b3"),
    "rule": ("#d9dee4", "#363e48"),
    "page": ("#fefefe", "#15191e"),
    "panel": ("#f4f6f8", "#1d2229"),
    "accent": ("#1d5fae", "#7fb4f2"),
    "second": ("#b0500e", "#f0a365"),
    "better": ("#1b6a3d", "#74d09b"),
    "worse": ("#9b2c2c", "#f29090"),
}
_COLOUR = {name: light for name, (light, _) in _PALETTE.items()}
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


def _score_plot(name: str, rows: list[dict[str, Any]], task: str, reference: str, decimals: int) -> Html:
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
                _number(score["value"], decimals),
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

    told = ", ".join(f"{label} {_number(score['value'], decimals)}" for label, score in scored)
    return _plot(name, f"{scored[0][1]['label']}: {told}", draw, height=0.55 + 0.3 * len(scored))


def _clipped(label: str, length: int = 16) -> str:
    """A label that fits beside a plot: the middle of a long one is left out."""
    return label if len(label) <= length else f"{label[: length // 2 - 1]}…{label[-length // 2 :]}"


def _loss_plot(name: str, run: Run) -> Html | None:
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


def _curve_plot(name: str, run: Run, key: str, label: str, line: str) -> Html | None:
    """One metric over the steps."""
    points = _visible(run.series(key))
    if not len(points[0]):
        return None

    def draw(axes: Axes) -> None:
        axes.plot(*points, line, color=_COLOUR["second" if "o" in line else "accent"], markersize=4, linewidth=1.2)
        axes.set_xlabel("training (steps)")
        axes.set_ylabel(label)

    return _plot(name, f"{label} of {run.label} over the training steps", draw)


def _visible(series: Series) -> Series:
    finite = np.isfinite(series[1])
    return series[0][finite], series[1][finite]


def _smoothed(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred running mean over ``window`` points, over fewer at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


_STYLE = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
  "Helvetica Neue","DejaVu Sans",Arial,sans-serif}
main{max-width:58rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .35rem;letter-spacing:-.015em;overflow-wrap:anywhere;text-wrap:balance}
h2{font-size:1.25rem;line-height:1.3;margin:3rem 0 1rem;padding-top:.9rem;border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:1.9rem 0 .25rem;overflow-wrap:anywhere}
p{margin:.5rem 0 1rem}
small{font-size:.8rem;font-weight:400}
a{color:var(--accent)}
.note,footer,figcaption small,th small,li small{color:var(--muted)}
.note,footer{font-size:.875rem;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
footer{margin-top:3rem;padding-top:.9rem;border-top:1px solid var(--rule)}
.scroll{overflow-x:auto;margin:.75rem 0}
table{border-collapse:collapse;min-width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.5rem .9rem .5rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}
th:last-child,td:last-child{padding-right:0}
thead th{vertical-align:bottom;border-bottom-color:var(--muted);line-height:1.3;min-width:5rem;max-width:14rem;
  overflow-wrap:break-word}
th small{display:block}
tbody th{position:sticky;left:0;background:var(--page);font-weight:600;min-width:8rem;max-width:14rem;
  overflow-wrap:anywhere}
td{min-width:4rem;max-width:20rem;overflow-wrap:break-word}
.number{text-align:right;white-space:nowrap}
thead .number{white-space:normal}
.number+:not(.number){padding-left:1rem}
td.none{color:var(--muted)}
td b{font-weight:750}
tbody tr:hover td,tbody tr:hover th{background:var(--panel)}
th button{all:unset;cursor:pointer;display:block;width:100%}
th button:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
.difference{display:inline-block;min-width:4.9rem;color:var(--muted)}
.difference.better{color:var(--better)}
.difference.worse{color:var(--worse)}
.label{margin-right:.5rem}
tbody th small{display:block;color:var(--muted);white-space:nowrap}
.badge{display:inline-block;padding:0 .45rem;border:1px solid var(--rule);border-radius:1rem;
  font-size:.72rem;font-weight:400;color:var(--muted)}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:1.25rem 1.5rem}
figure{margin:0;min-width:0}
figcaption{font-size:.9rem;font-weight:600;margin-bottom:.2rem}
figcaption small{margin-left:.5rem}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-family:inherit!important;font-variant-numeric:tabular-nums}
details{margin:.4rem 0}
summary{cursor:pointer;font-size:.9rem;overflow-wrap:anywhere}
pre{background:var(--panel);padding:.9rem 1rem;border-radius:.4rem;overflow-x:auto;font-size:.8rem;line-height:1.5;
  tab-size:2}
pre,code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.chain{list-style:none;margin:.6rem 0 0;padding:0;display:flex;flex-wrap:wrap;align-items:center;gap:.75rem 2.1rem}
.chain li{position:relative;border:1px solid var(--rule);border-radius:.45rem;padding:.55rem .8rem;
  background:var(--panel);display:flex;flex-direction:column;max-width:min(100%,21rem);font-size:.875rem;overflow-wrap:anywhere}
.chain li+li::before{content:"\\2192";position:absolute;right:100%;width:2.1rem;top:50%;transform:translateY(-50%);
  text-align:center;color:var(--muted);font-size:1.1rem}
.chain li.base{border-left:3px solid var(--accent)}
.chain code{font-size:.78rem;color:var(--muted);margin-top:.15rem}
@media (max-width:40rem){
main{padding:1.5rem 1rem 3rem}
h1{font-size:1.5rem}
h2{margin-top:2.25rem}
tbody th{max-width:9.5rem;min-width:8.25rem}
tbody th small{white-space:normal}
.chain li{max-width:100%}
.chain{flex-direction:column;align-items:stretch;gap:1.6rem}
.chain li+li::before{content:"\\2193";right:auto;left:0;width:100%;top:-1.6rem;transform:none;line-height:1.6rem}
}
@media print{main{max-width:none;padding:0}.scroll{overflow:visible}}
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    button.addEventListener("click", () => {
      const number = head.classList.contains("number");
      const before = head.getAttribute("aria-sort");
      const up = before ? before === "descending" : !number;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === "" || y === "") return (x === "") - (y === "");
        return (number ? x - y : x.localeCompare(y, undefined, {numeric: true})) * (up ? 1 : -1);
      });
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      table.tBodies[0].append(...rows);
    });
  });
}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m l2v.report", description="Runs side by side in one HTML page.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders; files among them are passed over")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page; runs.json is put beside it")
    parser.add_argument("--title", default="l2v report")
    parser.add_argument("--reference", help="label of the run to compare with (bidirectional, else the first)")
    given = parser.parse_args(arguments)
    folders = [run for folder in given.folders if not folder.is_file() for run in _runs_in(folder)]
    try:
        output = write_report(folders, given.output, title=given.title, reference=given.reference)
    except L2VError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{output}: {len(folders)} run{'s' if len(folders) != 1 else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
