"""Exact search for the best inner products, block by block: memory depends on the blocks, not on the corpus."""

from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Backend = Literal["torch", "faiss"]


class Blocks(Protocol):
    """Vectors that can be read in part, such as :class:`~l2v.mining.vectors.Vectors`."""

    @property
    def count(self) -> int: ...

    def block(self, begin: int, end: int) -> NDArray[np.float32]: ...


def top_k(
    queries: NDArray[np.float32],
    corpus: Blocks,
    k: int,
    *,
    excluded: NDArray[np.int64] | None = None,
    block: int = 16384,
    backend: Backend = "torch",
    device: str | torch.device = "cpu",
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The ``k`` documents with the greatest inner product, for every query.

    Args:
        queries: (queries, dimension).
        corpus: (documents, dimension), read ``block`` rows at a time.
        k: documents a query.
        excluded: pairs that must not be found, as sorted numbers ``query * corpus.count + document``.
        block: documents compared at once; (queries, block) scores are held.
        backend: who compares.
        device: where torch compares.

    Returns:
        Scores and document numbers, both (queries, k), best first; -inf and -1 where there are fewer documents.
    """
    excluded = np.empty(0, np.int64) if excluded is None else excluded
    banned = torch.from_numpy(excluded).to(device)
    most = int(np.bincount(excluded // corpus.count).max(initial=0))
    rows = torch.arange(len(queries), device=device)[:, None] * corpus.count
    asked = torch.from_numpy(queries).to(device)
    scores = torch.full((len(queries), k), -torch.inf, device=device)
    found = torch.full((len(queries), k), -1, device=device)
    for begin in range(0, corpus.count, block):
        documents = torch.from_numpy(corpus.block(begin, min(begin + block, corpus.count))).to(device)
        # as many more as could be excluded, so that k are left
        new_scores, new = _compare(asked, documents, min(k + most, len(documents)), backend)
        new += begin
        new_scores[torch.isin(rows + new, banned)] = -torch.inf
        scores, best = torch.cat([scores, new_scores], dim=1).topk(k)
        found = torch.cat([found, new], dim=1).gather(1, best)
    found[scores == -torch.inf] = -1
    return scores.cpu().numpy(), found.cpu().numpy()


def _compare(queries: Tensor, documents: Tensor, k: int, backend: Backend) -> tuple[Tensor, Tensor]:
    if backend == "torch":
        best = (queries @ documents.T).topk(k)
        return best.values, best.indices
    import faiss

    scores, found = faiss.knn(queries.cpu().numpy(), documents.cpu().numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(scores).to(queries.device), torch.from_numpy(found).to(queries.device)
