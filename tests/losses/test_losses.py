import math
from dataclasses import replace

import pytest
import torch

from l2v.errors import L2VError
from l2v.losses.contrastive import Contrastive
from l2v.losses.info_nce import info_nce
from l2v.losses.masked_tokens import masked_token_loss
from l2v.losses.triplets import Triplets


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def naive_info_nce(queries, documents, temperature, first_positive=0):
    """Equation 1 of SimCSE, with Python's numbers."""
    total = 0.0
    for i, query in enumerate(queries):
        scores = [math.exp(cosine(query, document) / temperature) for document in documents]
        total -= math.log(scores[first_positive + i] / sum(scores))
    return total / len(queries)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("documents", [6, 12])
def test_info_nce_equals_a_naive_double_loop(temperature, documents):
    queries, texts = torch.randn(6, 16) * 3, torch.randn(documents, 16)
    expected = naive_info_nce(queries.tolist(), texts.tolist(), temperature)
    assert info_nce(queries, texts, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_a_query_without_anything_to_push_away_is_refused():
    batch = triplets(negatives=(0,))
    with pytest.raises(L2VError, match=r"nothing to push away; raise stage\.global_batch_size"):
        Contrastive()(batch)
    assert Contrastive(temperature=1.0)(triplets(negatives=(1,))).item() > 0


def test_info_nce_finds_this_ranks_positives_at_the_offset():
    queries, documents = torch.randn(2, 16), torch.randn(7, 16)
    expected = naive_info_nce(queries.tolist(), documents.tolist(), 0.1, first_positive=4)
    assert info_nce(queries, documents, 0.1, first_positive=4).item() == pytest.approx(expected, rel=1e-5)


def test_the_mean_over_ranks_is_the_loss_of_the_whole_batch():
    queries, documents = torch.randn(8, 16), torch.randn(8, 16)
    of_ranks = [info_nce(queries[rank * 2 : rank * 2 + 2], documents, 0.05, rank * 2) for rank in range(4)]
    torch.testing.assert_close(torch.stack(of_ranks).mean(), info_nce(queries, documents, 0.05))


def test_info_nce_of_indistinguishable_texts_is_the_log_of_their_number():
    same = torch.ones(5, 4)
    assert info_nce(same, same, 0.05).item() == pytest.approx(math.log(5), rel=1e-6)


def test_info_nce_falls_when_a_query_moves_to_its_document():
    queries, documents = torch.randn(4, 8), torch.randn(4, 8)
    assert info_nce(documents, documents, 0.05) < info_nce(queries, documents, 0.05)


def test_info_nce_is_computed_in_float32():
    queries, documents = torch.randn(4, 64).bfloat16(), torch.randn(4, 64).bfloat16()
    loss = info_nce(queries, documents, 0.05)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive_info_nce(queries.tolist(), documents.tolist(), 0.05), rel=1e-4)


def test_masked_token_loss_is_the_mean_negative_log_likelihood():
    logits, targets = torch.randn(5, 11), torch.tensor([0, 3, 10, 3, 7])
    expected = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        expected += math.log(sum(map(math.exp, row))) - row[target]
    assert masked_token_loss(logits, targets).item() == pytest.approx(expected / 5, rel=1e-5)


def test_masked_token_loss_of_a_part_is_divided_by_the_count_of_the_whole():
    logits, targets = torch.randn(6, 11), torch.randint(11, (6,))
    parts = [masked_token_loss(logits[rows], targets[rows], torch.tensor(6.0)) for rows in (slice(0, 1), slice(1, 6))]
    torch.testing.assert_close(sum(parts), masked_token_loss(logits, targets))


def test_masked_token_loss_without_a_target_is_zero_and_not_nan():
    logits = torch.randn(0, 11, requires_grad=True)
    loss = masked_token_loss(logits, torch.zeros(0, dtype=torch.long), torch.tensor(0.0))
    loss.backward()
    assert loss.item() == 0


def test_masked_token_loss_is_computed_in_float32():
    logits, targets = torch.randn(50, 300).bfloat16(), torch.randint(300, (50,))
    loss = masked_token_loss(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, masked_token_loss(logits.float(), targets))


