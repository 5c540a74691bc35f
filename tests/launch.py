"""Running train.py's main function in this process, on tiny models."""

import dataclasses
import importlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, open_dict
from tiny import SENTENCES

from l2v import config as configs

ROOT = Path(__file__).parents[1]
SMALL = {
    "mntp": ["stage.batch_size=4", "stage.block_length=16", "stage.validation_rows=8", "stage.validate_every=5"],
    "word": ["stage.batch_size=4", "stage.validate_every=5", "stage.learning_rate=3e-2"],
    "simcse": ["stage.batch_size=4", "stage.max_length=16", "stage.validation_rows=8", "stage.validate_every=5"],
    "supervised": [
        *("stage.batch_size=4", "stage.max_length=32", "stage.validation_rows=8", "stage.validate_every=5"),
        *("stage.warmup_steps=0", "stage.negatives=2"),
    ],
}


def composed(name: str, overrides: list[str]) -> DictConfig:
    """A config as Hydra hands it to a task."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(name, overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        return config


def hears_ctrl_c() -> None:
    """In a child before it starts: a shell that runs the tests in the background makes them ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def script(name: str) -> Any:
    """A program as a module."""
    return importlib.import_module(f"l2v.cli.{name}")


def train_here(overrides: list[str], patch: pytest.MonkeyPatch, callbacks: list[Callback]) -> None:
    """train.py's main function in this process, without a progress bar."""
    build = configs.build_training

    def quietly(config: dict[str, Any]) -> Any:
        return dataclasses.replace(build(config), show=False, callbacks=callbacks)

    patch.setattr(configs, "build_training", quietly)
    patch.delenv("L2V_RUN_DIR", raising=False)
    script("train").main(composed("train", overrides))


class Tiny:
    """Trains stages of a tiny model in a temporary folder."""

    def __init__(self, folder: Path, model: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.model, self.patch = folder, model, patch
        texts = [
            " ".join(SENTENCES[(row + shift) % len(SENTENCES)] for shift in range(1 + row % 3)) for row in range(60)
        ]
        for part in ("train", "held_out"):
            (folder / f"{part}.txt").write_text("\n".join(texts if part == "train" else texts[:20]) + "\n")
        triplets = [
            {
                "query": f"{row}: {SENTENCES[row % 6][:10].strip()}",
                "positive": f"{SENTENCES[row % 6]} {row}",
                "negative": [f"{SENTENCES[(row + shift) % 6]} {row}" for shift in range(1, 1 + row % 3)],
            }
            for row in range(60)
        ]
        for name in ("even", "odd"):
            rows = "".join(json.dumps(triplet) + "\n" for triplet in triplets[name == "odd" :: 2])
            (folder / "triplets").mkdir(exist_ok=True)
            (folder / "triplets" / f"{name}.jsonl").write_text(rows)

    def overrides(self, stage: str, *more: str) -> list[str]:
        data = [
            "data=files",
            f"data.train.files={self.folder / 'train.txt'}",
            f"data.validation.files={self.folder / 'held_out.txt'}",
        ]
        if stage == "supervised":
            data = ["data=triplets", f"data.folder={self.folder / 'triplets'}", "data.held_out=3"]
        return [
            f"runs_dir={self.folder / 'runs'}",
            f"stage={stage}",
            f"model.source={self.model}",
            "model.max_length=32",
            *data,
            "trainer.precision=32-true",
            *SMALL[stage],
            *more,
        ]

    def train(self, name: str, stage: str, *more: str, callbacks: list[Callback] | None = None) -> Path:
        """Run a stage to its end and return its folder."""
        self.main([*self.overrides(stage, *more), f"name={name}"], callbacks)
        return self.folder / "runs" / name

    def resume(self, run: Path, *more: str, callbacks: list[Callback] | None = None) -> Path:
        self.main([f"resume={run}", *more], callbacks)
        return run

    def main(self, overrides: list[str], callbacks: list[Callback] | None = None) -> None:
        with self.patch.context() as patch:
            train_here(overrides, patch, callbacks or [])


class Batches(Callback):
    """Keeps the token ids of every training batch."""

    def __init__(self) -> None:
        self.ids: list[list[list[int]]] = []

    def on_train_batch_start(self, trainer: L.Trainer, stage: Any, batch: dict[str, Any], batch_idx: int) -> None:
        self.ids.append(batch.get("queries", batch)["input_ids"].tolist())


class SignalAt(Callback):
    """Sends this process a signal, once, in the middle of training."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number, self.sent = step, number, False

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step - 1 and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)


def checkpoint(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}/{number}")
    else:
        assert a == b, where


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(straight: Path, stopped: Path) -> None:
    one, two = checkpoint(straight), checkpoint(stopped)
    assert one["global_step"] == two["global_step"] == 20
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "tokens"):
        assert_equal(one[part], two[part], part)
    losses = [
        [(row["step"], row["train/loss"]) for row in metrics(run) if "train/loss" in row] for run in (straight, stopped)
    ]
    assert losses[0] == losses[1]
    validations = [
        [(row["step"], row["validation/loss"]) for row in metrics(run) if "validation/loss" in row]
        for run in (straight, stopped)
    ]
    # neither the stop nor the resumed part adds a validation
    assert validations[0] == validations[1]
