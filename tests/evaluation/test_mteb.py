"""mteb's own tasks and scorers around an encoder: benchmarks, tasks from files, scores that outlive a crash."""

import gzip
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launch import composed, script
from quick_folder import TOPICS, texts, write_quick_folder
from scipy.stats import spearmanr
from tiny import SENTENCES

from l2v import Encoder
from l2v import config as configs
from l2v.errors import L2VError
from l2v.evaluation.mteb.benchmark import Benchmark
from l2v.evaluation.mteb.files import ClassificationSet, ClusteringSet, LocalSet, PairSet, StsSet
from l2v.evaluation.mteb.retrieval_files import RetrievalSet
from l2v.evaluation.results import ResultStore
from l2v.evaluation.suite import evaluate
from l2v.evaluation.tasks.lee import LeeSimilarity
from l2v.models.settings import EncoderSettings
from l2v.text.instructions import INSTRUCTIONS, mteb_prompts

mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install 'l2v[mteb]'")
sentence_transformers = pytest.importorskip("sentence_transformers", reason="mteb evaluates nothing without it")

Calls = list[tuple[list[str], str | None]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What was encoded: texts and their instruction."""
    seen: Calls = []
    original = Encoder.encode

    def encode(self: Encoder, texts: Any, *, instruction: str | None = None, **settings: Any) -> Any:
        seen.append((list(texts), instruction))
        return original(self, texts, instruction=instruction, **settings)

    monkeypatch.setattr(Encoder, "encode", encode)
    return seen


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The tasks of evaluation=quick on a few rows."""
    folder = write_quick_folder(tmp_path / "data")
    suite = configs.plain(composed("evaluate", ["evaluation=quick", "encoder=none", f"evaluation.folder={folder}"]))
    yield configs.build(suite["evaluation"]["tasks"], "evaluation.tasks")


def write_pairs(file: Path, sign: int = 1) -> StsSet:
    pairs = [(a, b) for a in SENTENCES for b in SENTENCES if a < b]
    rows = [{"sentence1": a, "sentence2": b, "score": sign * n} for n, (a, b) in enumerate(pairs)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return StsSet(name=file.stem, files=str(file))


def score(model: Path, tasks: dict[str, Any], folder: Path) -> dict[str, Any]:
    return evaluate(EncoderSettings(str(model)), tasks, suite="s", folder=folder, show=False)["scores"]


def test_the_suites_are_the_papers_and_todays(tmp_path: Path) -> None:
    expected = {
        **{"mteb": 56, "mteb_subset15": 15, "mteb_v2": 41, "mteb_multilingual_v2": 131},
        **{"rteb": 17, "beir": 15, "nanobeir": 13, "bright": 1, "longembed": 6},
    }
    sizes = {}
    for name in expected:
        suite = configs.plain(composed("evaluate", [f"evaluation={name}", "encoder=none"]))["evaluation"]
        assert suite["suite"] == name
        tasks = configs.build(suite["tasks"], "evaluation.tasks")[name]._tasks()
        sizes[name] = len(tasks)
        if name == "mteb":
            kinds = [task.metadata.type for task in tasks]
    assert sizes == expected
    # the columns of the paper's Table 1
    assert [kinds.count(k) for k in ("Retrieval", "Reranking", "Clustering", "PairClassification")] == [15, 4, 11, 3]
    assert [kinds.count(k) for k in ("Classification", "STS", "Summarization")] == [12, 10, 1]


def test_every_task_of_the_paper_has_its_instruction() -> None:
    from l2v.evaluation.mteb.model import instruction_by

    instruction_of = instruction_by("paper")
    leaves = Benchmark(benchmark="MTEB(eng, v1)")._subtasks()
    assert {task.metadata.name for task in leaves} == set(INSTRUCTIONS)
    assert not [text for text in INSTRUCTIONS.values() if text[-1] in ".: "]
    for task in leaves:  # where mteb has an instruction, it is the same
        prompt = task.metadata.prompt
        own = prompt["query"] if isinstance(prompt, dict) else prompt
        assert own is None or own.rstrip(".") == instruction_of(task.metadata), task.metadata.name
    newer = {
        task.metadata.name: instruction_of(task.metadata) for task in Benchmark(benchmark="MTEB(eng, v2)")._subtasks()
    }
    assert newer["ClimateFEVERHardNegatives"] == INSTRUCTIONS["ClimateFEVER"]
    assert newer["Touche2020Retrieval.v3"] == INSTRUCTIONS["Touche2020"]
    assert newer["STS22.v2"] == "Retrieve semantically similar text"
    assert all(newer.values())


def test_quick_runs_from_files_and_writes_scores_as_mteb_does(
    tiny_model: Path, tmp_path: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_quick_folder(tmp_path / "data"), tmp_path / "out"
    overrides = ["evaluation=quick", f"encoder={tiny_model}", f"evaluation.folder={data}", f"output={out}"]
    script("evaluate").main(composed("evaluate", overrides))
    scores = json.loads((out / "evaluation" / "quick.json").read_text())["scores"]
    assert [entry["label"] for entry in scores.values()] == [
        "STSBenchmark",
        "SICK-R (1,000 pairs)",
        "SciFact (200 documents, 100 queries)",
        "Banking77Classification (1,000 rows)",
        "StackOverflowTitles (1,000 texts)",
    ]
    assert all(-1 <= entry["value"] <= 1 for entry in scores.values())
    kept = sorted((out / "evaluation" / "mteb" / "results").rglob("S*.json"), key=lambda file: file.name)
    names = ["SICK-R.1000", "STSBenchmark", "SciFact.200.100q", "StackOverflowTitles.1000"]
    assert [file.stem for file in kept] == names
    for file, name in zip(kept, names, strict=True):
        result = mteb.results.TaskResult.from_disk(file)
        assert result.task_name == name and len(result.scores["test"]) == 1
    asked = {instruction for _, instruction in calls}
    known = ("STSBenchmark", "SciFact", "Banking77Classification")
    assert {INSTRUCTIONS[name] for name in known} | {None} < asked
    documents = [texts for texts, instruction in calls if instruction is None]
    assert len(documents) == 1 and documents[0][0].startswith("cats the cat sat")  # title and text, no instruction
    told = capsys.readouterr()
    assert "SciFact" in told.out  # the table
    assert "examples/s" not in told.err  # no bars of other libraries


def test_scores_are_those_of_the_vectors(tiny_model: Path, tmp_path: Path) -> None:
    task = write_pairs(tmp_path / "pairs.jsonl")
    value = score(tiny_model, {"pairs": task}, tmp_path)["pairs"]["value"]
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    encoder = Encoder.from_pretrained(tiny_model)
    a, b = (encoder.encode([row[f"sentence{n}"] for row in rows], normalize=True) for n in (1, 2))
    expected = spearmanr((a * b).sum(axis=1), [row["score"] for row in rows]).statistic
    assert value == pytest.approx(expected, abs=1e-5) and abs(value) > 0.01


def test_predictions_are_kept_where_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    task = write_pairs(tmp_path / "pairs.jsonl")
    score(tiny_model, {"pairs": task}, tmp_path / "without")
    assert not list(tmp_path.glob("without/**/predictions"))
    value = score(tiny_model, {"pairs": replace(task, predictions=True)}, tmp_path / "with")["pairs"]["value"]
    (file,) = tmp_path.glob("with/evaluation/mteb/predictions/*/pairs_predictions.json")
    predicted = json.loads(file.read_text())["default"]["test"]["cosine_scores"]
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert spearmanr(predicted, [row["score"] for row in rows]).statistic == pytest.approx(value, abs=1e-6)
    # asking for them is no other task: the score is found again
    assert replace(task, predictions=True)._pin() == task._pin()


def test_an_instruction_changes_a_score(tiny_model: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    tasks = {
        str(instruction): StsSet(name="pairs", files=str(tmp_path / "pairs.jsonl"), instruction=instruction)
        for instruction in (None, "Find the sentence that means the same")
    }
    plain, asked = score(tiny_model, tasks, tmp_path).values()
    assert plain["value"] != asked["value"]


def test_after_a_crash_only_what_is_missing_is_computed(
    tiny_model: Path, tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = {name: write_pairs(tmp_path / f"{name}.jsonl", sign) for name, sign in (("first", 1), ("second", -1))}
    recording = Encoder.encode

    def crash_at_third(self: Encoder, *given: Any, **settings: Any) -> Any:
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return recording(self, *given, **settings)

    monkeypatch.setattr(Encoder, "encode", crash_at_third)
    with pytest.raises(RuntimeError, match="out of memory"):
        score(tiny_model, tasks, tmp_path)
    monkeypatch.setattr(Encoder, "encode", recording)
    assert len(calls) == 2 and not (tmp_path / "evaluation" / "s.json").exists()
    scores = score(tiny_model, tasks, tmp_path)
    assert len(calls) == 4 and scores["first"]["value"] == pytest.approx(-scores["second"]["value"])
    score(tiny_model, {**tasks, "third": write_pairs(tmp_path / "third.jsonl")}, tmp_path)
    assert len(calls) == 6


def test_other_data_weights_or_a_broken_file_are_evaluated_again(
    tiny_model: Path, tmp_path: Path, calls: Calls
) -> None:
    first = score(tiny_model, {"pairs": write_pairs(tmp_path / "pairs.jsonl")}, tmp_path)
    other = score(tiny_model, {"pairs": write_pairs(tmp_path / "pairs.jsonl", -1)}, tmp_path)
    assert len(calls) == 4 and other["pairs"]["value"] == pytest.approx(-first["pairs"]["value"])
    (tmp_path / "evaluation" / "s.json").unlink()
    kept = list((tmp_path / "evaluation" / "mteb").rglob("pairs.json"))
    assert len(kept) == 2  # one for each content of the file
    for file in kept:
        file.write_text(file.read_text()[:50])
    assert score(tiny_model, {"pairs": write_pairs(tmp_path / "pairs.jsonl", -1)}, tmp_path) == other
    assert len(calls) == 6
    subject = EncoderSettings(str(tiny_model), attention="causal")
    evaluate(subject, {"pairs": write_pairs(tmp_path / "pairs.jsonl", -1)}, suite="s", folder=tmp_path, show=False)
    assert len(calls) == 8


def write_mirror(folder: Path) -> None:
    """STSBenchmark, SICK-R and SciFact as their repositories on the hub, with a few rows each."""
    for name in ("stsbenchmark-sts", "sickr-sts"):
        (folder / "mteb" / name).mkdir(parents=True)
        write_pairs(folder / "mteb" / name / "test.jsonl")
    scifact = folder / "mteb" / "scifact"
    (scifact / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": "", "text": text} for n, (text, _) in enumerate(texts(4))]
    queries = [{"_id": f"q{n}", "text": begin} for n, begin in enumerate(TOPICS.values())]
    qrels = [{"query-id": f"q{n}", "corpus-id": f"d{n}", "score": 1} for n in range(3)]
    for name, rows in (("corpus", documents), ("queries", queries), ("qrels/test", qrels)):
        (scifact / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = (("default", "test", "qrels/test"), ("corpus", "corpus", "corpus"), ("queries", "queries", "queries"))
    lines = ["---", "configs:"]
    for config, split, file in parts:
        lines += [f"- config_name: {config}", "  data_files:", f"  - split: {split}", f"    path: {file}.jsonl"]
    (scifact / "README.md").write_text("\n".join([*lines, "---", ""]))


def test_a_benchmark_runs_from_a_folder_and_is_averaged_by_category(
    tiny_model: Path, tmp_path: Path, calls: Calls
) -> None:
    write_mirror(tmp_path / "mirror")
    names = ["STSBenchmark", "SICK-R", "SciFact"]
    benchmark = Benchmark(benchmark="MTEB(eng, v1)", tasks=names, folder=str(tmp_path / "mirror"))
    scores = score(tiny_model, {"mteb": benchmark}, tmp_path)
    assert list(scores) == ["mteb", "mteb_retrieval", "mteb_sts"]
    assert [entry["label"] for entry in scores.values()] == ["Average", "Retrieval", "STS"]
    details = scores["mteb"]["details"]
    assert list(details) == names and details["STSBenchmark"] == details["SICK-R"]
    assert scores["mteb"]["value"] == pytest.approx(np.mean(list(details.values())))
    assert scores["mteb_sts"]["value"] == details["SICK-R"] and scores["mteb_sts"]["metric"] == "2 tasks"
    assert {instruction for _, instruction in calls} == {INSTRUCTIONS["SICK-R"], INSTRUCTIONS["SciFact"], None}
    done = len(calls)
    shorter = Benchmark(benchmark="MTEB(eng, v1)", tasks=names[:2], folder=None)  # kept scores need no data
    assert score(tiny_model, {"mteb": shorter}, tmp_path)["mteb"]["value"] == details["SICK-R"]
    assert len(calls) == done
    plain = Benchmark(benchmark="MTEB(eng, v1)", tasks=names, folder=str(tmp_path / "mirror"), instructions="none")
    assert score(tiny_model, {"mteb": plain}, tmp_path)["mteb"]["details"] != details
    assert {instruction for _, instruction in calls[done:]} == {None}
    done = len(calls)
    own = Benchmark(benchmark="MTEB(eng, v1)", tasks=["STSBenchmark"], folder=plain.folder, instructions="mteb")
    score(tiny_model, {"mteb": own}, tmp_path)
    from l2v.evaluation.mteb.model import own_instruction

    (metadata,) = (task.metadata for task in own._tasks())
    assert own_instruction(metadata) and {said for _, said in calls[done:]} == {own_instruction(metadata)}


def test_an_aggregated_task_is_the_mean_of_its_parts(tiny_model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    benchmark = Benchmark(benchmark="MTEB(eng, v1)", tasks=["CQADupstackRetrieval"])
    parts = [task.metadata.name for task in benchmark._subtasks()]
    assert len(parts) == 12

    def scored(task: Any, model: Any, cache: Any) -> Any:
        value = parts.index(task.metadata.name) / 100
        scores = {"test": {"default": {"main_score": value, "ndcg_at_10": value}}}
        result = mteb.results.TaskResult.from_task_results(task, scores, evaluation_time=1)
        cache.save_to_cache(result, model.mteb_model_meta)
        return result

    monkeypatch.setattr("l2v.evaluation.mteb.benchmark.run_task", scored)
    monkeypatch.setattr(Benchmark, "check", lambda self, kept: None)
    scores = score(tiny_model, {"mteb": benchmark}, tmp_path)
    assert scores["mteb"]["details"] == {"CQADupstackRetrieval": pytest.approx(0.055)}
    assert len(list((tmp_path / "evaluation" / "mteb").rglob("CQADupstack*.json"))) == 13


def test_without_a_hub_one_line_names_the_tasks_and_the_place_for_their_data(tiny_model: Path, tmp_path: Path) -> None:
    write_mirror(tmp_path / "mirror")
    names = ["STSBenchmark", "ArguAna", "NFCorpus"]
    benchmark = Benchmark(benchmark="MTEB(eng, v1)", tasks=names, folder=str(tmp_path / "mirror"))
    with pytest.raises(L2VError, match=r"no data of 2 task\(s\): ArguAna \(mteb/arguana\), NFCorpus") as error:
        score(tiny_model, {"mteb": benchmark}, tmp_path)
    assert "\n" not in str(error.value) and f"evaluation.folder={tmp_path / 'mirror'}" in str(error.value)
    closed = Benchmark(benchmark="RTEB(beta)", tasks=["German1Retrieval"])
    with pytest.raises(L2VError, match="German1Retrieval: its data are closed; only mteb's leaderboard scores it"):
        score(tiny_model, {"mteb": closed}, tmp_path)
    with pytest.raises(L2VError, match="has no task ArguAnna"):
        Benchmark(benchmark="MTEB(eng, v1)", tasks=["ArguAnna"]).check(ResultStore(tmp_path, "l2v/x", "f"))
    with pytest.raises(L2VError, match="benchmark=quux: mteb has none"):
        Benchmark(benchmark="quux").check(ResultStore(tmp_path, "l2v/x", "f"))


def test_without_mteb_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        L2VError, match=r"evaluation: mteb, sentence_transformers are not installed; `pip install 'l2v\[mteb\]'`"
    ):
        Benchmark(benchmark="MTEB(eng, v1)").check(ResultStore(tmp_path, "l2v/x", "f"))


def test_ones_own_sets(tiny_model: Path, tmp_path: Path) -> None:
    data = write_quick_folder(tmp_path / "data")
    (tmp_path / "same.tsv").write_text(
        "a\tb\tsame\n" + "".join(f"{x}\t{y}\t{int(p == q)}\n" for x, p in texts(2) for y, q in texts(2))
    )
    tasks = {
        "pairs": PairSet(name="same", files=str(tmp_path / "same.tsv"), first="a", second="b", label_column="same"),
        "topics": ClusteringSet(name="topics", files=str(data / "banking77/*.csv"), label_column="category"),
        "intents": ClassificationSet(
            name="intents",
            train=str(data / "banking77/train.csv"),
            test=str(data / "banking77/test.csv"),
            label_column="category",
        ),
        "search": RetrievalSet(
            name="search",
            corpus=str(data / "scifact/corpus.jsonl"),
            queries=str(data / "scifact/queries.test.jsonl"),
            qrels=str(data / "scifact/qrels.test.tsv"),
        ),
    }
    scores = score(tiny_model, tasks, tmp_path)
    metrics = ["average precision", "V-measure", "accuracy", "nDCG@10"]
    assert [entry["metric"] for entry in scores.values()] == metrics
    assert all(0.4 < entry["value"] <= 1 for entry in scores.values()), scores  # texts of a topic begin alike


def test_a_query_that_only_irrelevant_documents_are_judged_for_is_left_out(tmp_path: Path) -> None:
    rows = {
        "corpus.jsonl": [{"_id": f"d{n}", "title": "", "text": f"text {n}"} for n in range(3)],
        "queries.jsonl": [{"_id": f"q{n}", "text": f"query {n}"} for n in range(2)],
    }
    for name, written in rows.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in written))
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t0\n")
    places = {part: str(tmp_path / file) for part, file in zip(("corpus", "queries"), rows, strict=True)}
    split = RetrievalSet(name="own", **places, qrels=str(tmp_path / "qrels.tsv"))._dataset()["default"]["test"]
    assert list(split["queries"]["id"]) == ["q0"] and split["relevant_docs"] == {"q0": {"d0": 1}}


def test_a_sample_is_the_same_each_time_and_keeps_the_judged_documents(tmp_path: Path) -> None:
    data = write_quick_folder(tmp_path)
    files = {
        "corpus": str(data / "scifact/corpus.jsonl"),
        "queries": str(data / "scifact/queries.test.jsonl"),
        "qrels": str(data / "scifact/qrels.test.tsv"),
    }
    task = RetrievalSet(name="search", sample=8, sample_queries=2, **files)
    assert task.label == "search (8 documents, 2 queries)"
    split = task._dataset()["default"]["test"]
    judged = {document for documents in split["relevant_docs"].values() for document in documents}
    assert len(split["corpus"]) == 8 and len(split["queries"]) == 2 and judged <= set(split["corpus"]["id"])
    assert task._dataset()["default"]["test"]["corpus"]["id"] == split["corpus"]["id"]
    everything = RetrievalSet(name="search", **files)._dataset()["default"]["test"]
    assert len(everything["corpus"]) == 12 and list(everything["queries"]["id"]) == ["q0", "q1", "q2"]
    pairs = StsSet(name="p", sample=4, files=str(data / "stsbenchmark/sts-test.csv"), first=5, second=6, score=4,
                   delimiter="\t")  # fmt: skip
    rows = pairs._dataset()["test"]
    assert len(rows) == 4 and pairs._dataset()["test"][:] == rows[:]
    assert rows["sentence2"][0].startswith('some "quoted" ')


def make(kind: type[LocalSet], file: Path, content: str, **settings: Any) -> Any:
    file.write_text(content)
    return kind(name="mine", files=str(file), **settings)


def test_every_language_is_scored_with_its_own_instruction_and_told_to_mteb(
    tiny_model: Path, tmp_path: Path, calls: Calls
) -> None:
    data, out = write_quick_folder(tmp_path / "data"), tmp_path / "out"
    overrides = ["evaluation=sts_languages", f"encoder={tiny_model}", f"evaluation.folder={data}", f"output={out}"]
    own = ["evaluation.languages=[de,zh,en]", "evaluation.instructions.zh=null"]
    script("evaluate").main(composed("evaluate", [*overrides, *own]))
    scores = json.loads((out / "evaluation" / "sts_languages.json").read_text())["scores"]
    labels = {"de": "STSBenchmark-de", "zh": "STSBenchmark-zh", "en": "STSBenchmark"}
    assert {name: score["label"] for name, score in scores.items()} == labels
    asked = {texts[0].rpartition(", in ")[2]: instruction for texts, instruction in calls if ", in " in texts[0]}
    assert asked == {"de": "Finde semantisch ähnliche Texte", "zh": None}
    assert "Retrieve semantically similar text" in {instruction for _, instruction in calls}
    for file in (out / "evaluation" / "mteb" / "results").rglob("STSBenchmark*.json"):
        spoken = {"STSBenchmark": "eng-Latn", "STSBenchmark-de": "deu-Latn", "STSBenchmark-zh": "cmn-Hans"}[file.stem]
        assert mteb.results.TaskResult.from_disk(file).languages == [spoken.partition("-")[0]]


def test_a_csv_without_a_header_line_is_read_by_the_numbers_of_its_columns(tmp_path: Path) -> None:
    rows = '"Rot, ""grün"" und blau",b,5.0\nc,"d\ne",1\n'
    task = make(StsSet, tmp_path / "a.csv", rows, first=0, second=1, score=2)
    assert list(task.evaluated_texts()) == ['Rot, "grün" und blau', "b", "c", "d\ne"]
    assert list(make(StsSet, tmp_path / "a.tsv", rows.replace(",", "\t"), first=0, second=1, score=2).evaluated_texts())


def test_english_scores_are_found_again_though_sets_have_a_language(tmp_path: Path) -> None:
    task = write_pairs(tmp_path / "pairs.jsonl")
    assert task._pin() == replace(task, language="eng-Latn")._pin() != replace(task, language="deu-Latn")._pin()


SHARED = Path(__file__).parents[2] / "../shared/data"


@pytest.mark.skipif(not (SHARED / "stsb-multi-mt").is_dir(), reason="the files of STSb Multi MT are not here")
def test_the_files_of_stsb_in_four_languages_are_read_whole() -> None:
    given = ["evaluation=sts_languages", "encoder=none", f"evaluation.folder={SHARED}"]
    tasks = configs.build_tasks(configs.plain(composed("evaluate", given))["evaluation"])
    data = {name: task._dataset()["test"] for name, task in tasks.items()}  # type: ignore[attr-defined]
    assert [len(rows) for rows in data.values()] == [1379] * 4
    assert all(rows["score"] == pytest.approx(data["en"]["score"], abs=0.051) for rows in data.values())
    assert data["de"][0]["sentence1"] == "Ein Mädchen frisiert ihr Haar."


WRONG = [
    ("a.csv", "sentence1,sentence2,score\na,b,high\nc,d,1\n", {}, r"a.csv:2: expected a number, found 'high'"),
    ("a.csv", "sentence1,sentence2\na,b\n", {}, r"a.csv: no column 'score'"),
    ("a.csv", "sentence1,sentence2,score\na,b,1\n", {}, r"mine: 1 row\(s\) in .*a.csv; expected at least 2"),
    ("a.jsonl", '{"sentence1": 3, "sentence2": "b", "score": 1}\n', {}, r"a.jsonl:1: expected text, found int"),
    ("a.jsonl", "{\n", {}, r"a.jsonl:1: not JSON"),
    ("a.txt", "a\tb\t1\n", {}, r"needs a delimiter"),
    ("a.csv", "a,b,1\nc,d\n", {"first": 0, "second": 1, "score": 2}, r"a.csv:2: 2 columns; expected one with number 2"),
    ("a.csv", 'a,b,1\n"c,d,1\n', {"first": 0, "second": 1, "score": 2}, r"a.csv:2: a quotation mark opens"),
    ("a.txt", "a\tb\n", {"first": 0, "second": 1, "score": 2, "delimiter": "\t"}, r"a.txt:1: 2 columns"),
    ("a.txt", "x\ty\n", {"delimiter": "\t"}, r"a.txt: no column 'sentence1'"),
    ("a.csv", "sentence1,sentence2,score\na,b,1\nc,d,2\n", {"like": "SciFact"}, r"like=SciFact: mteb has no STS task"),
    ("a.jsonl.gz", "no gzip", {}, r"a.jsonl.gz: "),
]


@pytest.mark.parametrize(("name", "content", "settings", "message"), WRONG)
def test_a_wrong_file_is_named_before_a_model_is_loaded(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str,
    settings: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(Encoder, "from_pretrained", lambda *given, **settings: pytest.fail("a model was loaded"))
    task = make(StsSet, tmp_path / name, content, **settings)
    with pytest.raises(L2VError, match=message) as error:
        score(tiny_model, {"mine": task}, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_other_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(L2VError, match=r"mine=no.csv: no such file; to do without the task: '~evaluation.tasks"):
        StsSet(name="mine", files="no.csv")
    with pytest.raises(L2VError, match="expected a name without /"):
        StsSet(name="my/set", files="no.csv")
    with pytest.raises(L2VError, match=r":2: expected a label of 0 or 1, found '2'"):
        make(PairSet, tmp_path / "a.csv", "sentence1,sentence2,label\na,b,2\nc,d,1\n")._task_with_data()
    (tmp_path / "labels.txt").write_text("x\ny\nz\n")
    with pytest.raises(L2VError, match="mine: 2 texts, but 3 labels"):
        make(ClusteringSet, tmp_path / "a.txt", "a\nb\n", labels=str(tmp_path / "labels.txt"))._task_with_data()
    (tmp_path / "test.csv").write_text("text,label\na,new\nb,x\n")
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\n")
    with pytest.raises(L2VError, match="the label 'new' of the test files"):
        ClassificationSet(
            name="mine", train=str(tmp_path / "train.csv"), test=str(tmp_path / "test.csv")
        )._task_with_data()


def test_an_exported_folder_has_the_instructions_of_mteb_under_the_names_that_mteb_looks_for() -> None:
    from mteb.models.abs_encoder import get_prompt_name

    from l2v.evaluation.mteb.model import instruction_by

    instruction_of = instruction_by("paper")
    prompts = mteb_prompts()
    for benchmark in ("MTEB(eng, v1)", "MTEB(eng, v2)"):
        for task in Benchmark(benchmark=benchmark)._subtasks():
            search = task.metadata.type in ("Retrieval", "Reranking")
            for kind in [mteb.types.PromptType.query, mteb.types.PromptType.document] if search else [None]:
                expected = "" if kind == mteb.types.PromptType.document else instruction_of(task.metadata)
                assert prompts[get_prompt_name(prompts, task.metadata, kind)] == expected, task.metadata.name


PAPERS = {
    **{"stsbenchmark": "STSBenchmark", "sickr": "SICK-R", "scifact": "SciFact", "banking77": "Banking77Classification"},
    **{"stackoverflow": "StackExchangeClustering", "pairs": "TwitterSemEval2015"},
}


@pytest.mark.parametrize(
    ("pooling", "instructed"),
    [
        ("mean", True),
        pytest.param("last_token", True, marks=pytest.mark.slow),
        pytest.param("weighted_mean", False, marks=pytest.mark.slow),
    ],
)
def test_the_sentence_transformers_folder_scores_the_same_in_mteb(
    tiny_model: Path, tmp_path: Path, quick: dict[str, Any], pooling: Any, instructed: bool
) -> None:
    rows = [
        {"sentence1": a, "sentence2": b, "label": (len(a) + len(b)) % 2} for a in SENTENCES for b in SENTENCES if a < b
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    quick["pairs"] = PairSet(name="pairs", files=str(tmp_path / "pairs.jsonl"))
    quick["scifact"] = replace(quick["scifact"], sample_queries=None)  # samples have names of their own
    tasks = {}
    for key, task in quick.items():
        name = PAPERS[key]
        tasks[key] = (
            replace(task, name=name, sample=None, instruction=INSTRUCTIONS[name])
            if instructed
            else replace(task, name=f"plain {key}", instruction=None)
        )
    exported = tmp_path / "exported"
    Encoder.from_pretrained(tiny_model, pooling=pooling).save(exported)
    ours = score(exported, tasks, tmp_path)
    for name, task in tasks.items():
        model = sentence_transformers.SentenceTransformer(str(exported), device="cpu")
        result = mteb.evaluate(model, task._task_with_data(), cache=None, show_progress_bar=False, co2_tracker=False)
        assert result.task_results[0].get_score() == pytest.approx(ours[name]["value"], abs=1e-4), name


@pytest.mark.slow
def test_processes_share_the_tasks_and_their_scores_are_those_of_one(tiny_model: Path, tmp_path: Path) -> None:
    write_mirror(tmp_path / "mirror")
    benchmark = Benchmark(benchmark="MTEB(eng, v1)", tasks=["STSBenchmark", "SciFact"], folder=str(tmp_path / "mirror"))
    tasks = {"pairs": write_pairs(tmp_path / "pairs.jsonl"), "mteb": benchmark, "lee": LeeSimilarity()}
    results = [
        evaluate(
            EncoderSettings(str(tiny_model)),
            tasks,
            suite="s",
            folder=tmp_path / str(devices),
            devices=devices,
            show=False,
        )
        for devices in (1, 2)
    ]
    assert results[0]["scores"] == results[1]["scores"] and len(results[0]["scores"]) == 5
    assert all(result["attention"] == "bidirectional" and result["pooling"] == "mean" for result in results)


@pytest.mark.slow
def test_an_error_in_a_process_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    tasks = {name: write_pairs(tmp_path / f"{name}.jsonl") for name in ("first", "second")}
    subject = EncoderSettings(str(tiny_model), template="no place for a text")
    with pytest.raises(L2VError, match=r"model\.template='no place for a text'"):
        evaluate(subject, tasks, suite="s", folder=tmp_path, devices=2, show=False)


def test_the_texts_of_a_task_are_those_that_it_scores(tmp_path: Path) -> None:
    write_mirror(tmp_path / "mirror")
    benchmark = Benchmark(benchmark="MTEB(eng, v1)", tasks=["STSBenchmark", "SciFact"], folder=str(tmp_path / "mirror"))
    found = {name: sorted(set(own)) for name, (_, own) in benchmark.evaluated_texts_by_task("").items()}
    documents = [text for text, _ in texts(4)]
    assert found["SciFact"] == sorted([*documents, *TOPICS.values()])
    assert set(found["STSBenchmark"]) == set(SENTENCES)
    data = write_quick_folder(tmp_path / "data")
    suite = configs.plain(composed("evaluate", ["encoder=x", "evaluation=quick", f"evaluation.folder={data}"]))
    tasks = configs.build(suite["evaluation"]["tasks"], "evaluation.tasks")
    assert sorted(tasks["banking77"].evaluated_texts()) == sorted(text for text, _ in texts(4))  # no text to train on
    titled = [f"{label} {text}" for text, label in texts(4)]
    assert set(tasks["scifact"].evaluated_texts()) == {*titled, *TOPICS.values()}
    assert sorted(tasks["stackoverflow"].evaluated_texts()) == sorted(text for text, _ in texts(6))
    assert len(list(tasks["sickr"].evaluated_texts())) == 2 * len(list(itertools.combinations(SENTENCES, 2)))


@pytest.mark.parametrize("like", ["STS17", "STS22"])
def test_a_set_may_be_like_a_task_with_subsets_and_other_splits(tiny_model: Path, tmp_path: Path, like: str) -> None:
    task = replace(write_pairs(tmp_path / "mine.jsonl"), like=like)
    plain = score(tiny_model, {"mine": replace(task, like=None)}, tmp_path / "plain")
    assert score(tiny_model, {"mine": task}, tmp_path / "like")["mine"]["value"] == plain["mine"]["value"]


def test_a_classification_and_a_retrieval_like_those_of_mteb(tmp_path: Path) -> None:
    rows = [{"text": f"{text} {n}", "label": "ab"[n % 2]} for n, text in enumerate(SENTENCES * 4)]
    for part in ("train", "test"):
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {part: str(tmp_path / f"{part}.jsonl") for part in ("train", "test")}
    for like in ("MassiveIntentClassification", "AmazonCounterfactualClassification"):
        task = ClassificationSet(name="mine", like=like, **files)._task_with_data()
        assert (task.hf_subsets, task.eval_splits) == (["default"], ["test"])
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "what"}\n')
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t1\n")
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "x"}\n')
    places = {name: str(tmp_path / name) for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv")}
    mine = RetrievalSet(name="mine", like="MSMARCO", **{Path(name).stem: place for name, place in places.items()})
    assert mine._task_with_data().eval_splits == ["test"]
    for name, row, told in (
        ("corpus.jsonl", {"_id": "1", "text": None}, "corpus.jsonl:1: expected text, found NoneType"),
        ("corpus.jsonl", {"_id": "1", "text": "x", "title": 3}, "corpus.jsonl:1: expected text, found int"),
        ("queries.jsonl", {"_id": "q", "text": None}, "queries.jsonl:1: expected text, found NoneType"),
    ):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(json.dumps(row) + "\n")
        with pytest.raises(L2VError, match=told):
            mine._task_with_data()
        (tmp_path / name).write_text(before)
    (tmp_path / "corpus.txt").write_text("x\n")
    with pytest.raises(L2VError, match="corpus.txt"):
        replace(mine, corpus=str(tmp_path / "corpus.txt"))


def test_a_label_that_is_missing_and_a_legacy_task_are_told(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": None}, {"text": "b", "label": "x"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(L2VError, match="rows.jsonl:1: expected a label, found None"):
        ClusteringSet(name="mine", files=str(tmp_path / "rows.jsonl"))._task_with_data()
    (tmp_path / "texts.txt.gz").write_bytes(gzip.compress(b"a\nb\n"))
    (tmp_path / "labels.txt").write_bytes("ü\nx\n".encode("latin-1"))
    packed = ClusteringSet(name="mine", files=str(tmp_path / "texts.txt.gz"), labels=str(tmp_path / "labels.txt"))
    with pytest.raises(L2VError, match="labels.txt: not UTF-8"):
        packed._task_with_data()
    (tmp_path / "labels.txt").write_text("x\ny\n")
    assert packed.rows() == [("a", "x"), ("b", "y")]
    with pytest.raises(L2VError, match="no Clustering task of that name; TwentyNewsgroupsClustering.v2 is one"):
        replace(packed, like="TwentyNewsgroupsClustering")._task()


def test_predictions_that_are_asked_for_later_are_made(tiny_model: Path, tmp_path: Path, calls: Calls) -> None:
    task = write_pairs(tmp_path / "mine.jsonl")
    score(tiny_model, {"mine": task}, tmp_path / "out")
    first = score(tiny_model, {"mine": replace(task, predictions=True)}, tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("mine_predictions.json"))) == 1
    calls.clear()
    assert score(tiny_model, {"mine": replace(task, predictions=True)}, tmp_path / "out") == first and not calls
