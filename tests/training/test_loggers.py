"""A run has one run at Weights & Biases, whatever else the process trains, and goes on with it."""

from pathlib import Path

import pytest
import wandb
from launch import Tiny

from l2v.errors import L2VError
from l2v.runs.run import Run


@pytest.mark.slow
def test_each_run_has_its_own_run_at_weights_and_biases(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    tiny = Tiny(tmp_path, tiny_model, monkeypatch)
    settings = ["stage.max_steps=1", "logger=wandb", "logger.wandb.offline=true"]
    runs = [Run(tiny.train(name, "mntp", *settings)) for name in ("first", "second")]
    ids = [run.record()["wandb"] for run in runs]
    assert wandb.run is None and len(set(ids)) == 2
    for run, id_ in zip(runs, ids, strict=True):
        (kept,) = run.folder.glob(f"wandb/offline-run-*-{id_}")
        assert list(kept.glob("*.wandb"))
    tiny.resume(runs[0].folder, "stage.max_steps=2")
    assert wandb.run is None and runs[0].record()["wandb"] == ids[0]
    assert len(list(runs[0].folder.glob(f"wandb/offline-run-*-{ids[0]}"))) >= 1
    assert len(list(runs[1].folder.glob("wandb/offline-run-*"))) == 1
    with pytest.raises(L2VError):
        tiny.train("third", "mntp", *settings, "stage.batch_size=4000")
    assert wandb.run is None
