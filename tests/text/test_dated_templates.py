"""A chat template that writes the date: what goes on another day goes on with what was written first."""

import json
import signal
from pathlib import Path

import pytest
from launch import SignalAt, Tiny, checkpoint
from tiny import SENTENCES, make_tiny_model, make_tiny_tokenizer

from l2v.embedding.embed import encode
from l2v.embedding.job import Encoding
from l2v.embedding.shards import read_vectors
from l2v.encoders.encoder import Encoder
from l2v.encoders.load import with_template
from l2v.errors import Stopped
from l2v.models.settings import EncoderSettings
from l2v.runs.run import Run
from l2v.text import rendering

ANOTHER_CLOCK = """
import transformers.utils.chat_template_utils as theirs
class Clock(theirs.datetime):
    def strftime(self, _):
        return {!r}
theirs.datetime = Clock
"""


class Day:
    """What the templates are told of the date: ``strftime_now`` is what transformers gives them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch, self.program = patch, rendering._PROGRAM
        self.set("Monday")

    def set(self, name: str) -> None:
        rendering._render.cache_clear()
        self.patch.setattr(rendering, "_PROGRAM", ANOTHER_CLOCK.format(name) + self.program)


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> Day:
    return Day(monkeypatch)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("dated") / "model")
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%A') }}: {{ messages[0]['content'] }} !"
    tokenizer.save_pretrained(folder)
    return folder


def written(model: Path) -> str | None:
    return with_template(EncoderSettings(str(model), template="chat")).template


def test_the_template_is_evaluated_on_the_day(model: Path, day: Day) -> None:
    assert written(model) == "Monday: {text} !"
    day.set("Tuesday")
    assert written(model) == "Tuesday: {text} !"


def test_a_run_and_its_encoder_keep_it(model: Path, day: Day, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Tiny(tmp_path, model, monkeypatch)
    settings = ["stage.max_steps=4", "stage.template=chat", "model.template=chat", "stage.max_length=24"]
    straight = tiny.train("straight", "simcse", *settings)
    with pytest.raises(Stopped):
        tiny.train("stopped", "simcse", *settings, callbacks=[SignalAt(2, signal.SIGTERM)])
    day.set("Tuesday")
    stopped = tiny.resume(tmp_path / "runs" / "stopped")
    assert Run(stopped).record()["chat_template"] == "Monday: {text} !"
    one, two = checkpoint(straight)["state_dict"], checkpoint(stopped)["state_dict"]
    assert all((one[name] == two[name]).all() for name in one)
    assert Encoder.from_pretrained(stopped, device="cpu").prompt.template == "Monday: {text} !"


def test_an_encode_job_keeps_it(model: Path, day: Day, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n".join(SENTENCES))
    subject = EncoderSettings(str(model), template="chat")
    job = Encoding(str(tmp_path / "t.txt"), str(tmp_path / "v"), shard_rows=2)
    trainer = {"accelerator": "cpu", "devices": 1}
    encode(subject, job, trainer, show=False)
    whole = [vectors.copy() for vectors in read_vectors(tmp_path / "v")]
    manifest = json.loads((tmp_path / "v" / "manifest.json").read_text())
    assert manifest["template"] == "Monday: {text} !"
    day.set("Tuesday")
    (tmp_path / "v" / "shard-00001.parquet").unlink()
    encode(subject, job, trainer, show=False)
    again = list(read_vectors(tmp_path / "v"))
    assert all((a == b).all() for a, b in zip(whole, again, strict=True))
