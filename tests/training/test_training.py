"""What a finished run holds, and how the next stage starts from it."""

import csv
import json
import math
import os
import platform
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from launch import Batches, Tiny, assert_same_training, metrics
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from safetensors.torch import load_file
from tiny import SENTENCES, make_tiny_model
from transformers import AutoModelForCausalLM

from l2v import Encoder
from l2v.config.compose import with_model_of_init
from l2v.data.collate import MaskedBlocks
from l2v.errors import L2VError, Stopped
from l2v.evaluation.tasks.sts import StsPairs
from l2v.models.adapters import Lora
from l2v.models.backbone import Backbone
from l2v.models.proof import prove
from l2v.runs.hashes import folder_hash
from l2v.runs.initialization import Initialization
from l2v.runs.locations import locate
from l2v.runs.run import Run
from l2v.stages.mntp import MNTP
from l2v.training.checkpoints import AtomicCheckpointIO
from l2v.training.metrics import RunLogger
from l2v.training.strategies import FullySharded, validates_alone


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    return Tiny(tmp_path, tiny_model, monkeypatch)


class Keep(Callback):
    """Keeps the stage, and what it was at the first step."""

    stage: Any

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stage = pl_module
        self.backbone = self.stage.backbone  # the stage gives it up when training is over
        self.horizon = self.stage.horizon()
        self.weights = {k: v.clone() for k, v in pl_module.state_dict().items() if "lora_" in k}


def test_a_run_is_self_contained(tiny: Tiny) -> None:
    run = Run(tiny.train("one", "mntp", "stage.max_steps=7"))
    record, lineage = run.record(), run.lineage()
    assert record["status"] == "finished" and record["step"] == 7
    assert record["proof"]["attention"] == "bidirectional" and record["proof"]["backward_change"] > 1e-3
    assert record["versions"]["torch"] == torch.__version__
    assert lineage.base_hash == "sha256:" + folder_hash(tiny.model)
    assert lineage.adapter is not None and lineage.adapter.hash == folder_hash(run.adapter)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 8))
    assert [row["step"] for row in rows if "validation/loss" in row] == [0, 5, 7]
    with (run.folder / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    for name in ("last.ckpt", "best.ckpt"):
        state = torch.load(run.checkpoints / name, weights_only=True)["state_dict"]
        assert state and all("lora_" in key for key in state)
    assert "stage:" in (run.folder / "config.yaml").read_text()


@pytest.mark.parametrize("stage", ["mntp", "simcse", "supervised"])
def test_a_stage_trains_and_validates_in_mixed_precision(tiny: Tiny, stage: str) -> None:
    """Of float32 weights, as on a CPU with bfloat16 instructions: the losses of float32 within its rounding."""

    def losses(precision: str) -> list[float]:
        settings = [f"trainer.precision={precision}", "stage.max_steps=3", "adapter.lora.dropout=0"]
        run = tiny.train(precision, stage, *settings)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [row["validation/loss"] for row in rows if "validation/loss" in row]

    mixed, exact = losses("bf16-mixed"), losses("32-true")
    assert len(mixed) == len(exact) == 2
    assert mixed != exact
    np.testing.assert_allclose(mixed, exact, rtol=0.1)  # a temperature of 0.02 makes 50 times as much of a rounding


@pytest.mark.slow
def test_saving_memory_changes_no_run(tiny: Tiny) -> None:
    steps = ["stage.max_steps=3", "stage.learning_rate=1e-2", "stage.weight_decay=0.1"]
    plain = tiny.train("plain", "simcse", *steps)
    selective = tiny.train("selective", "simcse", *steps, "model.gradient_checkpointing=selective")
    expected, found = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (plain, selective))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name

    # micro-batches draw other dropout masks, and add up in another order, so with neither, and by their loss
    exact = [*steps, "adapter.lora.dropout=0", "trainer.precision=32-true", "stage.validate_every=1"]
    whole = tiny.train("whole", "mntp", *exact)
    in_parts = tiny.train("parts", "mntp", *exact, "stage.micro_batch_tokens=32")
    losses = [
        [
            row["train/loss"]
            for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            if "train/loss" in row
        ]
        for run in (whole, in_parts)
    ]
    assert len(losses[0]) == 3 and losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_moved_run_still_encodes_and_starts_the_next_stage(tiny: Tiny) -> None:
    first = tiny.train("mntp", "mntp", "stage.max_steps=2")
    second = tiny.train("simcse", "simcse", "stage.max_steps=2", f"init_from={first}")
    before = Encoder.from_pretrained(second).encode(SENTENCES)
    moved = second.rename(tiny.folder / "moved")
    assert np.array_equal(Encoder.from_pretrained(moved).encode(SENTENCES), before)
    # the base, a local folder, is recorded relative to the run
    moved = moved.rename(tiny.folder / "runs" / "back")
    third = tiny.train("third", "simcse", "stage.max_steps=1", f"init_from={moved}")
    assert [record.stage for record in Run(third).lineage().merged] == ["mntp", "simcse"]


