"""A run that is stopped and resumed is the run that never stopped, bit for bit."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from launch import Batches, SignalAt, Tiny, assert_same_training, checkpoint, metrics
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from l2v.config.typed import as_resumed
from l2v.encoders.encoder import Encoder
from l2v.errors import L2VError, Stopped
from l2v.runs.run import Run


class FailAt(Callback):
    """Breaks off in the middle of training."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step - 1:
            raise RuntimeError("the machine went down")


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    return Tiny(tmp_path, tiny_model, monkeypatch)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Tiny]:
    """A supervised run of one step, called begun."""
    with pytest.MonkeyPatch.context() as patch:
        tiny = Tiny(tmp_path_factory.mktemp("begun"), tiny_model, patch)
        tiny.train("begun", "supervised", "stage.max_steps=1")
        yield tiny


@pytest.mark.parametrize("stage", ["mntp", "simcse", "supervised"])
@pytest.mark.parametrize("stop_after", [pytest.param(10, marks=pytest.mark.slow), 13])
def test_stopped_and_resumed_equals_straight_through(tiny: Tiny, stage: str, stop_after: int) -> None:
    settings = ["stage.max_steps=20", "stage.attention_dropout=0.3", "adapter.lora.dropout=0.1"]
    if stage == "supervised":
        settings += ["stage.micro_batch_tokens=48", "stage.grad_cache=true"]
    whole, first, second = Batches(), Batches(), Batches()
    straight = tiny.train("straight", stage, *settings, callbacks=[whole])
    with pytest.raises(Stopped) as stop:
        tiny.train("stopped", stage, *settings, callbacks=[first, SignalAt(stop_after, signal.SIGTERM)])
    assert stop.value.signal == signal.SIGTERM
    stopped = tiny.folder / "runs" / "stopped"
    assert Run(stopped).record()["status"] == "stopped"
    assert checkpoint(stopped)["global_step"] == stop_after
    tiny.resume(stopped, callbacks=[second])
    assert first.ids + second.ids == whole.ids
    assert_same_training(straight, stopped)
    assert Run(stopped).is_finished


def test_the_best_checkpoint_is_of_the_lowest_loss(tiny: Tiny) -> None:
    """Of every validation, the last one too, whether or not it is one of those that come every so many steps."""
    run = tiny.train("run", "mntp", "stage.max_steps=5", "stage.validate_every=2", "stage.learning_rate=1e-3")
    losses = {row["step"]: row["validation/loss"] for row in metrics(run) if row.get("validation/loss") and row["step"]}
    assert list(losses) == [2, 4, 5]
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert losses[best["global_step"]] == min(losses.values())
    assert best["global_step"] == 5


