"""From outside of l2v, one Python file and one YAML file: a stage, a data set, a loss."""

import importlib
import json
import signal
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from launch import ROOT, SignalAt, Tiny, assert_equal, checkpoint, metrics
from tiny import SENTENCES

from l2v import Encoder
from l2v.errors import L2VError, Stopped
from l2v.runs.run import Run

LOSS = '''
from dataclasses import dataclass

import torch

from l2v.errors import L2VError
from l2v.losses import Loss, Triplets
from l2v.losses.triplets import cosines

seen = []


@dataclass(frozen=True)
class Distillation(Loss):
    """Cosines of a query and its documents as a teacher scores them."""

    weight: float = 1.0

    def __call__(self, batch: Triplets, rows: slice = slice(None)):
        seen.append((batch.document_hash.tolist(), batch.scores.tolist()))
        found = cosines(batch.queries[rows], batch.documents)
        mine = batch.owner == torch.arange(len(batch), device=batch.owner.device)[rows, None]
        known = mine & ~batch.scores.isnan()
        gap = (found - batch.scores.nan_to_num()).square() * known
        return self.weight * gap.sum(dim=1) / known.sum(dim=1).clamp(min=1)

    def check(self, hidden_size: int) -> None:
        if self.weight > hidden_size:
            raise L2VError(f"stage.loss.weight={self.weight}: too much")
'''

IMPORTS = """
from typing import Annotated

import torch
from annotated_types import Gt

from l2v.data.collate import PaddedTexts
from l2v.data.tokens import text_rows
from l2v.stages.contrastive import ContrastiveStage
"""


def documented(first: str, last: str) -> str:
    """Lines of docs/extending.md, from one that begins so to the one before another."""
    lines = textwrap.dedent((ROOT / "docs" / "extending.md").read_text(encoding="utf-8")).splitlines()
    begin = next(number for number, line in enumerate(lines) if line.strip().startswith(first))
    end = next(n for n, line in enumerate(lines[begin:], begin) if line.strip().startswith(last))
    return textwrap.dedent("\n".join(lines[begin:end])) + "\n"


STAGE = IMPORTS + documented("class Spread", "# my/conf/stage/spread.yaml")
DATA = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Poems:
    lines: list[str]
    repeat: int = 1

    def texts(self):
        for number in range(self.repeat):
            yield from (f"{line} {number}" for line in self.lines)

    def fingerprint(self):
        return f"poems:{self.repeat}:{self.lines}"
"""

STAGE_YAML = documented("defaults: [base]", "## A loss").replace("my_stages", "house_stage")
LOSS_YAML = """
# @package stage.loss
_target_: house_loss.Distillation
weight: 1.0
"""
DATA_YAML = """
train: {_target_: house_data.Poems, lines: [the cat sat, a dog ran away, rain], repeat: 8}
validation: {_target_: house_data.Poems, lines: [the cat sat, a dog ran away, rain], repeat: 3}
workers: 0
"""


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """With a package of a user's own on the path."""
    for name, text in (("house_loss", LOSS), ("house_stage", STAGE), ("house_data", DATA)):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    monkeypatch.setenv("L2V_ALLOW_MODULES", "house_stage,house_data,house_loss")  # a run of one's own is resumed
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "gap.yaml").write_text(LOSS_YAML)
    return Tiny(tmp_path, tiny_model, monkeypatch)


def test_a_loss_of_ones_own_trains_on_the_scores_of_mined_negatives(tiny: Tiny) -> None:
    lines = [
        {
            "query": f"{n}: {SENTENCES[n % 6][:12]}",
            "positive": f"{SENTENCES[n % 6]} {n}",
            "negative": [f"{SENTENCES[(n + 1) % 6]} {n}", f"{SENTENCES[(n + 2) % 6]} {n}"],
            "positive_score": 0.9,
            "negative_scores": [0.5, 0.25],
        }
        for n in range(40)
    ]
    file = tiny.folder / "mined.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = [o for o in tiny.overrides("supervised") if not o.startswith("data.folder")]
    scored = ["data.train.positive_score=positive_score", "data.train.negative_scores=negative_scores"]
    tiny.main(
        [
            *own, f"data.train.files={file}", *scored, "stage.max_steps=2", "name=distilled",
            f"hydra.searchpath=[file://{tiny.folder / 'conf'}]", "loss=gap", "stage.loss.weight=2.0",
        ]
    )  # fmt: skip
    run = tiny.folder / "runs" / "distilled"
    assert Run(run).is_finished and metrics(run)[-1]["step"] == 2
    of_four = [scores for _, scores in sys.modules["house_loss"].seen if len(scores) == 12]
    assert of_four
    for scores in of_four:
        torch.testing.assert_close(scores, [0.9] * 4 + [0.5, 0.25] * 4)
    assert Encoder.from_pretrained(run).encode(SENTENCES).shape[0] == len(SENTENCES)


def test_what_is_no_loss_and_what_a_loss_refuses_are_told(tiny: Tiny) -> None:
    with pytest.raises(L2VError, match=r"stage\.loss="):
        tiny.train("a", "supervised", "~loss", "+stage.loss={_target_: house_data.Poems, lines: [a]}")
    with pytest.raises(L2VError, match=r"stage\.loss\.weight=99.0: too much"):
        tiny.train("b", "supervised", "~loss", "+stage.loss={_target_: house_loss.Distillation, weight: 99}")


@pytest.mark.slow
def test_a_stage_and_a_data_set_of_ones_own_train_resume_and_export(tiny: Tiny) -> None:
    for group, name, text in (("stage", "spread", STAGE_YAML), ("data", "poems", DATA_YAML)):
        (tiny.folder / "conf" / group).mkdir(parents=True)
        (tiny.folder / "conf" / group / f"{name}.yaml").write_text(text)
    given = [
        *(f"hydra.searchpath=[file://{tiny.folder / 'conf'}]", "stage=spread", f"runs_dir={tiny.folder / 'runs'}"),
        *("data=poems", "stage.max_length=16", "stage.global_batch_size=4", "stage.max_steps=6"),
        *("stage.learning_rate=1e-2", "stage.validate_every=3"),
        *(f"model.source={tiny.model}", "model.max_length=32", "trainer.precision=32-true"),
    ]
    tiny.main([*given, "name=straight"])
    straight = tiny.folder / "runs" / "straight"
    with pytest.raises(Stopped):
        tiny.main([*given, "name=stopped"], callbacks=[SignalAt(4, signal.SIGTERM)])
    stopped = tiny.resume(tiny.folder / "runs" / "stopped")
    one, two = checkpoint(straight), checkpoint(stopped)
    assert one["global_step"] == two["global_step"] == 6
    assert_equal(one["state_dict"], two["state_dict"])
    assert Run(straight).lineage().adapter.stage == "spread"  # type: ignore[union-attr]
    trained, untrained = (Encoder.from_pretrained(p, max_length=32).encode(SENTENCES) for p in (straight, tiny.model))
    assert abs(trained - untrained).max() > 1e-3
    with pytest.raises(L2VError, match=r"stage\.sharpness=-1: .*greater than 0"):
        tiny.main([*given, "name=wrong", "stage.sharpness=-1"])
    with pytest.raises(L2VError, match=r"stage\.sharpnes: no such setting \(did you mean sharpness\?\)"):
        tiny.main([*given, "name=wrong", "+stage.sharpnes=1"])