def test_the_exported_encoder_is_the_trained_model(tiny: Tiny) -> None:
    keep = Keep()
    run = tiny.train("one", "simcse", "stage.max_steps=3", "stage.learning_rate=1e-2", callbacks=[keep])
    trained = Encoder(keep.backbone, max_length=32).encode(SENTENCES)
    exported = Encoder.from_pretrained(run).encode(SENTENCES)
    untrained = Encoder.from_pretrained(tiny.model, max_length=32).encode(SENTENCES)
    assert np.abs(trained - exported).max() < 1e-5
    assert np.abs(trained - untrained).max() > 1e-2


def test_init_from_a_run_merges_its_adapter_and_starts_a_new_one(tiny: Tiny) -> None:
    first = tiny.train("first", "mntp", "stage.max_steps=3", "stage.learning_rate=1e-2")
    keep = Keep()
    second = tiny.train("second", "simcse", "stage.max_steps=1", f"init_from={first}", callbacks=[keep])
    merged = Run(second).lineage().merged
    assert [(record.stage, record.path) for record in merged] == [("mntp", "merged/01-mntp")]
    assert merged[0].hash == folder_hash(first / "adapter")
    assert all(not value.any() for key, value in keep.weights.items() if "lora_B" in key)
    start = Initialization.of(Run(second))
    backbone = Backbone.load(start.base, merge=start.merge)
    expected = Encoder.from_pretrained(first).encode(SENTENCES)
    assert np.abs(Encoder(backbone, max_length=32).encode(SENTENCES) - expected).max() < 1e-5