def test_after_a_crash_the_best_checkpoint_is_still_the_best(tiny: Tiny) -> None:
    """``last.ckpt`` knows of the validation at which it was saved."""
    settings = ["stage.max_steps=8", "stage.validate_every=1", "stage.learning_rate=0.05", "stage.schedule=constant"]
    with pytest.raises(RuntimeError):
        tiny.train("crashed", "mntp", *settings, callbacks=[FailAt(4)])
    run = tiny.folder / "runs" / "crashed"
    losses = {row["step"]: row["validation/loss"] for row in metrics(run) if row.get("validation/loss") and row["step"]}
    (state,) = [state for name, state in checkpoint(run)["callbacks"].items() if name.startswith("SaveBest")]
    assert state["loss"] == pytest.approx(min(losses.values())) and max(losses) == 3
    moved = run.rename(run.parent / "moved")
    tiny.resume(moved)
    losses = {
        row["step"]: row["validation/loss"] for row in metrics(moved) if row.get("validation/loss") and row["step"]
    }
    best = torch.load(moved / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == min(losses, key=lambda step: losses[step])


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("stop_after", [3, 6])
def test_a_run_goes_on_at_its_step_with_other_batches_a_step(
    tiny: Tiny, before: int, now: int, stop_after: int
) -> None:
    """As on fewer GPUs: each step takes the rows that it would have taken."""
    whole, first, second = Batches(), Batches(), Batches()
    settings = ["stage.max_steps=10", "stage.validate_every=5", "stage.batch_size=null", "stage.global_batch_size=4"]
    tiny.train("straight", "simcse", *settings, callbacks=[whole])
    with pytest.raises(Stopped):
        tiny.train(
            *("run", "simcse", *settings, f"trainer.accumulate_grad_batches={before}"),
            callbacks=[first, SignalAt(stop_after, signal.SIGTERM)],
        )
    run = tiny.resume(tiny.folder / "runs" / "run", f"trainer.accumulate_grad_batches={now}", callbacks=[second])
    padding = Encoder.from_pretrained(run).backbone.tokenizer.pad_token_id
    texts = [
        [[token for token in row if token != padding] for batch in seen.ids for row in batch]
        for seen in (whole, first, second)
    ]
    assert texts[1] + texts[2] == texts[0]
    assert [row["step"] for row in metrics(run) if "validation/loss" in row] == [0, 5, 10]
    assert checkpoint(run)["global_step"] == 10


@pytest.mark.parametrize("other", ["trainer.accumulate_grad_batches=2", "stage.batch_size=8"])
def test_steps_of_other_rows_are_refused(tiny: Tiny, other: str) -> None:
    run = tiny.train("run", "simcse", "stage.max_steps=2", "stage.batch_size=4")
    before = [(run / name).read_text() for name in ("config.yaml", "run.json")]
    with pytest.raises(L2VError, match=r"a step of the run has 4 rows, .*with 8 it would read .*global_batch_size=4"):
        tiny.resume(run, "stage.max_steps=4", other)
    assert [(run / name).read_text() for name in ("config.yaml", "run.json")] == before  # nothing of it comes back
    told = ["stage.max_steps=4", "stage.global_batch_size=4", "stage.batch_size=null"]
    assert Run(tiny.resume(run, *told, "trainer.accumulate_grad_batches=2")).is_finished


def test_steps_of_other_rows_are_refused_in_a_run_that_has_not_counted_them(tiny: Tiny) -> None:
    run = tiny.train("run", "simcse", "stage.max_steps=2", "stage.batch_size=4")
    file = run / "checkpoints" / "last.ckpt"
    saved = torch.load(file, weights_only=True)
    del saved["settings"]["rows"]
    torch.save(saved, file)
    with pytest.raises(L2VError, match=r"a step of the run has 4 rows, .*with 8"):
        tiny.resume(run, "stage.max_steps=4", "trainer.accumulate_grad_batches=2")
    assert Run(tiny.resume(run, "stage.max_steps=4", "trainer.accumulate_grad_batches=1")).is_finished


def test_losses_of_other_validations_are_not_compared(tiny: Tiny) -> None:
    easy = tiny.folder / "easy.txt"
    easy.write_text("\n".join("zyx wvu tsr qpo" for _ in range(20)) + "\n")
    settings = ["stage.validate_every=2", "stage.learning_rate=1e-9", f"data.validation.files={easy}"]
    run = tiny.train("run", "mntp", "stage.max_steps=2", *settings)
    tiny.resume(run, "stage.max_steps=4", f"+data.validation.files={tiny.folder / 'held_out.txt'}")
    losses = {row["step"]: row["validation/loss"] for row in metrics(run) if "validation/loss" in row}
    assert losses[2] < losses[4]
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 4


class Rates(Callback):
    """Keeps the learning rate that each step is made with."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, stage: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def test_learning_rate_schedule_and_weight_decay_change_on_resume(tiny: Tiny) -> None:
    first, second = Rates(), Rates()
    run = tiny.train("run", "mntp", "stage.max_steps=4", "stage.learning_rate=1e-3", callbacks=[first])
    changed = ["stage.max_steps=8", "stage.learning_rate=2e-4", "stage.weight_decay=0.1"]
    tiny.resume(run, *changed, callbacks=[second])
    assert first.rates == pytest.approx([1e-3 * (4 - step) / 4 for step in range(4)])
    assert second.rates == pytest.approx([2e-4 * (8 - step) / 8 for step in range(4, 8)])
    (group,) = checkpoint(run)["optimizer_states"][0]["param_groups"]
    assert (group["initial_lr"], group["weight_decay"]) == (pytest.approx(2e-4), 0.1)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "warmup_stable_decay"])
def test_a_rate_that_has_reached_zero_stays_there(tiny: Tiny, schedule: str) -> None:
    seen = Rates()
    settings = [f"stage.schedule={schedule}", "stage.schedule_steps=4", "stage.max_steps=8"]
    tiny.train("run", "mntp", *settings, callbacks=[seen])
    assert all(rate > 0 for rate in seen.rates[:4]) and seen.rates[4:] == [0.0] * 4


def test_metrics_are_logged_at_the_steps_that_are_asked_for(tiny: Tiny) -> None:
    run = tiny.train("run", "mntp", "stage.max_steps=10", "stage.validate_every=10", "trainer.log_every_n_steps=5")
    tiny.resume(run, "stage.max_steps=23", "stage.validate_every=10")
    tiny.resume(run, "stage.max_steps=30", "stage.validate_every=10")
    assert [row["step"] for row in metrics(run) if "train/loss" in row] == [5, 10, 15, 20, 25, 30]


@pytest.mark.parametrize("stage", ["mntp", pytest.param("simcse", marks=pytest.mark.slow)])
def test_a_crash_goes_back_to_the_validation_before_it(tiny: Tiny, stage: str) -> None:
    settings = ["stage.max_steps=20", "stage.attention_dropout=0.3", "adapter.lora.dropout=0.1"]
    straight = tiny.train("straight", stage, *settings)
    with pytest.raises(RuntimeError):
        tiny.train("crashed", stage, *settings, callbacks=[FailAt(13)])
    crashed, again = tiny.folder / "runs" / "crashed", Batches()
    record = Run(crashed).record()
    assert record["status"] == "failed" and record["error"] == "the machine went down"
    assert checkpoint(crashed)["global_step"] == record["step"] == 10
    tiny.resume(crashed, callbacks=[again])
    assert len(again.ids) == 10
    assert_same_training(straight, crashed)


def test_overrides_on_resume_stay(tiny: Tiny) -> None:
    run = Run(tiny.train("run", "mntp", "stage.max_steps=5"))
    first = run.record()["config_hash"]
    with pytest.raises(Stopped):
        tiny.resume(run.folder, "stage.max_steps=20", callbacks=[SignalAt(8, signal.SIGTERM)])
    assert OmegaConf.load(run.folder / "config.yaml").stage.max_steps == 20
    second = run.record()["config_hash"]
    with pytest.raises(RuntimeError):
        tiny.resume(run.folder, callbacks=[FailAt(12)])
    assert run.record()["error"] == "the machine went down" and not run.is_finished
    tiny.resume(run.folder)
    record = run.record()
    assert record["status"] == "finished" and record["step"] == 20 and not record["error"]
    assert first != second == record["config_hash"]
    assert [row["step"] for row in metrics(run.folder) if "train/loss" in row] == list(range(1, 21))


def test_a_length_of_the_encoder_that_comes_out_is_changed_alone(tiny: Tiny) -> None:
    run = tiny.train("run", "simcse", "stage.max_steps=1")
    tiny.main(as_resumed([f"resume={run}", "stage.max_steps=2", "model.max_length=24"]))
    assert Encoder.from_pretrained(run).max_length == 24
    assert OmegaConf.load(run / "config.yaml").stage.max_length != 24


def test_a_setting_of_the_runs_own_stage_is_changed_alone(tiny: Tiny) -> None:
    """Whichever stage Hydra composes by default."""
    run = tiny.train("run", "supervised", "stage.max_steps=1")
    before = OmegaConf.load(run / "config.yaml").stage
    given = as_resumed([f"resume={run}", "stage.max_steps=2", "stage.loss.temperature=0.05"])
    tiny.main(given)
    after = OmegaConf.load(run / "config.yaml").stage
    assert after.loss.temperature == 0.05
    after.loss.temperature, after.max_steps = before.loss.temperature, before.max_steps
    assert after == before
    assert given[1:] == ["++stage.max_steps=2", "++stage.loss.temperature=0.05"]
    assert as_resumed(["resume=null", "stage.max_steps=2"])[1] == "stage.max_steps=2"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("stage.negatvies=2", "stage.negatvies: no such setting [(]did you mean stage.negatives|negatives"),
        ("stage.loss.temprature=1", "stage.loss.temprature: no such setting [(]did you mean temperature"),
        ("model.poling=bos", "model.poling: no such setting"),
        ("data.trane=x", "data.trane: no such setting"),
        ("adapter.laro=null", "adapter.laro: no such setting"),
        ("trainer.devises=2", "trainer.devises: no such"),
        ("loss=distillation", "loss= chooses for other settings when a run begins"),
        ("quirks=llm2vec", "quirks= chooses for other settings"),
        ("quirks.padding_side=left", "quirks.padding_side= chooses for other settings"),
        ("model.stages.supervised={}", "model.stages.supervised= chooses for other settings"),
        ("experiment=sample_efficiency", "experiment= chooses for other settings"),
        (
            "model.pooling=last_token",
            "model.pooling= is of the encoder that comes out, and the stage has its own; give ",
        ),
        ("model.template='[ {text} ]'", "model.template= is of the encoder .*; give stage.template=, too"),
        ("model.separator='+'", "model.separator= is of the encoder .*; give stage.encoder_separator=, too"),
        ("stage.pooling=bos", "stage.pooling=bos: the encoder that comes out would pool by model.pooling=mean"),
    ],
)
def test_an_override_that_would_do_nothing_or_half_is_refused(begun: Tiny, override: str, told: str) -> None:
    run = begun.folder / "runs" / "begun"
    before = (run / "config.yaml").read_text()
    with pytest.raises(L2VError, match=told):
        begun.main(as_resumed([f"resume={run}", "stage.max_steps=2", override]))
    assert (run / "config.yaml").read_text() == before


def test_pooling_is_changed_in_both_places(tiny: Tiny) -> None:
    run = tiny.train("run", "supervised", "stage.max_steps=1")
    tiny.main(as_resumed([f"resume={run}", "stage.max_steps=2", "model.pooling=bos", "stage.pooling=bos"]))
    assert Encoder.from_pretrained(run).pooling == "bos"


def test_ten_steps_then_ten_more_equal_twenty(tiny: Tiny) -> None:
    settings = ["stage.schedule_steps=20", "stage.attention_dropout=0.3"]
    straight = tiny.train("straight", "simcse", "stage.max_steps=20", *settings)
    parts = tiny.train("parts", "simcse", "stage.max_steps=10", *settings)
    tiny.resume(parts, "stage.max_steps=20")
    assert_same_training(straight, parts)
    a, b = (Run(run).lineage() for run in (straight, parts))
    assert a.adapter is not None and b.adapter is not None and a.adapter.hash == b.adapter.hash


def test_resume_with_accumulated_gradients(tiny: Tiny) -> None:
    settings = ["stage.max_steps=20", "trainer.accumulate_grad_batches=2"]
    straight = tiny.train("straight", "mntp", *settings)
    with pytest.raises(Stopped):
        tiny.train("stopped", "mntp", *settings, callbacks=[SignalAt(7, signal.SIGINT)])
    tiny.resume(tiny.folder / "runs" / "stopped")
    assert_same_training(straight, tiny.folder / "runs" / "stopped")


def test_another_seed_is_another_run(tiny: Tiny) -> None:
    one, two = (checkpoint(tiny.train(f"seed-{s}", "mntp", "stage.max_steps=2", f"seed={s}")) for s in (0, 1))
    assert any(not torch.equal(one["state_dict"][name], two["state_dict"][name]) for name in one["state_dict"])


def test_a_run_without_checkpoint_cannot_be_resumed(tiny: Tiny) -> None:
    run = tiny.train("run", "mntp", "stage.max_steps=1")
    (run / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(L2VError, match="no checkpoint"):
        tiny.resume(run)


def test_a_damaged_checkpoint_is_told(tiny: Tiny) -> None:
    run = tiny.train("run", "mntp", "stage.max_steps=1")
    (run / "checkpoints" / "last.ckpt").write_bytes(b"half a file")
    with pytest.raises(L2VError, match=r"last\.ckpt: not a checkpoint"):
        tiny.resume(run, "stage.max_steps=2")


def test_a_finished_run_needs_more_steps_to_go_on(tiny: Tiny) -> None:
    run = tiny.train("run", "mntp", "stage.max_steps=1")
    with pytest.raises(L2VError, match=r"raise stage\.max_steps"):
        tiny.resume(run)


def test_a_checkpoint_of_another_adapter_does_not_load(tiny: Tiny) -> None:
    run = tiny.train("run", "mntp", "stage.max_steps=1")
    other = tiny.train("other", "mntp", "stage.max_steps=1", "adapter.lora.target_modules=[q_proj]")
    shutil.copy(other / "checkpoints" / "last.ckpt", run / "checkpoints" / "last.ckpt")
    with pytest.raises(L2VError, match="does not fit"):
        tiny.resume(run, "stage.max_steps=2")


def test_a_run_stays_what_it_is(tiny: Tiny, tmp_path: Path) -> None:
    run = tiny.train("run", "mntp", "stage.max_steps=1")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    others = {
        "stage=simcse": r"stage\._target_=.*SimCSE, but the run is one of stage\._target_=.*MNTP",
        f"model.source={tmp_path}": "model.source=",
        "adapter.lora.rank=4": r"adapter\.lora\.rank=4, but the run is one of adapter\.lora\.rank=16",
        "adapter.lora.target_modules=[q_proj]": "target_modules",
        "adapter=none": "adapter.lora._target_=None",
        f"init_from={run}": "init_from=",
    }
    for override, told in others.items():
        with pytest.raises(L2VError, match=told):
            tiny.resume(run, "stage.max_steps=2", override)
        assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    tiny.resume(run, "stage.max_steps=2", "adapter.lora.dropout=0.2")
    assert Run(run).record()["step"] == 2
