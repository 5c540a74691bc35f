"""A teacher's vectors: losses against those of sentence-transformers, and a student that learns them."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import SignalAt, Tiny, assert_equal, checkpoint
from pair import Job, run_pair
from safetensors.torch import load_file
from tiny import SENTENCES, make_tiny_model

from l2v import Encoder, EncoderSettings
from l2v.data import tokens
from l2v.data.order import Pick
from l2v.data.tokens import text_rows
from l2v.distillation.taught import TaughtRows, TaughtTexts
from l2v.embedding.embed import encode
from l2v.embedding.job import Encoding
from l2v.errors import L2VError, Stopped
from l2v.losses.vectors import direction_loss, neighbour_loss
from l2v.runs.run import Run

ON_CPU = {"accelerator": "cpu", "devices": 1, "precision": "32-true"}


def test_directions_are_those_of_sentence_transformers() -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss

    student, teacher = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8)
    expected = EmbedDistillLoss(None, distance_metric="cosine").compute_loss_from_embeddings([student], [teacher])
    found = direction_loss(student, teacher).mean()
    assert expected > 0
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (found, expected)))


def test_neighbours_are_those_of_sentence_transformers() -> None:
    """Whose DistillKLDivLoss takes a query's documents: here the other texts."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
    from sentence_transformers.util import cos_sim, pairwise_cos_sim

    student, teacher = torch.randn(4, 8, requires_grad=True), torch.randn(4, 3)
    others = torch.tensor([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    theirs = DistillKLDivLoss(None, pairwise_cos_sim, student_temperature=0.2, teacher_temperature=0.3)
    columns = [student, *(student[others[:, place]] for place in range(3))]
    expected = theirs.compute_loss_from_embeddings(columns, cos_sim(teacher, teacher).gather(1, others))
    losses = neighbour_loss(student, student, teacher, teacher, temperature=0.2, teacher_temperature=0.3)
    found = losses.mean() * 0.2**2  # by which they multiply
    assert expected > 0
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (found, expected)))
    last = neighbour_loss(
        *(student[2:], student, teacher[2:], teacher), temperature=0.2, teacher_temperature=0.3, first=2
    )
    torch.testing.assert_close(last, losses[2:])


