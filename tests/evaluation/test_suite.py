"""Masked-token accuracy, and suites whose scores are kept while nothing changes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import script
from tiny import SENTENCES, make_tiny_model

from l2v import Encoder
from l2v.errors import L2VError
from l2v.evaluation.suite import evaluate
from l2v.evaluation.task import Task
from l2v.evaluation.tasks.masked import MaskedAccuracy
from l2v.models.settings import EncoderSettings
from l2v.pooling import Pooling


@dataclass(frozen=True)
class Sentences:
    def texts(self) -> Iterator[str]:
        yield from SENTENCES * 3

    def fingerprint(self) -> str:
        return "sentences"


@dataclass(frozen=True)
class Dimension(Task):
    """A task that needs no data."""

    factor: int = 1
    label: str = "Dimension"
    metric: str = "size"
    needs_head: bool = False

    def run(self, encoder: Encoder, *, show: bool = False) -> dict[str, float]:
        return {"size": float(encoder.dimension * self.factor)}


class Sharp(Pooling):
    """A pooling of one's own with a setting."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness

    def settings(self) -> dict[str, Any]:
        return {"sharpness": self.sharpness}


def masked(**settings: int) -> MaskedAccuracy:
    return MaskedAccuracy(Sentences(), block_length=16, rows=8, **settings)


def test_masked_accuracy_is_deterministic_and_does_not_depend_on_the_batch(tiny_model: Path) -> None:
    encoder = Encoder.from_pretrained(tiny_model, with_head=True)
    first, again, small = masked().run(encoder), masked().run(encoder), masked(batch_size=3).run(encoder)
    assert first == again
    assert first["accuracy"] == small["accuracy"] and first["loss"] == pytest.approx(small["loss"], abs=1e-5)
    assert 8 * 16 * 0.05 < first["tokens"] < 8 * 16 * 0.4


def test_a_model_that_knows_the_hidden_tokens_scores_one(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.from_pretrained(tiny_model, with_head=True)

    def all_knowing(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        targets = labels[labels != -100]
        return torch.nn.functional.one_hot(targets, 384).float() * 100, targets

    monkeypatch.setattr(encoder.backbone, "predict_masked", all_knowing)
    assert masked().run(encoder)["accuracy"] == 1.0


def test_masked_accuracy_needs_the_output_head(tiny_model: Path) -> None:
    with pytest.raises(L2VError, match="with_head=True"):
        masked().run(Encoder.from_pretrained(tiny_model))


def test_scores_are_written_and_reused(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subject = EncoderSettings(str(tiny_model), attention="causal")
    result = evaluate(subject, {"dimension": Dimension()}, suite="small", folder=tmp_path, show=False)
    assert result["scores"]["dimension"]["value"] == 32.0 and result["attention"] == "causal"
    assert json.loads((tmp_path / "evaluation" / "small.json").read_text()) == result
    assert evaluate(subject, {"dimension": Dimension()}, suite="small", folder=tmp_path, show=False) == result
    assert "reused" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["weights", "config", "tokenizer", "attention", "task"])
def test_whatever_changes_a_score_is_evaluated_again(tmp_path: Path, change: str) -> None:
    model = make_tiny_model(tmp_path / "model")
    first = evaluate(EncoderSettings(str(model)), {"d": Dimension()}, suite="s", folder=tmp_path, show=False)
    if change == "weights":
        make_tiny_model(tmp_path / "model", initializer_range=0.1)
    if change == "config":
        make_tiny_model(tmp_path / "model", rms_norm_eps=0.5)
    if change == "tokenizer":
        make_tiny_model(tmp_path / "model", bos=True)
    subject = EncoderSettings(str(model), attention="causal" if change == "attention" else None)
    task = Dimension(factor=2 if change == "task" else 1)
    second = evaluate(subject, {"d": task}, suite="s", folder=tmp_path, show=False)
    assert first["fingerprint"] != second["fingerprint"]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"attention": "causal"}, "simcse-causal"),
        ({"attention": "causal", "pooling": "last_token"}, "simcse-causal-last_token"),
        ({"dtype": "bfloat16", "trust_remote_code": True}, "simcse-bfloat16"),
        ({"layers": 20}, "simcse-layers-20"),
        ({"max_length": 256, "special_tokens": "text"}, "simcse-max_length-256-special_tokens-text"),
    ],
)
def test_settings_of_its_own_put_the_scores_of_a_run_beside_it(
    settings: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder_of = tmp_path / "a" / "simcse", script("evaluate")._folder
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    assert folder_of(EncoderSettings(str(run))) == run
    assert folder_of(EncoderSettings(str(run), **settings)) == tmp_path / "a" / name
    monkeypatch.chdir(run)
    assert folder_of(EncoderSettings(".", **settings)) == tmp_path / "a" / name


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("layers", [20, 24, 0.5]),
        ("template", ["chat", "{text}!", "{text}?"]),
        ("separator", [": ", " "]),
        ("pooling", ["mean", Sharp(1.0), Sharp(2.0)]),
        ("adapters", [("a/adapter",), ("b/adapter",), ("a/adapter", "b/adapter")]),
        ("revision", ["main", "v2", "a/b", "a-b"]),
        ("base", ["owner/one", "owner/two"]),
    ],
)
def test_two_values_of_a_setting_write_their_scores_into_two_folders(setting: str, values: list[Any]) -> None:
    folders = {script("evaluate")._folder(EncoderSettings("owner/model", **{setting: value})) for value in values}
    assert len(folders) == len(values)
    assert all(folder.parent == Path("runs") and folder.name.startswith("owner-model-") for folder in folders)


def test_scores_of_another_model_whose_folder_is_called_the_same_are_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models = [make_tiny_model(tmp_path / owner / "merged") for owner in "ab"]
    free_folder = script("evaluate")._free_folder
    subjects = [EncoderSettings(str(model)) for model in models]
    folder = free_folder(subjects[0], "s")
    assert folder == Path("runs/merged")
    evaluate(subjects[0], {"d": Dimension()}, suite="s", folder=folder, show=False)
    assert free_folder(subjects[0], "s") == free_folder(subjects[1], "other") == folder
    with pytest.raises(L2VError, match=r"runs/merged/evaluation/s.json: the scores of encoder=.*a/merged; set output="):
        free_folder(subjects[1], "s")


def test_a_place_that_cannot_be_written_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    model = make_tiny_model(tmp_path / "model")
    with pytest.raises(L2VError, match="output=.*file: cannot be written"):
        evaluate(EncoderSettings(str(model)), {}, suite="s", folder=tmp_path / "file", show=False)


def test_a_task_that_looks_inside_the_model_refuses_an_encoder_that_has_vectors_only(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class VectorsOnly:
        dimension = 7

        def describe(self) -> dict[str, str]:
            return {"pooling": "theirs"}

    monkeypatch.setattr("l2v.evaluation.suite.load_encoder", lambda *given, **settings: VectorsOnly())
    subject, out = EncoderSettings(str(tiny_model)), tmp_path / "out"
    result = evaluate(subject, {"d": Dimension()}, suite="s", folder=out, show=False)
    assert result["scores"]["d"]["value"] == 7.0 and result["pooling"] == "theirs" and "attention" not in result
    with pytest.raises(L2VError, match=r"^Masked-token accuracy: needs a model that l2v has loaded") as error:
        evaluate(subject, {"d": Dimension(), "m": masked()}, suite="s", folder=out, show=False)
    assert "\n" not in str(error.value)
