"""The paper's numbers beside those of runs with its models; what is expected was looked up in its tables."""

import json
from pathlib import Path
from typing import Any

import pytest
from report_runs import report, score

from l2v.report.paper import Row, category_of, number_for, row_of, task_numbers
from l2v.report.runs import read_runs
from l2v.runs.files import read_json, write_json
from l2v.runs.lineage import AdapterRecord, Lineage

LLAMA2 = "meta-llama/Llama-2-7b-chat-hf"
SHEARED = "princeton-nlp/Sheared-LLaMA-1.3B"
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"
LLAMA3 = "meta-llama/Meta-Llama-3-8B-Instruct"
SUBSET = [
    *("SciFact", "ArguAna", "NFCorpus", "StackOverflowDupQuestions", "SciDocsRR", "BiorxivClusteringS2S"),
    *("MedrxivClusteringS2S", "TwentyNewsgroupsClustering", "SprintDuplicateQuestions", "Banking77Classification"),
    *("EmotionClassification", "MassiveIntentClassification", "STS17", "SICK-R", "STSBenchmark"),
]
STS = ["BIOSSES", "SICK-R", "STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "STS17", "STS22"]
ALL = sorted(task_numbers(Row("LLaMA-2-7B", "Bi + MNTP", True, "mean")))


def adapter(stage: str) -> AdapterRecord:
    return AdapterRecord(stage, f"merged/{stage}", f"hash-of-{stage}")


def lineage(base: str, *stages: str, **more: Any) -> Lineage:
    *merged, top = [adapter(stage) for stage in stages] or [None]
    return Lineage(base, "commit:1", merged=[record for record in merged if record], adapter=top, **more)


def average(tasks: list[str], value: float = 0.5) -> dict[str, Any]:
    return {**score("Average", f"{len(tasks)} tasks", value), "details": dict.fromkeys(tasks, value)}


def run_of(
    folder: Path,
    made_of: Lineage | None,
    scores: dict[str, dict[str, Any]],
    suite: str = "mteb",
    attention: str = "bidirectional",
    pooling: str | None = "mean",
    choices: dict[str, str] | None = None,
    **more: Any,
) -> Path:
    content = {"suite": suite, "encoder": str(folder), "adapters": [], "attention": attention, "pooling": pooling}
    write_json(folder / "evaluation" / f"{suite}.json", {**content, **more, "scores": scores})
    if made_of is not None:
        made_of.write(folder / "lineage.json")
        write_json(folder / "run.json", {"status": "finished", "choices": choices or {}})
    return folder


def found(folder: Path, suite: str = "mteb") -> list[tuple[float, str] | None]:
    (run,) = read_runs([folder])
    content = run.suites[suite]
    numbers = [number_for(run, content, suite, entry) for entry in content["scores"].values()]
    return [(number.value, number.source) if number else None for number in numbers]


def test_the_tables_agree_with_one_another() -> None:
    """Averages that the paper prints are those of the tasks that it prints."""
    models = {
        "S-LLaMA-1.3B": (49.42, 61.85, 52.40),
        "LLaMA-2-7B": (55.36, 64.14, 58.97),
        "Mistral-7B": (56.80, 64.80, 60.50),
    }
    for model, (unsupervised, supervised, subset) in models.items():
        tasks = task_numbers(Row(model, "Bi + MNTP + SimCSE", False, "mean"))
        assert len(tasks) == 56
        assert 100 * sum(tasks.values()) / 56 == pytest.approx(unsupervised, abs=0.006)
        assert 100 * sum(tasks[task] for task in SUBSET) / 15 == pytest.approx(subset, abs=0.1), "Table 5 was run apart"
        tasks = task_numbers(Row(model, "Bi + MNTP", True, "mean"))
        assert 100 * sum(tasks.values()) / 56 == pytest.approx(supervised, abs=0.006)
    assert {category_of(task) for task in STS} == {"STS"}
    assert category_of("nothing") is None


@pytest.mark.parametrize(
    ("made_of", "attention", "pooling", "tasks", "expected"),
    [
        (lineage(LLAMA2, "mntp", "simcse"), "bidirectional", "mean", ALL, (0.5536, "Table 1")),
        (lineage(LLAMA2, "mntp", "simcse"), "bidirectional", "mean", STS, (0.7641, "Table 1")),
        (lineage(SHEARED, "mntp"), "bidirectional", "mean", ALL, (0.4143, "Table 1")),
        (lineage(SHEARED), "causal", "weighted_mean", ALL, (0.3505, "Table 1")),
        (lineage(SHEARED), "causal", "mean", ALL, None),
        (lineage(MISTRAL), "bidirectional", "mean", ALL, (0.4686, "Table 1")),
        (lineage(LLAMA2), "bidirectional", "mean", ALL, None),
        (lineage(LLAMA3, "supervised"), "causal", "weighted_mean", ALL, (0.6387, "Table 2")),
        (lineage(LLAMA3, "mntp", "supervised"), "bidirectional", "mean", ALL, (0.6501, "Table 2")),
        (lineage(LLAMA3, "mntp", "simcse", "supervised"), "bidirectional", "mean", STS, (0.8298, "Table 2")),
        (lineage(MISTRAL, "mntp"), "bidirectional", "mean", SUBSET, (0.5389, "Table 5")),
        (lineage(MISTRAL, "simcse"), "bidirectional", "last_token", SUBSET, (0.4973, "Table 5")),
        (lineage(LLAMA2, "simcse"), "causal", "weighted_mean", SUBSET, (0.5355, "Table 5")),
        (lineage(SHEARED, "mntp", "simcse"), "bidirectional", "mean", ["SICK-R"], (0.6934, "Table 11")),
        (
            lineage(MISTRAL, "mntp", "simcse"),
            "bidirectional",
            "mean",
            ["SciFact", "ArguAna", "NFCorpus"],
            (pytest.approx((68.67 + 51.0 + 27.16) / 300, abs=1e-6), "Table 11, mean of 3 tasks"),
        ),
        (lineage(LLAMA2, "mntp", "supervised"), "bidirectional", "mean", ["STS17"], (0.9063, "Table 12")),
        (lineage(LLAMA2, "mntp", "supervised"), "bidirectional", "weighted_mean", ["STS17"], None),
        (lineage(LLAMA2, "mntp", "simcse"), "bidirectional", "mean", ["SciFact", "LEMBPasskey"], None),
        (lineage(LLAMA2, "mntp", "mntp"), "bidirectional", "mean", ALL, None),
        (lineage(LLAMA2, "mntp", base_ratio=0.5), "bidirectional", "mean", ALL, None),
        (lineage(LLAMA2, "mntp", others=[{"weight": 0.5}]), "bidirectional", "mean", ALL, None),
        (lineage("HuggingFaceTB/SmolLM2-135M", "mntp"), "bidirectional", "mean", ALL, None),
        (lineage("mistralai/Mistral-7B-Instruct-v0.3", "mntp"), "bidirectional", "mean", ALL, None),
    ],
)
def test_a_score_is_beside_the_papers(
    tmp_path: Path, made_of: Lineage, attention: str, pooling: str, tasks: list[str], expected: Any
) -> None:
    run_of(tmp_path / "run", made_of, {"mteb": average(tasks)}, attention=attention, pooling=pooling)
    assert found(tmp_path / "run") == [expected]


def test_an_adapter_that_was_trained_further_counts_as_a_stage(tmp_path: Path) -> None:
    made_of = Lineage(SHEARED, "c", merged=[adapter("mntp")], initial=adapter("simcse"), adapter=adapter("supervised"))
    run_of(tmp_path / "run", made_of, {"mteb": average(ALL)})
    assert found(tmp_path / "run") == [(0.6196, "Table 2")]


def test_full_fine_tuning_is_known_by_its_origin(tmp_path: Path) -> None:
    history = [{"stage": "mntp", "base": SHEARED, "base_hash": "c"}]
    made_of = Lineage("encoder", "sha256:2", origin=SHEARED, history=history)
    run_of(tmp_path / "run", made_of, {"mteb": average(ALL)})
    assert found(tmp_path / "run") == [(0.4143, "Table 1")]


@pytest.mark.parametrize(
    ("base", "choice", "expected"),
    [
        ("../../models/llama", "llama2-7b", (0.4570, "Table 1")),
        ("../../models/Llama-2-7b-chat-hf", "smollm2-135m", (0.4570, "Table 1")),
        ("../../models/llama", "smollm2-135m", None),
        ("someone/another-model", "llama2-7b", None),
    ],
)
def test_a_folder_is_known_by_its_name_or_by_the_config(
    tmp_path: Path, base: str, choice: str, expected: tuple[float, str] | None
) -> None:
    run_of(tmp_path / "run", lineage(base, "mntp"), {"mteb": average(ALL)}, choices={"model": choice})
    assert found(tmp_path / "run") == [expected]


@pytest.mark.parametrize(
    ("encoder", "adapters", "expected"),
    [
        (SHEARED, [], None),
        (MISTRAL, [], (0.4686, "Table 1")),
        ("McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp", [], (0.4143, "Table 1")),
        ("McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp-unsup-simcse", [], (0.4942, "Table 1")),
        ("McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp-supervised", [], (0.6185, "Table 2")),
        (
            "McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp",
            ["McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp-unsup-simcse"],
            (0.4942, "Table 1"),
        ),
        (SHEARED, ["me/my-adapter"], None),
        (MISTRAL, None, None),
    ],
)
def test_an_evaluation_without_a_run_is_known_by_what_it_evaluates(
    tmp_path: Path, encoder: str, adapters: list[str] | None, expected: tuple[float, str] | None
) -> None:
    folder = run_of(tmp_path / "run", None, {"mteb": average(ALL)}, encoder=encoder, adapters=adapters)
    if adapters is None:  # a file that does not say whether adapters were merged
        file = folder / "evaluation" / "mteb.json"
        write_json(file, {key: value for key, value in read_json(file).items() if key != "adapters"})
    assert found(folder) == [expected]


def test_a_run_that_is_evaluated_elsewhere_is_followed(tmp_path: Path) -> None:
    run = run_of(tmp_path / "mntp", lineage(LLAMA2, "mntp"), {"mteb": average(ALL)})
    other = run_of(
        tmp_path / "mntp-last", None, {"mteb": average(SUBSET)}, encoder=str(run), adapters=[], pooling="last_token"
    )
    assert found(other) == [(0.3266, "Table 5")]


@pytest.mark.parametrize("suite", ["mteb_v2", "quick"])
def test_other_suites_have_other_data(tmp_path: Path, suite: str) -> None:
    run_of(tmp_path / "run", lineage(LLAMA2, "mntp", "simcse"), {"x": average(["STS17"])}, suite)
    assert found(tmp_path / "run", suite) == [None]


@pytest.mark.parametrize(
    ("made_of", "attention", "task", "data", "part", "expected"),
    [
        (lineage(LLAMA2, "mntp"), "bidirectional", "ner", "conll2003", "test", 0.9716),
        (lineage(SHEARED), "causal", "chunk", "conll2003", "test", 0.8610),
        (lineage(MISTRAL, "simcse"), "bidirectional", "pos", "conll2003", "test", 0.9212),
        (lineage("google-bert/bert-large-cased"), "bidirectional", "pos", "conll2003", "test", 0.7512),
        (lineage("microsoft/deberta-v3-large"), "bidirectional", "ner", "conll2003", "test", 0.9497),
        (lineage(LLAMA2, "mntp"), "bidirectional", "ner", "conll2003", "validation", None),
        (lineage(LLAMA2, "mntp"), "bidirectional", "pos", "conllu", "test", None),
        (lineage(LLAMA3, "mntp"), "bidirectional", "ner", "conll2003", "test", None),
    ],
)
def test_word_scores(
    tmp_path: Path, made_of: Lineage, attention: str, task: str, data: str, part: str, expected: float | None
) -> None:
    scores = {
        f"{task}_accuracy": score(task, "paper_accuracy", 0.9),
        f"{task}_f1": score(task, "F1", 0.8),
    }
    words = {"task": task, "part": part}
    run_of(tmp_path / "run", made_of, scores, task, attention, None, {"data": data}, words=words)
    assert found(tmp_path / "run", task) == [(expected, "Table 4") if expected else None, None]


def test_the_page_shows_the_paper_beside_the_scores(tmp_path: Path) -> None:
    scores = {"mteb": average(ALL, 0.5), "mteb_sts": average(STS, 0.75)}
    ours = run_of(tmp_path / "ours", lineage(LLAMA2, "mntp", "simcse"), scores)
    small = run_of(tmp_path / "small", lineage("HuggingFaceTB/SmolLM2-135M"), scores)
    page, document = report([ours, small], tmp_path)
    assert document["runs"][0]["scores"]["mteb"]["paper"] == {
        "value": 0.5536,
        "row": "LLaMA-2-7B, Bi + MNTP + SimCSE",
        "source": "Table 1",
        "difference": pytest.approx(-0.0536),
    }
    assert document["runs"][1]["scores"]["mteb"]["paper"] is None
    assert page.count('class="paper"') == 2, "the average and STS of one run"
    assert 'title="LLaMA-2-7B, Bi + MNTP + SimCSE (Table 1)">paper 0.5536<' in page and "▼ −0.0536" in page
    tasks = page.partition("56 tasks one by one")[2].partition("</table>")[0]
    assert tasks.count("<tr>") == 57
    assert "paper<small>LLaMA-2-7B, Bi + MNTP + SimCSE (Table 11)</small>" in tasks
    row = next(row for row in tasks.split("<tr>") if 'data-value="STS22"' in row)
    assert "0.7500" in row and "▲ +0.1153" in row and "0.6347" in row, "STS22 of LLaMA-2 in Table 11 is 63.47"


def test_a_page_without_such_models_says_nothing_of_the_paper(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "small", lineage("HuggingFaceTB/SmolLM2-135M"), {"mteb": average(ALL)})
    page, document = report([folder], tmp_path)
    assert "paper" not in page.partition("<body>")[2]
    assert row_of(read_runs([folder])[0], json.loads((folder / "evaluation" / "mteb.json").read_text())) is None
    assert "56 tasks one by one" in page
    assert document["runs"][0]["scores"]["mteb"]["paper"] is None
