"""Runs that differ in a setting or two, and in seeds, are an ablation."""

import json
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_runs import SIMCSE, Page, report, score, write_suite

from l2v.cli.report import main
from l2v.errors import L2VError
from l2v.report import print_scores, read_runs
from l2v.report.ablation import find_ablations, seeds_of
from l2v.report.runs import runs_in
from l2v.runs.files import write_json, write_text
from l2v.runs.lineage import AdapterRecord, Lineage

RATES, STRATEGIES, SEEDS = (0.2, 0.4, 0.8), ("bert", "all"), (1, 2)


def trained(folder: Path, stage: dict[str, Any], sick: float | None = None, **more: Any) -> Path:
    """A finished run, with what a config holds beside its settings."""
    choices = {"stage": stage["name"], "name": str(folder)}
    write_json(folder / "run.json", {"stage": stage["name"], "status": "finished", "choices": choices})
    model = {"source": "a/base", "pooling": {"_target_": f"l2v.pooling.Mean{len(folder.name) % 2}"}}
    own = {"name": folder.name, "run_dir": str(folder), "logger": {"csv": {"save_dir": str(folder)}}}
    settings = {**own, "seed": 0, "init_from": None, "stage": stage, "model": model, **more}
    write_text(folder / "config.yaml", yaml.safe_dump(settings))
    if sick is not None:
        ppl = score("Perplexity", "perplexity", 100 - 10 * sick, higher_is_better=False)
        write_suite(folder, sick=score("SICK-R", "Spearman", sick), ppl=ppl)
    return folder


def sick_of(strategy: str, rate: float, seed: int) -> float:
    return 0.7 - 0.2 * abs(rate - 0.4) + 0.01 * seed + (0.05 if strategy == "all" else 0)


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Points of a recipe's sweep: MNTP, which is varied, and SimCSE on it, which is scored."""
    whole = tmp_path / "grid"
    for strategy in STRATEGIES:
        for rate in RATES:
            for seed in SEEDS:
                point = whole / f"masking_probability-{rate}_masking_strategy-{strategy}_seed-{seed}"
                stage = {"name": "mntp", "masking_probability": rate, "masking_strategy": strategy}
                before = trained(point / "mntp", stage, seed=seed)
                scored = sick_of(strategy, rate, seed)
                trained(point / "simcse", {"name": "simcse"}, scored, seed=seed, init_from=str(before))
    return whole


def test_what_an_earlier_stage_was_varied_in_counts(grid: Path) -> None:
    runs = read_runs(runs_in(grid))
    assert len(runs) == 24
    (found,) = find_ablations(runs)
    assert found.stage == "simcse"
    assert found.settings == ["mntp: stage.masking_strategy", "mntp: stage.masking_probability"]
    assert [point.values for point in found.points] == [(s, rate) for s in ("all", "bert") for rate in RATES]
    assert all(len(point.labels) == 2 for point in found.points)
    shutil.move(grid, grid.with_name("moved"))  # init_from names folders that are gone
    assert find_ablations(read_runs(runs_in(grid.with_name("moved")))) != []


def test_the_page_has_a_line_a_strategy_and_folds_seeds(grid: Path, tmp_path: Path) -> None:
    html, document = report(runs_in(grid), tmp_path)
    (ablation,) = document["ablations"]
    point = ablation["points"][1]
    assert point["settings"] == {"mntp: stage.masking_strategy": "all", "mntp: stage.masking_probability": 0.4}
    values = [sick_of("all", 0.4, seed) for seed in SEEDS]
    sick = point["scores"]["sick"]
    assert sick["values"] == values
    assert (sick["mean"], sick["deviation"]) == (statistics.fmean(values), statistics.stdev(values))
    section = html[html.index('<section id="ablation"') : html.index('<section id="scores"')]
    text = " ".join(Page(section).words)
    assert "simcse by mntp: masking_strategy and mntp: masking_probability" in text
    assert '<b title="best">0.7650</b> ± 0.0071' in section and '<b title="best">92.35</b>' in section
    assert section.count("<figure>") == 2 and section.count('data-run="1"') == 1
    for figure in re.findall(r"<svg.*?</svg>", section, flags=re.DOTALL):
        assert "ablation-0-" in figure and "-run0" in figure and "-run1" in figure
        assert all(f">{rate}</text>" in figure or str(rate) in figure for rate in RATES)
    assert len(set(Page(html).ids)) == len(Page(html).ids)


