"""Runs on texts in two languages: what their batches hold, and that a resumed run goes on with the same ones."""

from pathlib import Path

import pytest
from launch import Batches, SignalAt, Tiny, composed
from tiny import SENTENCES, make_tiny_tokenizer

from l2v.cli.contamination import main
from l2v.errors import Stopped
from l2v.export.card import _training
from l2v.runs.files import read_json
from l2v.runs.run import Run

TOKENIZER = make_tiny_tokenizer()


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    return Tiny(tmp_path, tiny_model, monkeypatch)


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Overrides: a set of texts in capitals, and one in small letters with thrice as many."""
    for name, count in (("upper", 10), ("lower", 30)):
        lines = [getattr(f"{text} {number}", name)() for number in range(count) for text in SENTENCES]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = ", ".join(f"{name}: {tmp_path / f'{name}.txt'}" for name in ("upper", "lower"))
    own = [f"data.{part}.files=${{data.files}}" for part in ("train", "validation")]  # in place of those of Tiny
    return ["data=languages", f"data.files={{{files}}}", *own, "data.held_out=6", "stage.max_steps=8"]


def capitals(batch: list[list[int]]) -> int:
    """Rows of a batch with more capitals than small letters."""
    texts = [TOKENIZER.decode(row, skip_special_tokens=True) for row in batch]
    return sum(sum(map(str.isupper, text)) > sum(map(str.islower, text)) for text in texts)


def test_a_batch_of_mntp_has_rows_of_all_sets_and_one_of_simcse_of_one(tiny: Tiny, data: list[str]) -> None:
    equal, mntp, simcse = "data.train.alpha=0", Batches(), Batches()
    tiny.train("mntp", "mntp", *data, equal, callbacks=[mntp])
    assert [(len(batch), capitals(batch)) for batch in mntp.ids] == [(4, 2)] * 8
    tiny.train("simcse", "simcse", *data, equal, f"init_from={tiny.folder / 'runs' / 'mntp'}", callbacks=[simcse])
    found = [capitals(batch) for batch in simcse.ids]
    assert set(found) == {0, 4} and found.count(4) == 4


def test_shares_are_those_that_were_asked_for(tiny: Tiny, data: list[str]) -> None:
    batches = Batches()
    tiny.train("mntp", "mntp", *data, "data.train.shares={upper: 3, lower: 1}", callbacks=[batches])
    assert [capitals(batch) for batch in batches.ids] == [3] * 8


def test_a_stopped_run_goes_on_with_the_batches_that_it_would_have_had(tiny: Tiny, data: list[str]) -> None:
    whole, first, second = Batches(), Batches(), Batches()
    tiny.train("whole", "simcse", *data, callbacks=[whole])
    with pytest.raises(Stopped):
        tiny.train("parts", "simcse", *data, callbacks=[first, SignalAt(3, 15)])
    tiny.resume(tiny.folder / "runs" / "parts", callbacks=[second])
    assert first.ids + second.ids == whole.ids


def test_a_run_says_what_it_was_trained_on(tiny: Tiny, data: list[str]) -> None:
    folder = tiny.train("mntp", "mntp", *data, "data.train.shares={upper: 3, lower: 1}")
    assert "`languages` part=train, unit=article, files=upper+lower, shares=upper:3+lower:1" in _training(Run(folder))
    record = read_json(folder / "run.json")
    looked_for = tiny.folder / "looked_for.txt"
    looked_for.write_text(f"{SENTENCES[0]} 9\nnothing of this is in what it was trained on at all\n")
    main(composed("contamination", [f"run={folder}", f"texts.files={looked_for}"]))
    found = read_json(folder / "contamination" / "texts.json")
    assert found["tasks"]["looked_for"]["texts_found"] == 1
    assert found["training"]["fingerprint"] == record["data"][0]
