import math

import pytest
import torch

from l2v.losses import info_nce, masked_token_loss


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