def test_one_setting_and_words_for_values(tmp_path: Path) -> None:
    runs = [
        trained(tmp_path / kind, {"name": "simcse"}, 0.5, adapter={"kind": kind, "target": kind.upper()})
        for kind in ("lora", "dora")
    ]
    html, document = report(runs, tmp_path)
    (ablation,) = document["ablations"]
    assert ablation["settings"] == ["adapter.kind"], "target always changes with it"
    assert [point["settings"] for point in ablation["points"]] == [{"adapter.kind": "dora"}, {"adapter.kind": "lora"}]
    assert "simcse by adapter.kind" in html and ">dora</text>" in html


def test_seeds_alone_are_a_table(tmp_path: Path) -> None:
    runs = [trained(tmp_path / f"seed-{seed}", {"name": "simcse"}, 0.5 + seed / 100, seed=seed) for seed in (1, 2, 3)]
    html, document = report(runs, tmp_path)
    (ablation,) = document["ablations"]
    assert ablation["settings"] == [] and len(ablation["points"]) == 1
    assert "simcse: seeds" in html and "0.5200 ± 0.0100" in html


def test_starts_that_are_no_runs_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        trained(tmp_path / name, {"name": "simcse"}, 0.5, init_from=f"org/model-{name}", seed=seed)
        for seed, name in enumerate("ab")
    ]
    (found,) = find_ablations(read_runs(runs))
    assert found.settings == ["init_from"] and [point.values for point in found.points] == [
        ("org/model-a",),
        ("org/model-b",),
    ]
    print_scores(runs)
    assert "seeds)" not in capsys.readouterr().out


def test_an_earlier_stage_that_was_trained_twice_keeps_both_settings(tmp_path: Path) -> None:
    runs = []
    for rate in (0.4, 0.8):
        first = trained(tmp_path / f"{rate}-first", {"name": "mntp", "rate": 0.2})
        second = trained(tmp_path / f"{rate}-second", {"name": "mntp", "rate": rate}, init_from=str(first))
        runs.append(trained(tmp_path / f"{rate}-last", {"name": "simcse"}, rate, init_from=str(second)))
    (found,) = find_ablations(read_runs(runs))
    assert found.settings == ["mntp: stage.rate"] and [point.values for point in found.points] == [(0.4,), (0.8,)]


def test_runs_of_one_seed_are_not_called_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_scores([trained(tmp_path / name, {"name": "simcse"}, 0.5, seed=1) for name in ("first", "again")])
    assert "(2 runs)" in capsys.readouterr().out


def test_what_differs_in_more_is_none(tmp_path: Path) -> None:
    runs = [
        trained(tmp_path / f"run{n}", {"name": "simcse", "a": n % 2, "b": n // 2 % 2, "c": n // 4}, 0.5)
        for n in range(8)
    ]
    html, document = report(runs, tmp_path)
    assert document["ablations"] == [] and 'id="ablation"' not in html
    assert find_ablations(read_runs(runs[:4])) != [], "a and b only"
    assert find_ablations(read_runs(runs[:1])) == []


def test_the_terminal_folds_seeds(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [folder for folder in runs_in(grid) if folder.name == "simcse"]
    assert len(seeds_of(read_runs(folders))) == 6
    print_scores(folders)
    text = capsys.readouterr().out
    assert text.count("(2 seeds)") == 6 and "seed-" not in text
    assert "0.7650 ± 0.0071" in text


def test_the_terminal_names_a_run_under_the_folder_of_its_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        trained(tmp_path / part / "simcse", {"name": "simcse"}, 0.5, seed=seed)
        for seed, part in enumerate(("seed-0", "seed-1"))
    ]
    print_scores(runs)
    assert " simcse (2 seeds) ┃" in capsys.readouterr().out


def test_the_terminal_cuts_no_name_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"masking_strategy-{kind}_masking_probability-0.2_learning_rate-0.0001_seed-{kind}" for kind in "ab"]
    runs = [trained(tmp_path / name, {"name": "simcse", "kind": name}, 0.5) for name in names]
    print_scores(runs)
    lines = capsys.readouterr().out
    assert "…" not in lines
    told = "".join(line.split("│")[1].strip() for line in lines.splitlines() if "│" in line)
    assert all(name in told for name in names)


def test_the_command_takes_the_folder_of_a_sweep(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(grid), "--output", str(tmp_path / "out.html")]) == 0
    assert capsys.readouterr().out.strip() == f"{tmp_path / 'out.html'}: 24 runs"
    assert len(json.loads((tmp_path / "runs.json").read_text())["ablations"]) == 1