class Taught(Tiny):
    """Texts, a line of them empty, with the vectors of a teacher of another size or of the student's."""

    def teach(self, size: int) -> None:
        teacher = make_tiny_model(self.folder / "teacher", hidden_size=size, head_dim=8, num_attention_heads=size // 8)
        texts = [f"{row}: {SENTENCES[row % len(SENTENCES)]}" for row in range(59)]
        (self.folder / "texts.txt").write_text("\n".join([*texts[:20], "", *texts[20:]]) + "\n")
        settings = EncoderSettings(str(teacher), pooling="mean")
        encode(settings, Encoding(str(self.folder / "texts.txt"), str(self.folder / "vectors")), ON_CPU, show=False)

    def taught(self, *more: str) -> list[str]:
        return [
            *(override for override in self.overrides("simcse") if not override.startswith(("data", "stage="))),
            *("stage=distillation", "data=taught", f"data.train.files={self.folder / 'texts.txt'}", "data.held_out=8"),
            *(f"data.train.vectors={self.folder / 'vectors'}", "stage.learning_rate=1e-2", *more),
        ]

    def distil(self, name: str, *more: str, **settings: list) -> Path:
        self.main([*self.taught(*more), f"name={name}"], **settings)
        return self.folder / "runs" / name


@pytest.fixture
def taught(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Taught]:
    def make(size: int) -> Taught:
        made = Taught(tmp_path, tiny_model, monkeypatch)
        made.teach(size)
        return made

    return make


def rows_of(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "validation/loss" in row]


@pytest.mark.parametrize("size", [16, 32])
def test_a_student_learns_its_teachers_vectors(taught: Callable[[int], Taught], size: int) -> None:
    made = taught(size)
    run = made.distil("student", "stage.max_steps=40", "stage.batch_size=8", "stage.validate_every=40")
    first, last = rows_of(run)
    assert last["validation/loss"] < 0.8 * first["validation/loss"]
    assert 1 - last["validation/cosine"] < 0.9 * (1 - first["validation/cosine"])
    assert last["validation/agreement"] > first["validation/agreement"]
    projection = [key for key in checkpoint(run)["state_dict"] if "projection" in key]
    assert projection == ([] if size == 32 else ["projection.weight"])
    lineage = Run(run).lineage()
    assert lineage.adapter is not None and lineage.adapter.stage == "distillation"
    vectors = Encoder.from_pretrained(run).encode(SENTENCES)
    assert vectors.shape == (len(SENTENCES), 32) and np.isfinite(vectors).all()


def test_two_texts_that_are_held_out_have_no_agreement(taught: Callable[[int], Taught]) -> None:
    made = taught(32)
    run = made.distil("two", "stage.max_steps=1", "stage.batch_size=8", "data.held_out=2")
    assert all("validation/loss" in row and "validation/agreement" not in row for row in rows_of(run))
    batches = made.distil("more", "stage.max_steps=1", "stage.batch_size=4", "data.held_out=6")  # of four and of two
    assert all(-1 <= row["validation/agreement"] <= 1 for row in rows_of(batches))


def test_a_validation_is_the_same_whatever_part_of_a_step_is_done_at_a_time(taught: Callable[[int], Taught]) -> None:
    made = taught(16)
    settings = ["stage.batch_size=null", "stage.global_batch_size=8", "stage.max_steps=1"]
    whole, parts = (
        rows_of(made.distil(f"in-{count}", *settings, f"trainer.accumulate_grad_batches={count}"))[0]
        for count in (1, 4)
    )
    for name in ("loss", "cosine", "agreement"):
        assert whole[f"validation/{name}"] == pytest.approx(parts[f"validation/{name}"], rel=1e-5), name


def test_a_stopped_run_goes_on_as_if_it_had_not(taught: Callable[[int], Taught]) -> None:
    made = taught(16)
    straight = made.distil("straight", "stage.max_steps=6")
    with pytest.raises(Stopped):
        made.distil("stopped", "stage.max_steps=6", callbacks=[SignalAt(4, 15)])
    made.resume(made.folder / "runs" / "stopped")
    assert_equal(checkpoint(straight)["state_dict"], checkpoint(made.folder / "runs" / "stopped")["state_dict"])


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "deepspeed_zero2"])
def test_two_processes_are_as_one(taught: Callable[[int], Taught], trainer: str) -> None:
    if trainer.startswith("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed: `pip install 'l2v[dev]'`")
    made = taught(16)
    exact = ["adapter.lora.dropout=0", "stage.max_steps=3", "stage.validate_every=3"]
    one = made.distil("one", *exact, "stage.global_batch_size=4", "stage.batch_size=null")
    two = made.taught(*exact, "stage.batch_size=null", "stage.global_batch_size=4", f"trainer={trainer}")
    settings = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.precision=32-true", "name=two"]
    (outcomes,) = run_pair(made.folder / "pair", [Job([*two, *settings])])
    assert [outcome.error for outcome in outcomes] == [None] * 2
    first, second = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (one, one.parent / "two"))
    first["projection"], second["projection"] = (
        checkpoint(run)["state_dict"]["projection.weight"] for run in (one, one.parent / "two")
    )
    # A tensor as a whole: AdamW makes a step of its own out of the rounding of one gradient near zero.
    for name, value in first.items():
        assert value.norm() > 0 and (second[name] - value).norm() <= 1e-5 * value.norm(), name
    assert [row["step"] for row in rows_of(one.parent / "two")] == [0, 3]


