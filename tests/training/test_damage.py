"""Damage to what a run wrote is told, with what mends it, and mended."""

import shutil
from pathlib import Path

import pytest
import torch
from launch import Tiny, checkpoint

from l2v import Encoder
from l2v.errors import L2VError
from l2v.export.export import Export
from l2v.models.settings import EncoderSettings
from l2v.runs.run import Run


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    return Tiny(tmp_path, tiny_model, monkeypatch)


@pytest.mark.parametrize("best", [True, False])
def test_a_bit_that_changed_in_a_checkpoint_is_told_with_the_last_good_one(tiny: Tiny, best: bool) -> None:
    run = tiny.train("run", "mntp", "stage.max_steps=5", "stage.validate_every=2")
    file, other = run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt"
    weights = next(iter(checkpoint(run)["state_dict"].values())).numpy().tobytes()
    data = bytearray(file.read_bytes())
    data[data.index(weights) + 5] ^= 1
    file.write_bytes(data)
    torch.load(file, weights_only=True)  # torch does not see it
    if not best:
        other.write_bytes(other.read_bytes()[:-100])
    step = torch.load(other, weights_only=True)["global_step"] if best else None
    remedy = f"to go on from step {step}, copy {other} over it" if best else "put a copy in its place"
    with pytest.raises(L2VError, match=rf"{file}: .*damaged \(the bits of data/.* have changed\); {remedy}"):
        tiny.resume(run, "stage.max_steps=6")
    if best:
        shutil.copy(other, file)
        tiny.resume(run, "stage.max_steps=6")
        assert checkpoint(run)["global_step"] == 6


@pytest.mark.parametrize("part", ["adapter/adapter_model.safetensors", "encoder/model.safetensors"])
def test_a_bit_that_changed_in_what_a_run_wrote_is_told_and_mended(tiny: Tiny, part: str) -> None:
    run = tiny.train("run", "mntp", "stage.max_steps=2")
    before = (run / part).read_bytes()
    (run / part).write_bytes(before[:-3] + bytes([before[-3] ^ 1]) + before[-2:])
    told = f"{(run / part).parent}: .*another hash.*; resume={run} writes it anew"
    with pytest.raises(L2VError, match=told):
        if part.startswith("adapter"):
            tiny.train("next", "simcse", "stage.max_steps=1", f"init_from={run}")
        else:
            EncoderSettings(str(run)).fingerprint()
    if part.startswith("adapter"):
        with pytest.raises(L2VError, match=told):
            Export().check(Run(run))
    tiny.resume(run)
    assert (run / part).read_bytes() == before
    EncoderSettings(str(run)).fingerprint()
    with pytest.raises(L2VError, match="the run is finished at step 2"):
        tiny.resume(run)


def test_full_fine_tuning_that_was_killed_before_its_lineage_goes_on(tiny: Tiny, monkeypatch) -> None:
    run = tiny.train("run", "mntp", "stage.max_steps=2", "adapter=none")
    with monkeypatch.context() as patch:
        patch.setattr("l2v.training.settings.finish_lineage", lambda *_: None)
        tiny.resume(run, "stage.max_steps=4")
    Run(run).update(status="running")  # as a kill leaves it: weights of step 4, the hash of those of step 2
    tiny.resume(run)
    assert Run(run).is_finished and Encoder.from_pretrained(run).dimension == 32
    tiny.train("next", "simcse", "stage.max_steps=1", f"init_from={run}", "adapter=lora")