class Fail(Callback):
    """Breaks off before the first step."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        raise RuntimeError("no")


def test_a_run_that_failed_before_its_first_save_leaves_nothing_to_the_next(tiny: Tiny) -> None:
    a, b = (tiny.train(name, "mntp", "stage.max_steps=2", "stage.learning_rate=1e-2", f"seed={name}") for name in "12")
    assert folder_hash(a / "adapter") != folder_hash(b / "adapter")
    for attempt in ([], ["adapter.init=continue"]):
        with pytest.raises(RuntimeError):
            tiny.train("next", "simcse", "stage.max_steps=1", f"init_from={a}", *attempt, callbacks=[Fail()])
    run, keep = Run(tiny.folder / "runs" / "next"), Keep()
    assert run.record()["status"] == "failed" and (run.folder / "initial_adapter").exists()
    tiny.train("next", "simcse", "stage.max_steps=1", f"init_from={b}", callbacks=[keep])
    assert run.is_finished and not (run.folder / "initial_adapter").exists()
    assert [folder_hash(run.folder / record.path) for record in run.lineage().merged] == [folder_hash(b / "adapter")]
    assert all(not value.any() for key, value in keep.weights.items() if "lora_B" in key)
    start = Initialization.of(run)
    assert start.adapter is None
    merged = Encoder(Backbone.load(start.base, merge=start.merge), max_length=32).encode(SENTENCES)
    assert np.abs(merged - Encoder.from_pretrained(b).encode(SENTENCES)).max() < 1e-5


def test_runs_may_be_a_link_to_another_disk(tiny: Tiny) -> None:
    disk = tiny.folder / "far" / "away" / "disk"
    disk.mkdir(parents=True)
    (tiny.folder / "runs").symlink_to(disk)
    first = tiny.train("first", "mntp", "stage.max_steps=2", "stage.learning_rate=1e-2")
    second = tiny.train("second", "simcse", "stage.max_steps=1", f"init_from={first}")
    assert [record.hash for record in Run(second).lineage().merged] == [folder_hash(first / "adapter")]
    assert Encoder.from_pretrained(second).encode(SENTENCES).shape == (len(SENTENCES), 32)


def test_a_model_beside_init_from_must_be_the_one_of_the_run(tiny: Tiny, tmp_path: Path) -> None:
    first = tiny.train("first", "mntp", "stage.max_steps=1")
    tiny.model, original = make_tiny_model(tmp_path / "other", initializer_range=0.1), tiny.model
    with pytest.raises(L2VError, match=f"model.source={tiny.model}: init_from=.*was trained on {original}") as error:
        tiny.train("second", "simcse", "stage.max_steps=1", f"init_from={first}")
    assert "\n" not in str(error.value)
    assert not (tiny.folder / "runs" / "second").exists()


def test_init_continue_goes_on_with_the_adapter(tiny: Tiny) -> None:
    first = tiny.train("first", "mntp", "stage.max_steps=3", "stage.learning_rate=1e-2")
    keep = Keep()
    second = tiny.train(
        "second", "simcse", "stage.max_steps=1", f"init_from={first}", "adapter.init=continue", callbacks=[keep]
    )
    lineage = Run(second).lineage()
    assert lineage.merged == [] and lineage.initial is not None
    assert (lineage.initial.stage, lineage.initial.hash) == ("mntp", folder_hash(first / "adapter"))
    saved = load_file(first / "adapter" / "adapter_model.safetensors")
    began = {
        key.removeprefix("backbone.decoder.").replace(".default", ""): value for key, value in keep.weights.items()
    }
    assert began.keys() == saved.keys()
    assert all(torch.equal(began[key], saved[key]) for key in saved)


def test_init_from_a_plain_adapter_folder(tiny: Tiny) -> None:
    first = tiny.train("first", "mntp", "stage.max_steps=2", "stage.learning_rate=1e-2")
    folder = (first / "adapter").rename(tiny.folder / "published-mntp")
    second = tiny.train("second", "simcse", "stage.max_steps=1", f"init_from={folder}")
    assert [record.stage for record in Run(second).lineage().merged] == ["published-mntp"]


def test_init_from_an_adapter_of_another_model_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    other = Backbone.load(str(make_tiny_model(tmp_path / "wide", hidden_size=64, head_dim=16)))
    other.add_adapter(Lora())
    other.save_adapter(tmp_path / "wide-adapter")
    with pytest.raises(L2VError, match="does not fit the base model"):
        tiny.train("run", "mntp", "stage.max_steps=1", f"init_from={tmp_path / 'wide-adapter'}")


def test_an_initial_adapter_that_was_changed_is_noticed(tiny: Tiny) -> None:
    first = tiny.train("first", "mntp", "stage.max_steps=2", "stage.learning_rate=1e-2")
    second = tiny.train("second", "mntp", "stage.max_steps=1", f"init_from={first}", "adapter.init=continue")
    other = tiny.train("other", "mntp", "stage.max_steps=1")
    shutil.copytree(other / "adapter", second / "initial_adapter", dirs_exist_ok=True)
    with pytest.raises(L2VError, match=r"initial_adapter: not the adapter of lineage\.json"):
        tiny.resume(second, "stage.max_steps=2")


@pytest.mark.slow
def test_supervised_training_starts_as_in_the_paper(tiny: Tiny) -> None:
    mntp = tiny.train("mntp", "mntp", "stage.max_steps=2", "stage.learning_rate=1e-2")
    simcse = tiny.train("simcse", "simcse", "stage.max_steps=2", "stage.learning_rate=1e-2", f"init_from={mntp}")

    def started(name: str, *settings: str) -> tuple[list[str], str | None, bool]:
        keep = Keep()
        run = tiny.train(name, "supervised", "stage.max_steps=1", *settings, callbacks=[keep])
        lineage = Run(run).lineage()
        is_new = not any(value.any() for key, value in keep.weights.items() if "lora_B" in key)
        return [record.stage for record in lineage.merged], lineage.initial and lineage.initial.stage, is_new

    assert started("from-simcse", f"init_from={simcse}") == (["mntp"], "simcse", False)
    assert started("from-mntp", f"init_from={mntp}") == (["mntp"], None, True)
    assert started("new", f"init_from={simcse}", "stage.adapter_init=new") == (["mntp", "simcse"], None, True)
    assert started("from-nothing") == ([], None, True)
    assert started("all", f"init_from={simcse}", "adapter=none", "adapter.init=simcse") == ([], None, True)
    assert not (tiny.folder / "runs" / "all" / "adapter").exists()  # all weights are trained, as adapter=none says
    published = simcse.rename(tiny.folder / "old") / "adapter"
    with pytest.raises(L2VError, match=r"does not say which stage made it; set stage\.adapter_init=continue"):
        started("published", f"init_from={published}")
    assert started("told", f"init_from={published}", "stage.adapter_init=continue") == ([], "adapter", False)


def test_an_adapter_goes_on_as_it_is_with_the_dropout_of_now(tiny: Tiny) -> None:
    first = tiny.train("first", "simcse", "stage.max_steps=1", "adapter.lora.rank=4")
    goes_on = ["stage.max_steps=1", f"init_from={first}", "adapter.init=continue"]
    with pytest.raises(L2VError, match=r"adapter\.lora\.rank=16: the adapter of init_from, .*, has 4; give that, or"):
        tiny.train("second", "simcse", *goes_on)
    with pytest.raises(L2VError, match=r"adapter\.lora\.alpha=64: .* has 32"):
        tiny.train("second", "simcse", *goes_on, "adapter.lora.rank=4", "adapter.lora.alpha=64")
    with pytest.raises(L2VError, match=r"adapter\.lora\.target_modules=o_proj: .* has down_proj, gate_proj, "):
        tiny.train("second", "simcse", *goes_on, "adapter.lora.rank=4", "adapter.lora.target_modules=[o_proj]")
    assert not (tiny.folder / "runs" / "second").exists()
    peft = ["adapter.lora=null", "+adapter.peft={_target_: peft.LoraConfig, r: 4, lora_alpha: 32, use_dora: true}"]
    with pytest.raises(L2VError, match=r"adapter\.peft\.use_dora=True: the adapter of init_from, .*, has False"):
        tiny.train("second", "simcse", *goes_on, *peft)
    run = tiny.train("second", "simcse", *goes_on, "adapter.lora.rank=4", "adapter.lora.dropout=0.5")
    saved = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["lora_dropout"]) == (4, 32, 0.5)
    tiny.resume(run, "stage.max_steps=2", "adapter.lora.dropout=0.25")
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["lora_dropout"] == 0.25


def test_a_training_that_diverges_ends_and_keeps_what_was_saved_before(tiny: Tiny) -> None:
    wild = ["trainer.gradient_clip_val=null", "stage.validate_every=2"]
    run = Run(tiny.train("run", "mntp", "stage.max_steps=2", *wild))
    before = run.last_checkpoint().read_bytes()
    with pytest.raises(L2VError, match=r"validation/loss is nan at step 4: the training has diverged; .*learning_rate"):
        tiny.resume(run.folder, "stage.max_steps=4", "stage.learning_rate=1e30")
    assert run.last_checkpoint().read_bytes() == before and run.record()["status"] == "failed"
    assert Run(tiny.resume(run.folder, "stage.max_steps=4", "stage.learning_rate=1e-4")).is_finished


def test_weights_that_are_not_finite_are_told_as_such(tiny_model: Path) -> None:
    backbone = Backbone.load(str(tiny_model))
    with torch.no_grad():
        next(backbone.parameters()).fill_(math.nan)
    with pytest.raises(L2VError, match="its states are not finite; .*unless its weights are none"):
        prove(backbone.decoder, "bidirectional")


def test_time_that_is_over_stops_a_run_which_goes_on(tiny: Tiny) -> None:
    limit = "+trainer.max_time=00:00:00:00"
    with pytest.raises(Stopped, match="stopped at step 1 of 20 and saved; go on with"):
        tiny.train("run", "mntp", "stage.max_steps=20", limit)
    run = tiny.folder / "runs" / "run"
    assert Run(run).record()["status"] == "stopped"
    with pytest.raises(Stopped, match="stopped at step 2 of 20"):
        tiny.resume(run)
    straight = tiny.train("straight", "mntp", "stage.max_steps=20")
    assert_same_training(straight, tiny.resume(run, "+trainer.max_time=null"))


class Plain(MNTP):
    """A stage of one's own with a plain optimizer, and no schedule."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.5)


