import math
from types import SimpleNamespace

import numpy as np
import pytest

from l2v.data.wikipedia import Article, names
from l2v.encoders.encoder import Encoder
from l2v.evaluation.tasks.lee import LeeSimilarity, lee_texts
from l2v.evaluation.tasks.retrieval import WikipediaRetrieval, ndcg, opening_sentence

pytest.importorskip("gensim", reason="the package gensim, which holds the texts, is not installed")


def oracle(similarities):
    """Stands for an encoder: it encodes texts as their numbers and knows the similarities."""

    def similarity(a, b):
        assert similarities.shape == (len(a), len(b))
        return similarities

    return SimpleNamespace(encode=lambda texts, **_: np.arange(len(texts)), similarity=similarity)


def test_lee_has_50_texts_and_a_judgement_of_each_pair():
    texts, human = lee_texts()
    assert len(texts) == 50 and all(40 <= len(text.split()) <= 140 for text in texts)
    judged = human[np.triu_indices(50, k=1)]
    assert human.shape == (50, 50) and (judged > 0).all() and (judged <= 1).all()


@pytest.mark.parametrize(("change", "expected"), [(lambda s: s, 1), (lambda s: s**3 + 7, 1), (lambda s: -s, -1)])
def test_the_correlation_is_one_of_ranks(change, expected):
    _, human = lee_texts()
    task = LeeSimilarity()
    assert task.run(oracle(change(human)))[task.metric] == pytest.approx(expected)


def test_the_correlation_counts_each_pair_once_and_no_text_with_itself():
    _, human = lee_texts()
    upper_only = np.triu(human, k=1) + np.tril(np.full((50, 50), 99.0))
    task = LeeSimilarity()
    assert task.run(oracle(upper_only))[task.metric] == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize(("attention", "expected"), [("causal", 0.5617), ("bidirectional", 0.5322)])
def test_the_real_encoder_scores_on_lee_what_it_was_measured_to(real_encoder_source, attention, expected):
    encoder = Encoder.from_pretrained(real_encoder_source, attention=attention, device="cpu")
    task = LeeSimilarity()
    assert task.run(encoder)[task.metric] == pytest.approx(expected, abs=0.002)


@pytest.fixture(scope="module")
def retrieval():
    return WikipediaRetrieval().data()


def test_each_article_is_a_query_with_three_passages(retrieval):
    queries, passages, owners = retrieval
    assert len(set(queries)) == len(queries) == 43 and len(set(passages)) == len(passages) == 129
    assert owners == [number for number in range(43) for _ in range(3)]
    assert all(30 <= len(passage.split()) <= 60 for passage in passages)


def test_queries_are_sentences_and_no_part_of_a_passage(retrieval):
    queries, passages, _ = retrieval
    verbs = {"is", "are", "was", "were", "served", "takes"}
    for query in queries:
        assert query[0].isupper() or query[0] == '"'
        assert query[-1] in '."' and verbs & set(query.split())
        assert not any(query[:60] in passage for passage in passages)


def test_an_oracle_retrieves_perfectly_and_its_opposite_nothing(retrieval, monkeypatch):
    queries, _, owners = retrieval
    monkeypatch.setattr(WikipediaRetrieval, "data", lambda self: retrieval)  # parsed once is enough
    relevant = np.equal.outer(np.arange(len(queries)), owners).astype(float)
    task = WikipediaRetrieval()
    assert task.run(oracle(relevant))[task.metric] == pytest.approx(1)
    assert task.run(oracle(-relevant))[task.metric] == 0


def test_captions_before_the_opening_paragraph_are_no_query():
    paragraphs = ["A cat, painted.", "The cat is an animal. It meows.", "More about cats."]
    assert opening_sentence(Article("Cat", paragraphs, 1)) == "The cat is an animal."


def test_a_first_sentence_that_lost_its_subject_is_passed_over():
    article = Article("Aikido", ["is a martial art. The word aikido is of three parts. Aikido is modern."], 0)
    assert opening_sentence(article) == "The word aikido is of three parts."
    assert not names("Aikido", "is a martial art.")


def test_an_opening_that_never_names_the_subject_gives_its_first_sentence():
    assert opening_sentence(Article("Cat", ["It is an animal. It meows."], 0)) == "It is an animal."


def naive_ndcg(scores, relevant, k):
    total = 0.0
    for row, wanted in zip(scores, relevant, strict=True):
        ranking = sorted(range(len(row)), key=lambda n: -row[n])[:k]
        gain = sum(1 / math.log2(rank + 2) for rank, n in enumerate(ranking) if wanted[n])
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, sum(wanted))))
        total += gain / ideal
    return total / len(scores)


@pytest.mark.parametrize("documents", [4, 10, 40])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_ndcg_equals_a_naive_loop(documents, k):
    generator = np.random.default_rng(documents * 100 + k)
    scores = generator.normal(size=(6, documents)).astype(np.float32)
    relevant = generator.random((6, documents)) < 0.3
    relevant[:, 0] = True
    assert ndcg(scores, relevant, k=k) == pytest.approx(naive_ndcg(scores.tolist(), relevant.tolist(), k))


def test_ndcg_worked_out_by_hand():
    scores = np.array([[0.9, 0.8, 0.7, 0.1]], np.float32)
    relevant = np.array([[False, True, False, True]])
    expected = (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3))
    assert ndcg(scores, relevant, k=10) == pytest.approx(expected)


def test_ties_are_broken_by_the_number_of_the_document():
    relevant = np.array([[False, True]])
    assert ndcg(np.zeros((1, 2), np.float32), relevant, k=1) == 0
    assert ndcg(np.zeros((1, 2), np.float32), relevant[:, ::-1], k=1) == 1
