"""A teacher's scores: the losses of sentence-transformers on fixed inputs, and what they do without scores."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import Tiny
from safetensors.torch import load_file

from l2v.errors import L2VError
from l2v.losses.contrastive import Contrastive
from l2v.losses.distillation import Distillation
from l2v.losses.triplets import Triplets

QUERIES, NEGATIVES, SIZE = 5, 3, 16


def batch(scores: torch.Tensor | None = None, counted: torch.Tensor | None = None) -> Triplets:
    """Queries with three hard negatives each, (queries, 1 + negatives) of a teacher's scores."""
    documents = QUERIES * (1 + NEGATIVES)
    given = torch.rand(QUERIES, 1 + NEGATIVES) if scores is None else scores
    return Triplets(
        queries=torch.randn(QUERIES, SIZE, requires_grad=True),
        documents=torch.randn(documents, SIZE, requires_grad=True),
        owner=torch.cat([torch.arange(QUERIES), torch.arange(QUERIES).repeat_interleave(NEGATIVES)]),
        query_hash=torch.arange(QUERIES),
        document_hash=torch.arange(100, 100 + documents),
        counted=torch.ones(QUERIES, dtype=torch.bool) if counted is None else counted,
        scores=torch.cat([given[:, 0], given[:, 1:].flatten()]),
    )


def columns(given: Triplets) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What sentence-transformers takes: a tensor a column, and a teacher's scores."""
    negatives = given.documents[QUERIES:].view(QUERIES, NEGATIVES, SIZE).unbind(1)
    scores = torch.cat([given.scores[:QUERIES, None], given.scores[QUERIES:].view(QUERIES, NEGATIVES)], dim=1)
    return [given.queries, given.documents[:QUERIES], *negatives], scores


@pytest.mark.parametrize("kind", ["kl", "margin_mse"])
def test_losses_and_gradients_are_those_of_sentence_transformers(kind: str) -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MarginMSELoss
    from sentence_transformers.util import pairwise_cos_sim

    given = batch()
    settings: dict[str, Any] = {"contrastive_weight": 0.0, "temperature": 0.1, "teacher_temperature": 0.3}
    theirs: Any
    if kind == "kl":
        theirs = DistillKLDivLoss(None, pairwise_cos_sim, student_temperature=0.1, teacher_temperature=0.3)
        scale = 0.1**2  # by which they multiply
    else:
        theirs, scale = MarginMSELoss(None, pairwise_cos_sim), 1.0
    expected = theirs.compute_loss_from_embeddings(*columns(given))
    found = scale * Distillation(kind=kind, **settings)(given).mean()
    torch.testing.assert_close(found, expected)
    assert expected > 0
    tensors = (given.queries, given.documents)
    for one, other in zip(torch.autograd.grad(found, tensors), torch.autograd.grad(expected, tensors), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["kl", "margin_mse"])
def test_the_parts_add_up_and_shorter_vectors_learn_it_too(kind: str) -> None:
    given = batch()
    alone = Distillation(kind=kind, contrastive_weight=0.0)(given)
    both = Distillation(kind=kind, weight=2.0, contrastive_weight=3.0)(given)
    torch.testing.assert_close(both, 2 * alone + 3 * Contrastive()(given))
    short = Distillation(kind=kind, dimensions=(4,))(given)
    assert not torch.allclose(short, Distillation(kind=kind)(given))
    whole = Distillation(kind=kind)
    torch.testing.assert_close(torch.cat([whole(given, slice(0, 2)), whole(given, slice(2, 5))]), whole(given))


@pytest.mark.parametrize("kind", ["kl", "margin_mse"])
def test_documents_without_a_score_are_left_out(kind: str) -> None:
    scores = torch.rand(QUERIES, 1 + NEGATIVES)
    scores[0] = torch.nan
    scores[1, 1:] = torch.nan
    scores[2, 1] = torch.nan
    if kind == "margin_mse":
        scores[3, 0] = torch.nan  # the positive, which every margin is from
    given = batch(scores)
    loss = Distillation(kind=kind, contrastive_weight=0.0)
    found = loss(given)
    assert found.isfinite().all() and found[0] == found[1] == 0 and (found[[2, *range(4, QUERIES)]] > 0).all()
    assert (found[3] == 0) == (kind == "margin_mse")
    found.sum().backward()
    assert given.queries.grad is not None and given.queries.grad.isfinite().all()
    hidden = QUERIES + 2 * NEGATIVES  # the document of query 2 that has none
    assert given.documents.grad is not None
    assert (given.documents.grad[hidden] == 0).all() and (given.documents.grad[hidden + 1] != 0).any()


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    return Tiny(tmp_path, tiny_model, monkeypatch)


@pytest.mark.slow
def test_the_stage_learns_from_scores_of_a_file_and_refuses_rows_without(tiny: Tiny) -> None:
    with pytest.raises(L2VError, match="learns from a teacher's scores, and the rows of data= have none"):
        tiny.train("without", "supervised", "loss=distillation")
    for file in sorted((tiny.folder / "triplets").glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows = [{**row, "t": 0.9, "n": [0.1 * (n + 1) for n in range(len(row["negative"]))]} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ["data.train.positive_score=t", "data.train.negative_scores=n"]
    plain = tiny.train("plain", "supervised", *columns)
    learned = tiny.train("learned", "supervised", "loss=distillation", "stage.loss.weight=5", *columns)
    weights = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (plain, learned)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