def test_a_setting_that_a_run_has_not_is_no_null(tmp_path: Path) -> None:
    lora = {"lora": {"rank": 16, "alpha": 32}}
    runs = [
        trained(tmp_path / "lora", {"name": "simcse"}, 0.9, adapter=lora),
        trained(tmp_path / "full", {"name": "simcse"}, 0.1, adapter={"lora": None}),
    ]
    (found,) = find_ablations(read_runs(runs))
    assert sorted(point.labels for point in found.points) == [["full"], ["lora"]]
    older = trained(tmp_path / "older", {"name": "mntp", "masking_probability": 0.2}, 0.9)
    newer = trained(tmp_path / "newer", {"name": "mntp", "masking_probability": 0.8, "layers": None}, 0.1)
    (found,) = find_ablations(read_runs([older, newer]))
    assert found.settings == ["stage.masking_probability"]
    assert [point.values for point in found.points] == [(0.2,), (0.8,)]


def test_a_whole_number_is_the_same_with_a_point(tmp_path: Path) -> None:
    runs = [
        trained(tmp_path / f"s{seed}", {"name": "simcse", "weight_decay": decay}, 0.5, seed=seed)
        for seed, decay in enumerate((0, 0.0))
    ]
    assert seeds_of(read_runs(runs)) == [["s0", "s1"]]


def test_a_stage_is_not_credited_to_the_run_that_has_taken_the_place_of_its_own(tmp_path: Path) -> None:
    """``demo`` was renamed, and another one trained under its name."""
    runs = []
    for name, rate, value in (("demo-20", 0.2, 0.9), ("demo", 0.8, 0.1)):
        adapter = AdapterRecord("mntp", "adapter", name)
        mntp = trained(tmp_path / name / "mntp", {"name": "mntp", "masking_probability": rate})
        Lineage("a/base", "hash", adapter=adapter).write(mntp / "lineage.json")
        simcse = trained(
            tmp_path / name / "simcse", {"name": "simcse"}, value, init_from=str(tmp_path / "demo" / "mntp")
        )
        Lineage("a/base", "hash", merged=[adapter], adapter=SIMCSE).write(simcse / "lineage.json")
        runs += [mntp, simcse]
    (found,) = find_ablations(read_runs(runs))
    assert found.settings == ["mntp: stage.masking_probability"]
    assert [(point.values, point.labels) for point in found.points] == [
        ((0.2,), ["demo-20/simcse"]),
        ((0.8,), ["demo/simcse"]),
    ]


def test_a_link_to_a_run_is_that_run(tmp_path: Path) -> None:
    runs = [trained(tmp_path / f"s{seed}", {"name": "simcse"}, 0.2 + seed, seed=seed) for seed in (0, 1)]
    (tmp_path / "latest").symlink_to(runs[1])
    assert [run.label for run in read_runs([*runs, tmp_path / "latest"])] == ["s0", "s1"]


def test_a_mean_of_fewer_runs_than_there_are_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [trained(tmp_path / f"s{seed}", {"name": "simcse"}, 0.5, seed=seed) for seed in (0, 1, 2)]
    write_suite(runs[0], "more", other=score("Other", "Spearman", 0.25))
    html, _ = report(runs, tmp_path)
    assert "0.2500 (1 of 3)" in html and "0.5000 ± 0.0000 (" not in html
    print_scores(runs)
    assert "0.2500 (1 of 3)" in capsys.readouterr().out


def test_scores_of_other_samples_are_columns_of_their_own(tmp_path: Path) -> None:
    runs = [trained(tmp_path / f"r{n}", {"name": "simcse", "rate": n}) for n in (0, 1)]
    for run, (label, value) in zip(runs, (("SICK-R (500 pairs)", 0.5), ("SICK-R (1,000 pairs)", 0.6)), strict=True):
        write_suite(run, sickr=score(label, "Spearman", value))
    _, document = report(runs, tmp_path)
    assert [list(row["scores"]) for row in document["runs"]] == [
        ["sickr (SICK-R (500 pairs), Spearman)"],
        ["sickr (SICK-R (1,000 pairs), Spearman)"],
    ]
    assert not any(one["best"] for row in document["runs"] for one in row["scores"].values())


def test_a_line_without_a_score_of_a_task_is_left_out_of_its_plot(tmp_path: Path) -> None:
    runs = []
    for kind, task in (("x", "lee"), ("y", "ner")):
        for rate in (1, 2):
            runs.append(trained(tmp_path / f"{kind}{rate}", {"name": "simcse", "rate": rate, "kind": kind}))
            write_suite(runs[-1], **{task: score(task, "Spearman", rate / 10)})
    html, _ = report(runs, tmp_path)
    assert "simcse by" in html


def test_broken_files_of_a_run_are_told_in_one_line(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", {"name": "simcse"}, 0.5)
    write_json(run / "run.json", {"stage": "simcse", "choices": [1]})
    with pytest.raises(L2VError, match=r"run.json: choices: expected an object, found list"):
        read_runs([run])
    (run / "config.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(L2VError, match=r"config.yaml: not UTF-8"):
        read_runs([run])
