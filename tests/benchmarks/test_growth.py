"""The harness of benchmarks/growth, on a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launch import composed, script
from tiny import SENTENCES, make_tiny_model

from l2v import config as configs
from l2v.runs.files import read_json

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from growth import measure, picture, run  # noqa: E402
from speed import run as speed_run  # noqa: E402

SPECS = run.curves(run.SMALL)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("growth")
    model = make_tiny_model(folder / "given")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed_run, "package_texts", lambda: (SENTENCES, SENTENCES))
        measure.prepare({"model": str(model)}, folder)
    return folder


@pytest.mark.parametrize("curve", ["encode_length", "encode_batch", "train_length", "train_rows", "lora_rank"])
def test_points_are_measured(work: Path, curve: str) -> None:
    for spec in (SPECS[curve][0], SPECS[curve][-1]):
        found = measure.KINDS[spec["kind"]](spec, work)
        assert found["seconds"] > 0 and found["peak_mib"] > 50
        if spec["length"] is not None:
            rows = spec["texts"] if spec["kind"] == "encode" else spec["rows"] * (1 + (spec["stage"] == "simcse"))
            assert found["tokens"] == rows * spec["length"]


def test_a_higher_rank_trains_and_saves_more(work: Path) -> None:
    low, high = (measure.train(spec, work) for spec in SPECS["lora_rank"])
    assert high["trainable"] == 16 * low["trainable"]
    # three float32 numbers a weight: itself, and AdamW's two moments
    assert high["checkpoint_mib"] * 2**20 > 12 * high["trainable"] > low["checkpoint_mib"] * 2**20


def test_a_corpus_is_tokenized_once_and_loaded(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first of three starts makes the cache, and workers have memory of their own."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setenv("L2V_CACHE", str(work / "cache"))

    def call(spec: dict[str, Any], folder: Path, threads: int) -> dict[str, Any]:
        before = len(list(work.glob("cache/tokens/*")))
        found = measure.data(spec, folder)
        calls.append({**spec, "made": len(list(work.glob("cache/tokens/*"))) - before})
        return found

    monkeypatch.setattr(run, "_call", call)
    found = run.measure(SPECS["corpus"][0], work, 1)
    assert [(call["workers"], call["made"]) for call in calls] == [(0, 2), (0, 0), (2, 0)]
    assert found["later_start"]["worker_private_mib"] == 0 < found["two_workers"]["worker_private_mib"]
    assert found["later_start"]["rows"] * run.SMALL.block_length > 100 * 10
    assert not list(work.glob("*.txt")) and not (work / "cache").exists()


def in_this_process(name: str, arguments: list[str]) -> tuple[float, float]:
    script(name.removesuffix(".py")).main(composed(name.removesuffix(".py"), arguments))
    vectors = next((Path(argument[7:]) for argument in arguments if argument.startswith("output=")), Path())
    for number, file in enumerate(sorted(vectors.glob("shard-*.parquet"))):
        os.utime(file, (0, 100 + 2 * number))
    return 1.0, 2.0


def test_entry_points_take_what_they_are_given(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_command", in_this_process)
    with measure.corpus(work, 100):
        assert measure.bulk(SPECS["bulk"][0], work)["peak_mib"] == 2
        found = measure.train_processes({**SPECS["train_processes"][0], "processes": 1}, work)
        assert found["tokens_per_second"] > 0
    # by the clock above, a shard, of a text, takes 2 seconds
    spec = SPECS["encode_processes"][0]
    assert measure.encode_processes(spec, work)["tokens_per_second"] == pytest.approx(spec["length"] / 2)


def test_two_processes_are_asked_for() -> None:
    given = ["name=a", *measure._processes({"processes": 2})]
    trainer = configs.build_training(configs.plain(composed("train", given))).trainer
    assert (trainer["accelerator"], trainer["devices"], trainer["precision"]) == ("cpu", 2, "32-true")


@pytest.mark.slow
def test_a_process_has_not_the_peak_of_its_parent() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux, where getrusage begins with the parent's peak")
    child = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); from growth.measure import peak_mib; print(peak_mib())"
    )
    parent = f"import subprocess, sys; b = b'x' * (1200 << 20); subprocess.run([sys.executable, '-c', {child!r}])"
    printed = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True).stdout
    assert 1 < float(printed) < 800


@pytest.mark.slow
def test_a_whole_run(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point in a process of its own, up to the picture; then another, without measuring the first again."""
    (work / "prepared.json").write_text(json.dumps({"model": "tiny"}))
    monkeypatch.setattr(run, "curves", lambda _: {name: specs[:1] for name, specs in SPECS.items()})
    output, image = tmp_path / "results.json", tmp_path / "growth.png"
    given = ["--small", "--threads", "1", "--model", "tiny", "--work", str(work), "--output", str(output)]
    given += ["--picture", str(image), "--only", "encode_length"]
    monkeypatch.setattr(sys, "argv", ["run.py", *given])
    run.main()
    rows = read_json(output)["rows"]
    assert [row["spec"] for row in rows] == SPECS["encode_length"][:1]
    assert rows[0]["found"]["tokens"] == run.SMALL.encode_tokens
    assert "### encode_length" in output.with_suffix(".md").read_text()
    assert image.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(run, "measure", lambda spec, *_: {"tokens_per_second": 1.0, "peak_mib": 2.0})
    monkeypatch.setattr(sys, "argv", ["run.py", *given, "encode_batch", "--resume"])
    run.main()
    after = read_json(output)["rows"]
    assert after[:1] == rows and [row["curve"] for row in after[1:]] == ["encode_batch"]


def test_every_plot_finds_its_numbers(tmp_path: Path) -> None:
    """Rows of every curve, as ``measure`` makes them, in one picture."""
    start = {"seconds": 1.0, "first_batch_seconds": 1.0, "peak_mib": 2.0, "anonymous_mib": 3.0}
    of_data = {"first_start": start, "later_start": start, "two_workers": start}
    other = {"seconds": 1.0, "tokens_per_second": 2.0, "peak_mib": 3.0, "checkpoint_mib": 4.0}
    rows = [
        {"curve": curve, "spec": spec, "found": of_data if curve == "corpus" else other}
        for curve, specs in SPECS.items()
        for spec in specs
    ]
    plots = picture._plots(rows)
    assert all(points for plot in plots for _, points, _ in plot[4])
    for _, _, _, key, lines in plots:
        assert all(isinstance(row["spec"][key], int) for _, points, _ in lines for row in points)
    picture.draw({"rows": rows}, tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 10_000