def test_texts_keep_their_vectors(taught: Callable[[int], Taught], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through held-out rows, chunks, and a text without tokens, which has none of its own in training."""
    monkeypatch.setattr(tokens, "_CHUNK", 7)
    made = taught(16)
    files, vectors = str(made.folder / "texts.txt"), str(made.folder / "vectors")
    parts = {part: TaughtTexts(files, vectors, part=part, held_out=8) for part in ("train", "held_out")}
    assert len(parts["held_out"].numbers()) == 8 and len(parts["train"].numbers()) == 52
    assert sorted([*parts["train"].numbers(), *parts["held_out"].numbers()]) == list(range(60))
    teacher = Encoder.from_pretrained(made.folder / "teacher", pooling="mean")
    for part in parts.values():
        texts = list(part.texts())
        np.testing.assert_allclose(part.teacher()[part.numbers()], teacher.encode(texts), atol=1e-5)
    tokenizer = Encoder.from_pretrained(made.model).backbone.tokenizer
    rows = TaughtRows(text_rows(parts["train"], tokenizer, 32, show=False), parts["train"])
    assert len(rows) == 51  # but for the empty one
    texts = list(parts["train"].texts())
    found = rows.__getitems__([Pick(number, 0) for number in range(len(rows))])
    for row, _ in found:
        expected = teacher.encode([texts[row["number"]]])[0]
        np.testing.assert_allclose(row["teacher"], expected, atol=1e-5)
        assert row["input_ids"] == tokenizer(texts[row["number"]])["input_ids"]


def test_vectors_of_another_column_are_refused(taught: Callable[[int], Taught]) -> None:
    made = taught(16)
    rows = [json.dumps({"title": f"{row}!", "text": SENTENCES[row % 6]}) for row in range(20)]
    (made.folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    encoding = Encoding(str(made.folder / "rows.jsonl"), str(made.folder / "of-titles"), column="title")
    encode(EncoderSettings(str(made.folder / "teacher"), pooling="mean"), encoding, ON_CPU, show=False)
    rest = [one for one in made.taught("stage.max_steps=1") if not one.startswith("data.")]
    of_rows = [f"data.train.files={made.folder / 'rows.jsonl'}", f"data.train.vectors={made.folder / 'of-titles'}"]
    given = [*rest, *of_rows, "data.held_out=8"]
    with pytest.raises(
        L2VError, match=r"data\.train\.column=text: .*of-titles was written with column=title; set it so"
    ):
        made.main([*given, "name=run"])
    made.main([*given, "data.train.column=title", "name=run"])
    assert (made.folder / "runs" / "run" / "encoder").is_dir()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.train.files={folder}/held_out.txt",
            "data.train.vectors={folder}/vectors: of other files than data.train",
        ),
        (
            "data.train.vectors={folder}/runs",
            "data.train.vectors={folder}/runs: expected a finished folder of encode.py",
        ),
        ("data.held_out=60", "data.held_out=60 leaves none of 60 texts to train on"),
        ("trainer=fsdp", "stage=distillation: its projection is not split over processes; choose trainer=ddp, gpu or"),
        ("data=files", "data=: stage=distillation trains on texts with a teacher's vectors, as data=taught"),
    ],
)
def test_what_does_not_go_together_is_told(taught: Callable[[int], Taught], override: str, message: str) -> None:
    made = taught(16)
    override, message = (text.replace("{folder}", str(made.folder)) for text in (override, message))
    given = [*made.taught("stage.max_steps=2"), override]
    if override == "data=files":
        given = [one for one in given if not one.startswith(("data.held_out", "data.train.vectors", "data=taught"))]
        given.append(f"data.validation.files={made.folder / 'held_out.txt'}")
    with pytest.raises(L2VError, match=re.escape(message)):
        made.main([*given, "name=run"])


def test_nothing_to_learn_is_refused(taught: Callable[[int], Taught]) -> None:
    made = taught(16)
    with pytest.raises(L2VError, match=r"stage\.direction_weight and stage\.neighbour_weight are both 0"):
        made.distil("run", "stage.direction_weight=0", "stage.neighbour_weight=0", "stage.max_steps=2")