def triplets(negatives=(1, 2, 0, 1, 1), hidden=12, fillers=(), same=()):
    """Random queries with so many hard negatives each; ``same``: (document, text that it is equal to)."""
    count = len(negatives)
    owner = [*range(count), *(row for row, number in enumerate(negatives) for _ in range(number))]
    query_hash, document_hash = torch.arange(count), torch.arange(len(owner)) + 100
    for document, text in same:
        document_hash[document] = text
    counted = torch.tensor([row not in fillers for row in range(count)])
    documents = torch.randn(len(owner), hidden)
    documents[:count] += torch.randn(count, hidden)
    return Triplets(
        torch.randn(count, hidden),
        documents,
        torch.tensor(owner),
        query_hash,
        document_hash,
        counted,
        scores=torch.arange(len(owner)) / 10,
    )


def naive_contrastive(loss, batch):
    """The docstring's formula, with Python's numbers."""
    sizes = [batch.queries.shape[1], *loss.dimensions]
    weights = [1.0, *(loss.dimension_weights or [1.0] * len(loss.dimensions))]
    count, total = len(batch), torch.zeros(len(batch))
    for size, weight in zip(sizes, weights, strict=True):
        queries, documents = batch.queries[:, :size].tolist(), batch.documents[:, :size].tolist()
        for i in range(count):
            positive = cosine(queries[i], documents[i])
            right = {int(batch.query_hash[i]), int(batch.document_hash[i])}
            candidates = []
            for j, document in enumerate(documents):
                owner = int(batch.owner[j])
                hard = j >= count
                if j != i and (loss.hard_negatives == "all" or not hard or owner == i):
                    s = cosine(queries[i], document)
                    w = math.exp(loss.hardness * s) if hard and owner == i else 1.0
                    candidates.append((s, w, int(batch.document_hash[j]), owner))
            for j in range(count):
                pairs = {
                    "document-query": (documents[i], queries[j], batch.query_hash[j]),
                    "query-query": (queries[i], queries[j], batch.query_hash[j]),
                    "document-document": (documents[i], documents[j], batch.document_hash[j]),
                }
                for direction in loss.directions if j != i else ():
                    a, b, text = pairs[direction]
                    candidates.append((cosine(a, b), 1.0, int(text), j))
            normaliser = math.exp(positive / loss.temperature)
            for s, w, text, owner in candidates:
                kept = text not in right and batch.counted[owner]
                if kept and (loss.margin is None or s <= positive + loss.margin):
                    normaliser += w * math.exp(s / loss.temperature)
            total[i] += weight * (math.log(normaliser) - positive / loss.temperature)
    return total / sum(weights)


ALL_DIRECTIONS = ("document-query", "query-query", "document-document")
LOSSES = [
    Contrastive(temperature=0.1),
    Contrastive(temperature=0.1, hard_negatives="own"),
    *(Contrastive(temperature=0.1, directions=(direction,)) for direction in ALL_DIRECTIONS),
    Contrastive(temperature=0.1, margin=0.1),
    Contrastive(temperature=0.1, margin=0.0, directions=ALL_DIRECTIONS),
    Contrastive(temperature=0.1, hardness=5.0),
    Contrastive(temperature=0.1, dimensions=(8, 4)),
    Contrastive(temperature=0.1, dimensions=(6, 3), dimension_weights=(0.5, 2.0)),
    Contrastive(
        temperature=0.2, hard_negatives="own", directions=ALL_DIRECTIONS, margin=0.1, hardness=2.0, dimensions=(5,)
    ),
]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("same", [(), ((6, 101), (3, 0), (2, 100))], ids=["distinct", "equal texts"])
@pytest.mark.parametrize("fillers", [(), (1, 4)], ids=["whole", "fillers"])
def test_contrastive_equals_a_naive_loop(loss, same, fillers):
    batch = triplets(fillers=fillers, same=same)
    torch.testing.assert_close(loss(batch), naive_contrastive(loss, batch), rtol=1e-4, atol=1e-4)