class Grouped(MNTP):
    """A stage of one's own with two groups of parameters."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        first, *others = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW([{"params": [first], "lr": 1e-3}, {"params": others}], lr=1e-4)


def test_a_stage_may_have_a_plain_optimizer(tiny: Tiny) -> None:
    run = tiny.train("run", "mntp", "stage.max_steps=2", f"stage._target_={__name__}.Plain")
    assert [row["learning_rate"] for row in metrics(run) if "learning_rate" in row] == [0.5, 0.5]


def test_a_split_training_refuses_optimizers_that_it_cannot_save_before_the_first_step(tiny: Tiny) -> None:
    batches = Batches()
    with pytest.raises(
        L2VError, match=r"saved with one AdamW of one group .* has AdamW of 2 groups; choose trainer=ddp"
    ):
        tiny.train(
            "run",
            "mntp",
            *("stage.max_steps=1", f"stage._target_={__name__}.Grouped"),
            *("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=32-true"),
            callbacks=[batches],
        )
    assert not batches.ids


def test_continue_without_an_adapter_is_refused(tiny: Tiny) -> None:
    with pytest.raises(L2VError, match=r"adapter\.init=continue"):
        tiny.train("run", "mntp", "stage.max_steps=1", "adapter.init=continue")


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_full_fine_tuning_through_two_stages(tiny: Tiny, tmp_path: Path, tied: bool) -> None:
    tiny.model = make_tiny_model(tmp_path / "model", tied=tied)
    settings = ["adapter=none", "stage.max_steps=2", "stage.learning_rate=1e-3"]
    first = tiny.train("first", "mntp", *settings)
    assert not (first / "adapter").exists()
    lineage = Run(first).lineage()
    assert lineage.base == "encoder" and [step["stage"] for step in lineage.history] == ["mntp"]
    # the encoder has no head of its own where it is not the embedding: the next MNTP takes the original one
    second = tiny.train("second", "mntp", *settings, f"init_from={first}")
    head = Encoder.from_pretrained(second, with_head=True).backbone.head
    original = AutoModelForCausalLM.from_pretrained(tiny.model).get_output_embeddings()
    assert head is not None and torch.equal(head.weight, original.weight)
    changed = np.abs(
        Encoder.from_pretrained(first).encode(SENTENCES) - Encoder.from_pretrained(second).encode(SENTENCES)
    )
    assert changed.max() > 1e-4


def test_names_are_not_taken_twice(tiny: Tiny) -> None:
    tiny.train("run", "mntp", "stage.max_steps=1")
    with pytest.raises(L2VError, match="finished; choose another name="):
        tiny.train("run", "mntp", "stage.max_steps=1")


def test_reuse_leaves_a_finished_run_with_the_same_config(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny.train("run", "mntp", "stage.max_steps=1", "reuse=true")
    finished = Run(run).record()["finished"]
    tiny.train("run", "mntp", "stage.max_steps=1", "reuse=true")
    assert Run(run).record()["finished"] == finished
    assert "it is reused" in capsys.readouterr().err
    with pytest.raises(L2VError, match="finished"):
        tiny.train("run", "mntp", "stage.max_steps=2", "reuse=true")


def test_reuse_goes_on_with_a_stopped_run(tiny: Tiny) -> None:
    class Stop(Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        tiny.train("run", "mntp", "stage.max_steps=6", "reuse=true", callbacks=[Stop()])
    again = Batches()
    run = Run(tiny.train("run", "mntp", "stage.max_steps=6", "reuse=true", callbacks=[again]))
    assert len(again.ids) == 2 and run.is_finished and run.record()["step"] == 6


def test_a_run_that_is_being_trained_is_left_alone(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tiny.train("run", "mntp", "stage.max_steps=1", "reuse=true"))
    monkeypatch.setattr("l2v.runs.locks._PATIENCE", 0.1)
    told = f"process {os.getpid()} of {platform.node()} is training in it"
    with run.alone():
        before = (run.folder / "run.json").read_text()
        with pytest.raises(L2VError, match=told):
            tiny.resume(run.folder, "stage.max_steps=2")
        with pytest.raises(L2VError, match=told):
            tiny.train("run", "mntp", "stage.max_steps=1", "reuse=true")
        assert (run.folder / "run.json").read_text() == before


def test_no_run_starts_from_an_unfinished_one(tiny: Tiny) -> None:
    run = Run(tiny.train("run", "mntp", "stage.max_steps=1"))
    run.update(status="stopped")
    with pytest.raises(L2VError, match="not finished"):
        tiny.train("next", "simcse", "stage.max_steps=1", f"init_from={run.folder}")


def test_a_changed_base_is_noticed(tiny: Tiny, tmp_path: Path) -> None:
    tiny.model = make_tiny_model(tmp_path / "model")
    run = tiny.train("run", "mntp", "stage.max_steps=1")
    make_tiny_model(tmp_path / "model", initializer_range=0.1)
    with pytest.raises(L2VError, match="is not the one it was trained on"):
        tiny.train("next", "simcse", "stage.max_steps=1", f"init_from={run}")


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": torch.ones(3)}}, file)

    def half(_: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(L2VError, match=r"No space left on device.*what was there before is kept"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": torch.zeros(3)}}, file)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(file)["state_dict"]["a"], torch.ones(3))
    assert [f.name for f in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_with_code_in_it_is_not_unpickled(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "code": locate}, tmp_path / "evil.ckpt")
    with pytest.raises(L2VError, match="not a checkpoint that l2v wrote"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt")


def test_metrics_survive_a_line_that_was_cut_off(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 2.0, "train/loss": 3.0}\n{"step": 2, "ti')
    logger = RunLogger(tmp_path)
    logger.start(1)
    assert logger.last() == {"step": 1, "time": 2.0, "train/loss": 3.0}


@pytest.mark.parametrize("line", [b'{"step": 2, "ti', b'{"step": 2, "t\xffme": 3}', b"[2]", b'{"loss": 1}'])
def test_metrics_with_a_broken_line_before_others_are_left_as_they_are(tmp_path: Path, line: bytes) -> None:
    whole = b'{"step": 1, "time": 2.0}\n' + line + b'\n{"step": 3, "time": 4.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(whole)
    with pytest.raises(L2VError, match=r"metrics.jsonl:(2: (not JSON|expected an object)| a row has no step)"):
        RunLogger(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_validation_hides_the_same_tokens_every_time(tiny: Tiny) -> None:
    class Hidden(Batches):
        def on_validation_batch_start(self, trainer: Any, stage: Any, batch: Any, *args: Any, **kwargs: Any) -> None:
            self.ids.append(batch["labels"].tolist())

    hidden = Hidden()
    tiny.train("one", "mntp", "stage.max_steps=10", callbacks=[hidden])
    # eight rows in batches of four: two batches at steps 0, 5 and 10, between training batches
    batches = [ids for ids in hidden.ids if any(label == -100 for row in ids for label in row)]
    assert batches[:2] == batches[2:4] == batches[4:6] and len(batches) == 6


@pytest.mark.parametrize("tied", [True, False])
def test_mntp_loss_is_the_stock_shifted_loss(tmp_path: Path, tied: bool) -> None:
    folder = make_tiny_model(tmp_path / "model", tied=tied)
    backbone = Backbone.load(str(folder), with_head=True)
    ids = torch.randint(2, 300, (3, 12))
    collate = MaskedBlocks(0.4, "bert", backbone.tokenizer.get_vocab()["_"], 300, (0, 1), seed=0)
    batch = collate([({"input_ids": row.tolist()}, key) for key, row in enumerate(ids)])
    stock = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    stock.config.is_causal = False
    for module in stock.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    expected = stock(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    logits, targets = backbone.predict_masked(batch["input_ids"], batch["attention_mask"], batch["labels"])
    assert len(targets) == (batch["labels"] != -100).sum()
    assert torch.allclose(torch.nn.functional.cross_entropy(logits, targets), expected, atol=1e-5)


def test_the_schedule_of_the_reference_spans_three_passes(tiny: Tiny) -> None:
    keep, plain = Keep(), Keep()
    tiny.train("plain", "mntp", "stage.max_steps=4", callbacks=[plain])
    tiny.train("quirks", "mntp", "stage.max_steps=4", "quirks=llm2vec", callbacks=[keep])
    assert plain.horizon == 4
    assert keep.horizon == 3 * math.ceil(len(keep.stage.trainer.datamodule.train_rows) / 4) > 4


def test_views_without_dropout_are_refused(tiny: Tiny) -> None:
    with pytest.raises(L2VError, match=r"two views of a text are the same.*stage\.attention_dropout"):
        tiny.train("one", "simcse", "stage.attention_dropout=0", "adapter.lora.dropout=0", "stage.max_steps=1")


def test_the_dropout_of_the_adapter_makes_two_views(tiny: Tiny) -> None:
    settings = ["stage.attention_dropout=0", "adapter.lora.dropout=0.5", "stage.learning_rate=1e-2"]
    assert Run(tiny.train("one", "simcse", *settings, "stage.max_steps=3")).is_finished


def test_one_text_to_validate_on_is_refused(tiny: Tiny) -> None:
    with pytest.raises(L2VError, match="stage.validation_rows: expected two texts or more") as error:
        tiny.train("one", "simcse", "stage.validation_rows=1", "stage.max_steps=1")
    assert "\n" not in str(error.value)


def test_a_run_shorter_than_its_validation_interval_is_validated_at_both_ends(tiny: Tiny) -> None:
    run = tiny.train("one", "mntp", "stage.max_steps=4", "stage.validate_every=100")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "validation/loss" in row] == [0, 4]


def test_a_mask_token_that_is_no_token_is_refused(tiny: Tiny) -> None:
    with pytest.raises(L2VError, match=r"stage\.mask_token='no such' is not one token"):
        tiny.train("one", "mntp", "stage.mask_token=no such", "stage.max_steps=1")


def test_a_batch_larger_than_the_data_is_refused(tiny: Tiny) -> None:
    with pytest.raises(L2VError, match=r"stage\.batch_size=4000"):
        tiny.train("one", "simcse", "stage.batch_size=4000", "stage.max_steps=1")


def test_supervised_validation_searches_each_set_by_itself(tiny: Tiny) -> None:
    pairs = tiny.folder / "sts.tsv"
    pairs.write_text("".join(f"-\t-\t-\t-\t{n}\t{a}\t{a[: 9 * n]}\n" for n, a in enumerate(SENTENCES, 1)))
    held_out: dict[str, list[dict[str, Any]]] = {}
    (tiny.folder / "held_out").mkdir()
    for name in ("even", "odd"):
        lines = (tiny.folder / "triplets" / f"{name}.jsonl").read_text().splitlines(keepends=True)[: 5 + len(name)]
        (tiny.folder / "held_out" / f"{name}.jsonl").write_text("".join(lines))
        held_out[name] = [json.loads(line) for line in lines]
    keep = Keep()
    run = tiny.train(
        *("run", "supervised", "stage.max_steps=1", "stage.attention_dropout=0.3", "stage.validation_rows=100"),
        *("data.held_out=0", f"data.validation.folder={tiny.folder / 'held_out'}", f"stage.sts.file={pairs}"),
        # in float32 as the encoder, and long enough that the pairs of sentences do not become the same
        *("stage.max_length=96", "trainer.precision=32-true"),
        callbacks=[keep],
    )
    found = Run(run).record()["metrics"]
    encoder = Encoder(keep.backbone, max_length=96)
    accuracies = []
    for name, rows in held_out.items():
        queries = encoder.encode([row["query"] for row in rows])
        texts = [row["positive"] for row in rows] + [text for row in rows for text in row["negative"]]
        scores = encoder.similarity(queries, encoder.encode(texts))
        places = (scores >= scores.diagonal()[:, None] - 1e-6).sum(axis=1)  # of texts that are cut to the same, too
        accuracies.append((places == 1).mean())
        assert len(set(places)) > 1
        assert found[f"validation/accuracy/{name}"] == pytest.approx(accuracies[-1])
        assert found[f"validation/mrr/{name}"] == pytest.approx((1 / places).mean())
    assert found["validation/accuracy"] == pytest.approx(np.mean(accuracies))
    task = StsPairs(str(pairs), instruction="Retrieve semantically similar text")
    assert found["validation/sts"] not in (0, 1)
    assert found["validation/sts"] == pytest.approx(task.run(encoder)["Spearman"])


@pytest.mark.parametrize("stage", ["simcse", "supervised"])
def test_grad_cache_changes_no_training(tiny: Tiny, stage: str) -> None:
    settings = ["stage.max_steps=3", "stage.attention_dropout=0.3", "stage.micro_batch_tokens=48"]
    plain = tiny.train("plain", stage, *settings)
    cached = tiny.train("cached", stage, *settings, "stage.grad_cache=true")
    first, second = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (plain, cached))
    assert any(value.any() for name, value in first.items() if "lora_B" in name)
    assert all(torch.allclose(value, second[name], rtol=1e-4, atol=1e-6) for name, value in first.items())


def test_supervised_training_reads_the_files_of_e5(tiny: Tiny) -> None:
    folder = Path(__file__).parents[3] / "shared" / "data" / "e5-sample"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    settings = ["stage.max_steps=3", "stage.negatives=1", "stage.micro_batch_tokens=256", "stage.grad_cache=true"]
    run = tiny.train("run", "supervised", *settings, f"data.folder={folder}", "stage.validation_rows=40")
    found = Run(run).record()["metrics"]
    for name in ("allnli", "squad", "trec_qa", "wikiqa"):
        assert 0 < found[f"validation/mrr/{name}"] <= 1
    assert Encoder.from_pretrained(run).encode("a text").shape == (32,)


def test_a_matryoshka_size_must_be_smaller_than_the_model(tiny: Tiny) -> None:
    with pytest.raises(L2VError, match=r"stage\.loss\.dimensions: expected sizes below 32.*found 64"):
        tiny.train("one", "supervised", "stage.loss.dimensions=[16,64]", "stage.max_steps=1")


def test_stage_settings_that_exclude_each_other() -> None:
    settings = {"name": "mntp", "batch_size": 2, "max_steps": 10, "learning_rate": 1e-3}
    with pytest.raises(L2VError, match="exclude each other"):
        MNTP(**settings, schedule_steps=5, schedule_epochs=3)
    with pytest.raises(L2VError, match="warmup_steps"):
        MNTP(**settings, warmup_steps=10)


def test_nothing_is_validated_before_training_where_anything_is_split() -> None:
    """ZeRO-3 found its weights on the CPU after that, on a GPU, and ZeRO-2 rounded to 16 bits."""
    assert validates_alone(DDPStrategy()) and not validates_alone(FullySharded())
    assert not validates_alone(DeepSpeedStrategy.__new__(DeepSpeedStrategy))  # its __init__ needs deepspeed


def test_a_validation_is_the_same_whatever_part_of_a_step_is_done_at_a_time(tiny: Tiny) -> None:
    """Each text has the negatives of a whole step; the dropout masks differ."""
    settings = ["stage.batch_size=null", "stage.global_batch_size=8", "stage.validation_rows=16", "stage.max_steps=1"]
    settings += ["stage.attention_dropout=0.05", "stage.temperature=0.5"]
    first = [
        metrics(tiny.train(f"in-{parts}", "simcse", *settings, f"trainer.accumulate_grad_batches={parts}"))[0]
        for parts in (1, 4)
    ]
    assert first[0]["step"] == first[1]["step"] == 0
    for name in ("loss", "uniformity"):
        assert first[0][f"validation/{name}"] == pytest.approx(first[1][f"validation/{name}"], rel=0.1, abs=0.02), name


@pytest.mark.parametrize("settings", [["stage.warmup_steps=3"], ["stage.learning_rate=1e-5"]])
def test_simcse_by_the_adapters_dropout_alone(tiny: Tiny, settings: list[str]) -> None:
    """A new adapter adds nothing before it has learned something, and so does its dropout."""
    by_adapter = ["stage.attention_dropout=0", "adapter.lora.dropout=0.1", "stage.max_steps=6", *settings]
    assert Run(tiny.train("run", "simcse", *by_adapter)).is_finished


def test_a_model_that_was_named_from_another_folder_is_found(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiny.folder / "here").mkdir()
    (tiny.folder / "here" / "model").symlink_to(tiny.model)
    monkeypatch.chdir(tiny.folder / "here")
    run = tiny.train("run", "mntp", "stage.max_steps=1", "model.source=model")
    monkeypatch.chdir(tiny.folder)
    taken = with_model_of_init(["stage=simcse", f"init_from={run}"])[2:]
    source = [override for override in taken if override.startswith("model.source=")][-1]
    assert source == f"model.source='{tiny.folder / 'here' / 'model'}'"
