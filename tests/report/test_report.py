"""Reports are made of fabricated run folders, small but shaped like real ones."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import BASE, MNTP, Page, demo_runs, report, score, trained, write_suite

from l2v.cli.report import main
from l2v.errors import L2VError
from l2v.report import print_scores, read_runs, summary_rows, write_report
from l2v.report.runs import runs_in
from l2v.runs.files import write_json, write_text
from l2v.runs.lineage import AdapterRecord, Lineage


@pytest.fixture
def demo(tmp_path: Path) -> list[Path]:
    return demo_runs(tmp_path)


def test_page_shows_every_score_and_marks_the_best(demo: list[Path], tmp_path: Path) -> None:
    page, _ = report(demo, tmp_path, title="Four encoders")
    assert "<h1>Four encoders</h1>" in page
    for value in ("0.4717", "0.5310", "0.3322", "0.4127", "812.40", "0.5322", "27.31", "0.6874", "64.02"):
        assert value in page
    assert re.findall(r'<b title="best">([^<]*)</b>', page) == ["0.5310", "27.31", "0.6874"]
    assert "Spearman" in page
    assert "perplexity, lower is better" in page
    assert "torch 2.13.0" in page


def test_page_shows_curves_speed_settings_and_lineage(demo: list[Path], tmp_path: Path) -> None:
    text = " ".join(Page(report(demo, tmp_path)[0]).words)
    for words in ("Loss nats per masked token", "● simcse", "from 2.9512", "1 more plot"):
        assert words in " ".join(text.split())
    for words in ("steps", "Validation accuracy", "Learning rate", "mean of 3"):
        assert text.count(words) >= 2
    for words in ("13 min 32 s", "41.2 s", "401", "2026-01-02 12:34 UTC", "sha256:c0ffee00c0"):
        assert words in text
    for words in ("0.0003", "layers: [1, 2]", "backward_change: 0.31"):
        assert words in text
    for words in ("package:models/smollm2.gguf", "sha256:0123456789", "aaaabbbbcc", "● mntp"):
        assert words in text


def test_page_stands_alone_and_nests(demo: list[Path], tmp_path: Path) -> None:
    html, _ = report(demo, tmp_path)
    page = Page(html)
    assert [name for name in page.references if not name.startswith("#")] == ["runs.json"]
    assert {name[1:] for name in page.references if name.startswith("#")} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", html)) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert page.tags.count("svg") == 3 + 2 * 4 + 1, "scores; loss, accuracy, rate and speed of two stages; lineage"
    assert 'name="viewport"' in html
    assert "prefers-color-scheme:dark" in html


def test_everything_written_by_others_is_escaped(demo: list[Path], tmp_path: Path) -> None:
    odd = demo[0].parent / '<b>x" $y$ & <script>alert(1)<'
    shutil.copytree(demo[2], odd)
    write_suite(odd, lee=score("<i>Lee</i>", "<u>", 0.5))
    write_text(odd / "config.yaml", 'name: "</pre><img src=x>"\n')
    write_json(odd / "run.json", {"stage": "<em>", "status": "<s>", "versions": {"torch": "<sup>"}, "seed": "<sub>"})
    Lineage("<base>", "<h>", history=[{"stage": "<q>"}]).write(odd / "lineage.json")
    tags = Page(report([odd, *demo], tmp_path, title="<h6>", reference=odd.name)[0]).tags
    assert not {"i", "u", "img", "em", "s", "sup", "sub", "base", "h", "q", "h6"} & set(tags)
    assert tags.count("script") == 1


def test_runs_json_holds_the_tables(demo: list[Path], tmp_path: Path) -> None:
    _, document = report(demo, tmp_path)
    assert [run["label"] for run in document["runs"]] == ["causal", "bidirectional", "mntp", "simcse"]
    assert document["reference"] == "bidirectional"
    assert document["versions"]["l2v"] == ["9.8.7"]
    mntp = document["runs"][2]
    assert (mntp["steps"], mntp["seconds"], mntp["tokens_per_second"], mntp["seed"]) == (60, 812.5, 401.0, 7)
    assert mntp["evaluations"]["demo"]["pooling"] == "mean"
    assert mntp["lineage"]["adapter"]["hash"] == MNTP.hash
    assert document["settings"] == {
        "choices.stage": {"mntp": "mntp", "simcse": "simcse"},
        "stage.name": {"mntp": "mntp", "simcse": "simcse"},
        "stage.learning_rate": {"mntp": 0.001, "simcse": 0.0003},
    }
    for row, run in zip(summary_rows(demo), document["runs"], strict=True):
        assert {task: run["scores"][task]["value"] for task in run["scores"]} == {
            task: score["value"] for task, score in row["scores"].items()
        }


def test_differences_are_to_the_reference(demo: list[Path], tmp_path: Path) -> None:
    page, document = report(demo, tmp_path)
    scores = {run["label"]: run["scores"] for run in document["runs"]}
    assert scores["simcse"]["lee"]["difference"] == pytest.approx(0.3552)
    assert scores["mntp"]["perplexity"]["difference"] == pytest.approx(-785.09)
    assert scores["bidirectional"]["lee"]["difference"] is None
    assert scores["causal"]["perplexity"]["difference"] is None
    assert "▲ +0.3552" in page
    assert "▲ −785.09" in page, "a lower perplexity is better"
    assert "▼ −0.0100" in page
    assert "= 0.0000" in page


@pytest.mark.parametrize(("names", "wanted", "found"), [([0, 2], None, "causal"), ([0, 1, 2], "mntp", "mntp")])
def test_reference_is_the_first_or_the_one_asked_for(
    demo: list[Path], tmp_path: Path, names: list[int], wanted: str | None, found: str
) -> None:
    _, document = report([demo[n] for n in names], tmp_path, reference=wanted)
    assert document["reference"] == found
    assert [run["scores"]["lee"]["difference"] is None for run in document["runs"]] == [
        run["label"] == found for run in document["runs"]
    ]


def test_unknown_reference_names_the_labels(demo: list[Path], tmp_path: Path) -> None:
    with pytest.raises(L2VError, match="reference=word: no run has this label; expected one of causal, bidirectional"):
        report(demo, tmp_path, reference="word")


def test_summary_rows(demo: list[Path]) -> None:
    rows = summary_rows(demo)
    assert [row["seconds"] for row in rows] == [None, None, 812.5, 812.5]
    assert rows[0]["scores"]["lee"] == {
        "label": "Lee news similarity",
        "metric": "Spearman",
        "value": 0.4717,
        "higher_is_better": True,
        "paper": None,
    }
    assert rows[0]["scores"]["perplexity"]["value"] is None


def test_a_task_of_two_suites_is_told_apart(demo: list[Path]) -> None:
    write_suite(demo[1], "more", lee=score("Lee", "Spearman", 0.9))
    rows = summary_rows(demo[:2])
    assert list(rows[0]["scores"]) == ["demo/lee", "wikipedia", "perplexity"]
    assert {task: s["value"] for task, s in rows[1]["scores"].items() if "lee" in task} == {
        "demo/lee": 0.3322,
        "more/lee": 0.9,
    }
    assert rows[1]["scores"]["more/lee"]["label"] == "Lee (more)"


def test_equal_values_share_the_best_and_a_single_one_is_none(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        write_suite(folder, lee=score("Lee", "Spearman", 0.5))
    assert [run["scores"]["lee"]["best"] for run in report(folders, tmp_path)[1]["runs"]] == [True, True]
    assert not report(folders[:1], tmp_path)[1]["runs"][0]["scores"]["lee"]["best"]


@pytest.mark.parametrize("kept", ["run.json", "config.yaml", "lineage.json", "metrics.jsonl", "evaluation"])
def test_a_run_may_hold_any_one_of_its_files(demo: list[Path], tmp_path: Path, kept: str) -> None:
    for path in demo[2].iterdir():
        if path.name != kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    Page(report([demo[2]], tmp_path)[0])
    assert Page(report([demo[2], demo[3]], tmp_path)[0]).words


def test_values_that_are_no_numbers_are_left_out(demo: list[Path], tmp_path: Path) -> None:
    write_suite(demo[2], lee=score("Lee", "Spearman", math.nan), wikipedia=score("Wikipedia", "nDCG@10", None))
    with (demo[2] / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 61, "train/loss": NaN, "learning_rate": null}\n')
    write_text(demo[2] / "config.yaml", "day: 2026-01-02\nlimit: .inf\nempty: {}\n")
    page, document = report([demo[2]], tmp_path)
    assert "training losses that are not finite: 1" in page
    assert "NaN" not in json.dumps(document)
    assert document["runs"][0]["scores"]["lee"]["value"] is None


def test_metrics_of_a_resumed_run_that_still_writes(demo: list[Path]) -> None:
    file = demo[2] / "metrics.jsonl"
    file.write_text('{"step": 2, "a": 1}\n{"step": 3, "a": 1}\n\n{"step": 2, "a": 5}\n{"step": 4, "a', encoding="utf-8")
    steps, values = read_runs([demo[2]])[0].series("a")
    assert (steps.tolist(), values.tolist()) == ([2, 3], [5.0, 1.0])


def test_labels_grow_until_they_differ(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a/mntp", "b/mntp", "b/simcse")]
    for folder in folders:
        write_suite(folder)
    assert [run.label for run in read_runs([*folders, folders[0] / "../mntp"])] == ["a/mntp", "b/mntp", "simcse"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("run.json", '{"a": 1,\n b}', r"run\.json:2: not JSON"),
        ("run.json", "[]", r"run\.json: expected an object, found list"),
        ("metrics.jsonl", '{"step": 1}\n{"step"\n{"step": 3}\n', r"metrics\.jsonl:2: not JSON"),
        ("config.yaml", "a: 1\nb: [1\n", r"config\.yaml:3: not YAML"),
        ("lineage.json", '{"base": "x"}', r"lineage\.json: not a lineage"),
        (
            "evaluation/demo.json",
            '{"scores": {"lee": 1}}',
            r"demo\.json: scores\.lee: expected an object, found int",
        ),
        (
            "contamination/demo.json",
            '{"data": "x", "n": 13, "training": {"texts": 1}, "tasks": {"sts": {"label": "sts"}}}',
            r"demo\.json: not a file of l2v contamination of this version; delete it, or write it anew",
        ),
        (
            "contamination/demo.json",
            '{"data": "x", "n": 13, "training": {"texts": 1, "words": 2}, "tasks": {"sts": {"label": "sts"}}}',
            r"demo\.json: not a file of l2v contamination of this version; delete it, or write it anew",
        ),
    ],
)
def test_broken_files_are_named(
    demo: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, message: str
) -> None:
    write_text(demo[2] / file, text)
    assert main([str(demo[2]), "--output", str(tmp_path / "report.html")]) == 1
    told = capsys.readouterr().err
    assert re.search(message, told)
    assert told.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(L2VError, match=r"is not a run folder: no run\.json and no evaluation/"):
        summary_rows([tmp_path])
    with pytest.raises(L2VError, match="no run folder is given"):
        summary_rows([])


def test_output_that_is_a_folder(demo: list[Path], tmp_path: Path) -> None:
    with pytest.raises(L2VError, match="expected a file to write the page to, found a folder"):
        write_report(demo, tmp_path)


def test_command_passes_over_files_and_needs_no_torch(demo: list[Path], tmp_path: Path) -> None:
    write_report(demo, demo[0].parent / "report.html")
    paths = [str(path) for path in sorted(demo[0].parent.iterdir())]
    code = "import sys; from l2v.cli.report import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, *paths, "--output", str(tmp_path / "new" / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'new' / 'page.html'}: 4 runs\n"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["page.html", "runs.json"]


def test_word_scores_by_layer_class_and_confusion(tmp_path: Path) -> None:
    from l2v.probing.scores import tagging_scores

    labels = ["B-PER", "O", "unseen"]
    scores = tagging_scores([["B-PER", "O"]], [["B-PER", "B-PER"]], labels, spans=True)
    numbers = {name: scores[name] for name in ("paper_accuracy", "precision", "recall", "f1")}
    words = {
        "task": "ner",
        "part": "test",
        "shift": "next_token",
        "layer": 2,
        "by_layer": [{"layer": layer, "test": numbers} for layer in (0, 2)],
        "mix": {"0": 0.25, "2": 0.75},
        "scores": {"test": scores},
    }
    write_json(tmp_path / "run" / "evaluation" / "ner.json", {"suite": "ner", "scores": {}, "words": words})
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "<h2>Words</h2>" in page and "token accuracy 0.5000" in page and "next token" in page
    assert "ner F1 by layer of run" in page and "weight in the mix by layer: 0: 0.2500, 2: 0.7500" in page
    assert "PER" in page and "unseen" not in page


def drawing(page: str, words: str) -> str:
    """The drawing whose description begins with ``words``."""
    found = [text for text in re.findall("<svg.*?</svg>", page, re.DOTALL) if f'aria-label="{words}' in text]
    assert len(found) == 1, words
    return found[0]


def lines(plot: str) -> set[str]:
    """Numbers of the runs that have a curve in a plot."""
    return set(re.findall(r'<g id="[^"]*-run(\d+)"', plot))


def test_runs_of_a_stage_share_plots(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for number, folder in enumerate(folders):
        trained(folder, "simcse", BASE, learning_rate=0.001 * (number + 1))
    with (folders[1] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "evaluation/quick/scifact": 0.25}\n{"step": 40, "evaluation/quick/scifact": 0.5}\n')
    with (folders[2] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "evaluation/quick/scifact": 0.75}\n')
    page, _ = report(folders, tmp_path)
    assert lines(drawing(page, "Training loss of a, b, c")) == {"0", "1", "2"}
    assert lines(drawing(page, "scifact of a, b, c")) == {"1", "2"}
    assert "quick, evaluated during training" in page
    assert re.findall(r'data-run="(\d)"', page) == ["0", "1", "2"]
    colours = re.findall(r'border-top:3px ([^"]*)"', page)
    assert colours == ["solid var(--c0)", "solid var(--c1)", "solid var(--c2)"]
    for number in range(3):
        assert f"stroke: var(--c{number})" in drawing(page, "Validation accuracy")


def test_curves_of_many_steps_are_thinned(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        rows = [{"step": step, "validation/loss": step % 2} for step in range(3000)]
        write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    page, _ = report(folders, tmp_path)
    curve = re.search(r'run0">\s*<path d="([^"]*)"', drawing(page, "Validation loss"))
    assert curve is not None
    assert 150 < curve[1].count("L") <= 200
    assert len(page) < 100_000


def test_runs_with_the_same_ancestor_share_its_node(demo: list[Path], tmp_path: Path) -> None:
    for name, initial in (("merged", None), ("further", AdapterRecord("simcse", "initial_adapter", "5555"))):
        top = AdapterRecord("supervised", "adapter", f"hash-of-{name}")
        write_suite(demo[0].parent / name)
        lineage = Lineage(BASE.base, BASE.base_hash, merged=[MNTP], initial=initial, adapter=top)
        lineage.write(demo[0].parent / name / "lineage.json")
    folders = [*demo, demo[0].parent / "merged", demo[0].parent / "further"]
    for folder in demo[:2]:  # evaluations of the base itself, which they do not know the hash of
        write_suite_of(folder, BASE.base)
    graph = drawing(report(folders, tmp_path)[0], "base package:models")
    assert graph.count(f"<title>{BASE.base_hash}</title>") == 1
    assert graph.count(f"<title>{MNTP.hash}</title>") == 1
    names = re.findall(r'class="name"[^>]*>([^<]*)', graph)
    assert sorted(names) == ["mntp", "simcse", "simcse", "smollm2.gguf", "supervised", "supervised"]
    assert graph.count('class="edge"') + graph.count('class="edge goes-on"') == 5
    assert graph.count('class="edge goes-on"') == 1
    base = next(box for box in graph.split("<g ") if BASE.base_hash in box and "<rect" in box)
    assert [run for run in ("causal", "bidirectional", "mntp", "simcse") if f"● {run}" in base] == [
        "causal",
        "bidirectional",
    ]


def write_suite_of(folder: Path, encoder: str) -> None:
    file = folder / "evaluation" / "demo.json"
    write_json(file, {**json.loads(file.read_text()), "encoder": encoder})


def test_full_fine_tuning_is_a_step_of_the_graph(tmp_path: Path) -> None:
    first = {"stage": "mntp", "base": "meta/decoder", "base_hash": "commit:1"}
    second = {"stage": "simcse", "base": "encoder", "base_hash": "sha256:2"}
    for name, lineage in (
        ("one", Lineage("encoder", "sha256:2", origin="meta/decoder", history=[first])),
        ("two", Lineage("encoder", "sha256:3", origin="meta/decoder", history=[first, second])),
    ):
        write_suite(tmp_path / name)
        lineage.write(tmp_path / name / "lineage.json")
    graph = drawing(report([tmp_path / "one", tmp_path / "two"], tmp_path)[0], "base meta/decoder")
    assert re.findall(r'class="kind"[^>]*>([^<]*)', graph) == ["base", "all weights", "all weights"]
    assert re.findall(r'class="run"[^>]*>([^<]*)', graph) == ["● one", "● two"]


def test_settings_that_differ_stand_before_those_that_some_runs_have(tmp_path: Path) -> None:
    long = [{"path": "corpus/part.jsonl", "weight": 0.5}] * 5
    for number, name in enumerate("abcd"):
        write_suite(tmp_path / name)
        extra = f"only: {json.dumps(long)}\n" if name == "d" else ""
        write_text(tmp_path / name / "config.yaml", f"rate: {number // 3}\nsame: 1\n{extra}")
    page, _ = report([tmp_path / name for name in "abcd"], tmp_path)
    shown, _, folded = page.partition("1 setting that only some of the runs have")
    assert re.findall(r'data-value="(rate|same|only)"', shown) == ["rate"]
    assert re.findall(r'data-value="(rate|same|only)"', folded) == ["only"]
    assert shown.count('<td class="common">0</td>') == 3 and "<td>1</td>" in shown
    assert "…</summary>" in folded, "a long value is to open"


@pytest.mark.parametrize(("runs", "tasks"), [(1, 3), (3, 2)])
def test_the_table_in_the_terminal_is_as_wide_as_the_smaller_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: int, tasks: int
) -> None:
    for run in range(runs):
        scores = {
            f"t{n}": {"label": f"Task{n}", "metric": "points", "value": n + run / 10, "higher_is_better": True}
            for n in range(tasks)
        }
        write_json(tmp_path / f"run{run}" / "evaluation" / "s.json", {"suite": "s", "scores": scores})
    print_scores([tmp_path / f"run{run}" for run in range(runs)])
    rows = [line.strip("│ ").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    found = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    if runs < tasks:
        assert found == {f"Task{n}, points": [f"{n:.4f}"] for n in range(tasks)}
    else:
        assert found == {f"run{run}": [f"{n + run / 10:.4f}" for n in range(tasks)] for run in range(runs)}


def test_analyses_come_after_scores(tmp_path: Path) -> None:
    score = {"label": "Task", "metric": "points", "value": 1.0, "higher_is_better": True}
    for suite, found in (("a", {"t": {**score, "plot": {"kind": "other"}}}), ("b", {"u": score})):
        write_json(tmp_path / "run" / "evaluation" / f"{suite}.json", {"suite": suite, "scores": found})
    [run] = read_runs([tmp_path / "run"])
    assert list(run.suites) == ["b", "a"]


def test_runs_are_found_however_deep_and_folders_without_any_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("one", "trials/mntp/a/mntp", "trials/mntp/b/mntp", "one/inside", ".hidden/x"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "run.json").write_text("{}")
    (tmp_path / "vectors").mkdir()
    found = [run.relative_to(tmp_path).as_posix() for run in runs_in(tmp_path)]
    assert found == ["one", "trials/mntp/a/mntp", "trials/mntp/b/mntp"]
    page = ["--output", str(tmp_path / "report.html")]
    assert main([*map(str, sorted(tmp_path.glob("[otv]*"))), *page]) == 0
    told = capsys.readouterr()
    assert "3 runs" in told.out and f"no runs, and left out: {tmp_path / 'vectors'}" in told.err.replace("\n", "")
    for gone in (["vectors"], ["one", "gone"]):
        assert main([*(str(tmp_path / name) for name in gone), *page]) == 1
        assert f"{tmp_path / gone[-1]} is not a run folder" in capsys.readouterr().err.replace("\n", "")
