"""export=: what a run writes at its end, and what works without a merged encoder."""

from pathlib import Path

import numpy as np
import pytest
from launch import Tiny
from tiny import SENTENCES

from l2v import Encoder
from l2v.errors import L2VError
from l2v.export.export import export
from l2v.runs.run import Run

SHORT = ["stage.max_steps=2", "stage.learning_rate=0.05", "model.template='[ {text} ]'"]


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    return Tiny(tmp_path, tiny_model, monkeypatch)


def vectors(source: Path) -> np.ndarray:
    return Encoder.from_pretrained(source, device="cpu").encode(SENTENCES)


@pytest.mark.slow
def test_a_run_that_writes_its_adapter_only_is_that_encoder_all_the_same(tiny: Tiny) -> None:
    whole = [tiny.train("m", "mntp", *SHORT)]
    whole.append(tiny.train("s", "simcse", *SHORT, f"init_from={whole[0]}"))
    lean = [tiny.train("lean-m", "mntp", *SHORT, "export=adapter")]
    lean.append(tiny.train("lean-s", "simcse", *SHORT, "export=adapter", f"init_from={lean[0]}"))
    for one, other in zip(whole, lean, strict=True):
        assert not (other / "encoder").exists()
        assert Encoder.from_pretrained(other, device="cpu").prompt.template == "[ {text} ]"
        np.testing.assert_array_equal(vectors(other), vectors(one))
    export(Run(lean[1]), tiny.folder / "out")
    np.testing.assert_array_equal(vectors(tiny.folder / "out"), vectors(whole[1]))
    tiny.main([f"resume={lean[1]}", "stage.max_steps=3"])
    assert not Run(lean[1]).encoder.exists() and Run(lean[1]).record()["step"] == 3


def test_a_run_that_wrote_nothing_says_how_to_have_it_written(tiny: Tiny) -> None:
    run = tiny.train("m", "mntp", *SHORT, "export=none")
    assert Run(run).is_finished and not Run(run).encoder.exists() and not Run(run).adapter.exists()
    with pytest.raises(L2VError, match=f"no encoder yet; finish it by `python train.py resume={run} export=encoder`"):
        Encoder.from_pretrained(run)
    with pytest.raises(L2VError, match=f"has exported nothing; resume={run} export=adapter"):
        tiny.train("s", "simcse", *SHORT, f"init_from={run}")
    with pytest.raises(L2VError, match="the run has exported nothing"):
        export(Run(run), tiny.folder / "out")
    tiny.main([f"resume={run}", "export=encoder"])
    np.testing.assert_array_equal(vectors(run), vectors(tiny.train("whole", "mntp", *SHORT)))
    with pytest.raises(L2VError, match="to train longer"):
        tiny.main([f"resume={run}", "export=encoder"])


@pytest.mark.parametrize(
    "keep", [*(pytest.param([one], marks=pytest.mark.slow) for one in ("last", "best")), []], ids=str
)
def test_a_finished_run_keeps_the_checkpoints_that_it_is_to_keep(tiny: Tiny, keep: list[str]) -> None:
    run = tiny.train("m", "mntp", *SHORT, f"keep_checkpoints={keep}".replace("'", ""))
    assert Run(run).is_finished and {file.stem for file in run.rglob("*.ckpt")} == set(keep)
    assert len(list((run / "checkpoints").iterdir())) == len(keep)
    if "last" not in keep:
        with pytest.raises(L2VError, match=f"has no checkpoint to go on from .*; begin a new one .* init_from={run}"):
            tiny.main([f"resume={run}", "stage.max_steps=3"])
    assert Run(tiny.train("s", "simcse", *SHORT, f"init_from={run}")).is_finished


def test_settings_that_do_not_go_together_are_told(tiny: Tiny) -> None:
    with pytest.raises(L2VError, match="export=adapter: adapter=none trains all weights"):
        tiny.train("m", "mntp", *SHORT, "adapter=none", "export=adapter")
    with pytest.raises(L2VError, match="export=folder"):
        tiny.train("m", "mntp", *SHORT, "export=folder")
