"""Retrieval inside the Wikipedia excerpt: from an article's opening sentence to its other passages."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from l2v.data.wikipedia import Article, WikipediaExcerpt, names, split_sentences
from l2v.encoders.text_encoder import TextEncoder
from l2v.evaluation.task import Task


@dataclass(frozen=True)
class WikipediaRetrieval(Task):
    """nDCG@10 over the held-out articles: query an opening sentence, relevant are passages of the same article.

    The opening paragraph is left out of the passages. A passage is a paragraph, cut to ``passage_words``.
    """

    passages_per_article: int = 3
    passage_words: int = 60
    label: str = "Wikipedia retrieval"
    metric: str = "nDCG@10"
    needs_head: bool = False

    def run(self, encoder: TextEncoder, *, show: bool = False) -> dict[str, float]:
        queries, passages, owners = self.data()
        scores = encoder.similarity(
            encoder.encode(queries, show_progress_bar=show), encoder.encode(passages, show_progress_bar=show)
        )
        relevant = np.array(owners)[None, :] == np.arange(len(queries))[:, None]
        return {"nDCG@10": ndcg(scores, relevant, k=10)}

    def evaluated_texts(self) -> list[str]:
        queries, passages, _ = self.data()
        return [*queries, *passages]

    def data(self) -> tuple[list[str], list[str], list[int]]:
        """Queries, passages, and each passage's query number."""
        queries: list[str] = []
        passages: list[str] = []
        owners: list[int] = []
        for number, article in enumerate(WikipediaExcerpt("held_out").articles()):
            queries.append(opening_sentence(article))
            others = article.paragraphs[: article.opening] + article.paragraphs[article.opening + 1 :]
            later = [p for p in others if len(p.split()) >= 30]
            places = np.linspace(0, len(later) - 1, min(len(later), self.passages_per_article)).round().astype(int)
            for place in dict.fromkeys(places.tolist()):
                passages.append(" ".join(later[place].split()[: self.passage_words]))
                owners.append(number)
        return queries, passages, owners


def opening_sentence(article: Article) -> str:
    """The opening paragraph's first sentence that names the subject: markup may have taken it out of the very first."""
    sentences = split_sentences(article.paragraphs[article.opening])
    return next((sentence for sentence in sentences if names(article.title, sentence)), sentences[0])


def ndcg(scores: NDArray[np.float32], relevant: NDArray[np.bool_], *, k: int) -> float:
    """Mean normalised discounted cumulative gain at ``k`` with binary relevance, over queries with relevant documents.

    Args:
        scores: (queries, documents); ties are broken by the document's number.
        relevant: (queries, documents).
        k: cut-off.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    discounts = 1 / np.log2(np.arange(2, k + 2))
    gains = (np.take_along_axis(relevant, order, axis=1) * discounts[: order.shape[1]]).sum(axis=1)
    ideal = np.array([discounts[: min(k, n)].sum() for n in relevant.sum(axis=1)])
    judged = ideal > 0
    return float((gains[judged] / ideal[judged]).mean())