def test_every_option_changes_the_loss():
    batch = triplets(same=((6, 101),))
    values = [loss(batch).sum().item() for loss in LOSSES]
    assert len({round(value, 4) for value in values}) == len(values)


def test_contrastive_of_pairs_is_info_nce():
    batch = triplets(negatives=(0, 0, 0, 0))
    expected = info_nce(batch.queries, batch.documents, 0.02)
    torch.testing.assert_close(Contrastive()(batch).mean(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_some_queries_have_the_losses_that_they_have_among_all(loss):
    batch = triplets()
    torch.testing.assert_close(loss(batch, slice(1, 4)), loss(batch)[1:4])
    assert loss(batch, slice(2, 2)).shape == (0,)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_joined_parts_are_the_whole_batch(loss):
    whole = triplets()
    parts = [
        whole.of(torch.tensor(kept)) for kept in ([True, True, False, False, False], [False, False, True, True, True])
    ]
    empty = whole.of(torch.zeros(5, dtype=torch.bool))
    assert [len(part) for part in parts] == [2, 3] and [len(part.documents) for part in parts] == [5, 5]
    joined = Triplets.join([parts[0], empty, parts[1]])
    torch.testing.assert_close(loss(joined), loss(whole))
    assert torch.equal(joined.owner[:5], torch.arange(5))
    # scores go with their documents: each document is found again by its text
    order = [whole.document_hash.tolist().index(text) for text in joined.document_hash.tolist()]
    assert torch.equal(joined.scores, whole.scores[order])


def test_a_false_negative_gets_no_gradient():
    batch = triplets(negatives=(1, 0))
    documents = batch.documents.clone()
    documents[2] = batch.queries[0]  # more like the query than its positive
    for margin, expected in ((None, True), (0.1, False)):
        leaf = documents.clone().requires_grad_()
        marked = replace(batch, documents=leaf)
        Contrastive(temperature=0.5, margin=margin)(marked, slice(0, 1)).sum().backward()
        assert bool(leaf.grad[2].any()) == expected


def test_the_hardness_weight_has_no_gradient_of_its_own():
    batch = triplets(negatives=(1, 0))
    leaf = batch.documents.clone().requires_grad_()
    marked = replace(batch, documents=leaf)
    weight = 3.0 * cosine(batch.queries[0].tolist(), batch.documents[2].tolist())
    Contrastive(temperature=0.5, hardness=3.0)(marked, slice(0, 1)).sum().backward()
    other = batch.documents.clone().requires_grad_()
    scores = torch.nn.functional.cosine_similarity(batch.queries[:1], other) / 0.5
    torch.nn.functional.cross_entropy((scores + torch.tensor([0, 0, weight]))[None], torch.tensor([0])).backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_places_of_positives():
    queries = torch.eye(3)
    documents = torch.tensor([[1.0, 0, 0], [0.5, 0.4, 0], [0, 0.9, 0.1], [0, 1, 0], [0, 1, 0], [0, 0, 1.0]])
    batch = Triplets(
        queries,
        documents,
        torch.tensor([0, 1, 2, 1, 1, 2]),
        torch.arange(3),
        torch.arange(6) + 10,
        torch.ones(3).bool(),
        torch.full((6,), torch.nan),
    )
    assert batch.places().tolist() == [1, 4, 2]
    batch.document_hash[4] = 11  # reads as the positive of query 1
    batch.document_hash[5] = 2  # reads as query 2
    assert batch.places().tolist() == [1, 3, 1]
    same = (torch.ones(3, 3), torch.ones(6, 3))  # of an encoder that has collapsed: no positive is found
    tied = Triplets(*same, batch.owner, torch.arange(3), torch.arange(6) + 10, torch.ones(3).bool(), batch.scores)
    assert tied.places().tolist() == [6, 6, 6]


def test_a_weight_too_few_is_refused():
    with pytest.raises(L2VError, match="dimension_weights: expected one for each .*2.*, found 1"):
        Contrastive(dimensions=(8, 4), dimension_weights=(1.0,))
