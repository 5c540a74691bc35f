"""What a submission to MTEB takes, read back by mteb."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from launch import Tiny, composed
from tiny import SENTENCES

from l2v.cli.export import main
from l2v.errors import L2VError
from l2v.evaluation.mteb.benchmark import Benchmark
from l2v.evaluation.mteb.submission import Submission, overlaps, trained_on
from l2v.evaluation.suite import evaluate
from l2v.models.settings import EncoderSettings
from l2v.runs.run import Run

mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install 'l2v[mteb]'")
pytest.importorskip("sentence_transformers", reason="mteb evaluates nothing without it")

NAME = "me/my-encoder"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Run:
    """With scores of STSBenchmark."""
    folder = tmp_path_factory.mktemp("submission")
    with pytest.MonkeyPatch.context() as patch:
        trained = Tiny(folder, tiny_model, patch).train("trained", "mntp", "stage.max_steps=2")
    pairs = [(a, b) for a in SENTENCES for b in SENTENCES if a < b]
    rows = [{"sentence1": a, "sentence2": b, "score": n} for n, (a, b) in enumerate(pairs)]
    mirror = folder / "mirror" / "mteb" / "stsbenchmark-sts"
    mirror.mkdir(parents=True)
    (mirror / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Benchmark(benchmark="MTEB(eng, v2)", tasks=["STSBenchmark"], folder=str(folder / "mirror"))
    evaluate(EncoderSettings(str(trained)), {"mteb_v2": task}, suite="mteb_v2", folder=trained, show=False)
    return Run(trained)


def exported(run: Run, folder: Path, *settings: str) -> Path:
    main(composed("export", [f"run={run.folder}", f"output={folder}", f"mteb.name={NAME}", *settings]))
    return folder / "mteb"


def test_mteb_reads_the_results_and_the_metadata(run: Run, tmp_path: Path) -> None:
    given = ["mteb.revision=abc123", "mteb.license=apache-2.0", "mteb.release_date=2026-11-01", "mteb.trained_on=[NQ]"]
    folder = exported(run, tmp_path / "out", *given)
    loaded = mteb.cache.ResultCache(folder).load_results(include_remote=False)
    (of_model,) = loaded.model_results
    assert (of_model.model_name, of_model.model_revision) == (NAME, "abc123")
    (result,) = of_model.task_results
    scores = json.loads((run.folder / "evaluation" / "mteb_v2.json").read_text())["scores"]
    assert result.task_name == "STSBenchmark"
    assert result.get_score() == pytest.approx(scores["mteb_v2"]["details"]["STSBenchmark"], abs=1e-6)
    (meta,) = [
        value
        for value in runpy.run_path(str(folder / "model_meta.py")).values()
        if isinstance(value, mteb.models.model_meta.ModelMeta)
    ]
    told = json.loads((folder / "results" / "me__my-encoder" / "abc123" / "model_meta.json").read_text())
    assert json.loads(json.dumps(meta.to_dict())) == told
    assert (meta.license, meta.release_date, meta.embed_dim, meta.training_datasets) == (
        *("apache-2.0", "2026-11-01", 32),
        {"NQ"},
    )
    assert meta.n_parameters > 1000 and meta.use_instructions is True
    readme = (folder / "README.md").read_text()
    assert "Data of these tasks: NQ." in readme and "Not looked for: `l2v contamination" in readme
    assert "| MTEB(eng, v1) | 98% |" in readme, "NQ is one of its 56"


def test_what_was_trained_on_is_said_where_it_is_known(run: Run, tmp_path: Path) -> None:
    assert trained_on(run, Submission(NAME)) is None, "files of one's own"
    assert trained_on(run, Submission(NAME, trained_on=())) == set()
    readme = (exported(run, tmp_path / "out") / "README.md").read_text()
    assert "Not known for all of the training data" in readme and "zero-shot |" not in readme
    config: dict[str, Any] = {"data": {"train": {"sets": {"nq": {}, "msmarco_passage": {}, "squad": {}}}}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lineage.json").write_bytes((run.folder / "lineage.json").read_bytes())
    for data, expected in (
        (config["data"], {"NQ", "MSMARCO"}),
        ({"train": {"sets": {"mine": {}}}}, None),
        ({"train": {"_target_": "l2v.data.texts.HubTexts", "path": "princeton-nlp/datasets-for-simcse"}}, set()),
        ({"train": {"_target_": "l2v.data.wikipedia.WikipediaExcerpt"}}, set()),
    ):
        (tmp_path / "run" / "config.yaml").write_text(json.dumps({"data": data}))
        assert trained_on(Run(tmp_path / "run"), Submission(NAME)) == expected
    lineage = json.loads((tmp_path / "run" / "lineage.json").read_text())
    lineage["merged"].append(lineage["adapter"])  # of a run that is gone
    (tmp_path / "run" / "lineage.json").write_text(json.dumps(lineage))
    assert trained_on(Run(tmp_path / "run"), Submission(NAME)) is None
    assert trained_on(Run(tmp_path / "run"), Submission(NAME, trained_on=("NQ",))) == {"NQ"}


def test_texts_found_in_the_training_data_are_named(run: Run, tmp_path: Path) -> None:
    file = run.folder / "contamination" / "quick.json"
    file.parent.mkdir()
    tasks = {
        "sts": {"label": "STSBenchmark", "texts": 10, "too_short": 3, "texts_found": 2},
        "sickr": {"label": "SICK-R", "texts": 10, "too_short": 0, "texts_found": 0},
    }
    file.write_text(json.dumps({"tasks": tasks}))
    try:
        assert overlaps(run) == [("trained", "STSBenchmark", 2, 7)]
        assert "| trained | STSBenchmark | 2 of 7 |" in (exported(run, tmp_path / "out") / "README.md").read_text()
    finally:
        file.unlink()
        file.parent.rmdir()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["mteb.name=mine"], "mteb.name=mine: expected <owner>/<name>, as on the hub"),
        (["mteb.instructions=mteb"], "has no scores of mteb's tasks with mteb.instructions=mteb; first l2v evaluate"),
        (["mteb.license=free"], "mteb.license=free: Input should be 'not specified', 'mit'"),
        (["mteb.languages=[english]"], "mteb.languages=['english']: "),
        (["merge.base_ratio=0.5"], "mteb.name: the scores are those of the run as it is"),
        (["pooling=last_token"], "mteb.name: the scores are those of the run as it is"),
    ],
)
def test_mistakes_are_one_line(run: Run, tmp_path: Path, settings: list[str], message: str) -> None:
    with pytest.raises(L2VError, match=re.escape(message)) as error:
        exported(run, tmp_path / "out", *settings)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
