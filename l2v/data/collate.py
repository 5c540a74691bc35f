"""From token rows to batches. Collators are plain picklable objects, so that loader processes can be spawned."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from l2v.data.order import seed_of
from l2v.text.masking import IGNORED, Strategy, mask_tokens
from l2v.text.tokenization import Batch, Tokens, pad

Row = tuple[dict[str, Any], int]
"""The columns of a row, and the key that seeds what is random about this reading of it (negative: a filler, not
counted)."""


class Collator(Protocol):
    """Makes a batch: tensors (batch, length), and ``tokens``, how many are no padding."""

    def __call__(self, rows: list[Row]) -> dict[str, Any]: ...


@dataclass(frozen=True)
class MaskedBlocks:
    """MNTP: blocks of equal length, masked by a generator that the seed and the row's key determine."""

    probability: float
    strategy: Strategy
    mask_token_id: int
    vocabulary_size: int
    unmaskable: tuple[int, ...]
    """Special tokens, which are neither masked nor predicted."""
    seed: int

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        blocks = torch.tensor([row["input_ids"] for row, _ in rows])
        maskable = ~torch.isin(blocks, torch.tensor(self.unmaskable))
        masked, labels = torch.empty_like(blocks), torch.empty_like(blocks)
        for number, (_, key) in enumerate(rows):
            masked[number], labels[number] = mask_tokens(
                blocks[number],
                maskable[number],
                probability=self.probability,
                strategy=self.strategy,
                mask_token_id=self.mask_token_id,
                vocabulary_size=self.vocabulary_size,
                generator=torch.Generator().manual_seed(seed_of(self.seed, "mask", key)),
            )
            if key < 0:
                labels[number] = IGNORED
        return {
            "input_ids": masked,
            "attention_mask": torch.ones_like(masked),
            "labels": labels,
            "tokens": masked.numel(),
        }


@dataclass(frozen=True)
class PaddedTexts:
    """SimCSE: texts padded to the longest of the batch; ``key`` int64 (batch,) is that of each row."""

    pad_token_id: int
    padding_side: str
    views: int
    """How often the model reads a text; it counts in ``tokens``."""

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        tokens = [Tokens(row["input_ids"], row["text_begin"]) for row, _ in rows]
        batch = pad(tokens, self.pad_token_id, self.padding_side)
        keys = torch.tensor([key for _, key in rows])
        return {**batch, "key": keys, "tokens": self.views * int(batch["attention_mask"].sum())}


@dataclass(frozen=True)
class TripletBatch:
    """Queries and their documents, each padded to the longest of its own kind.

    ``queries`` is a :class:`~l2v.text.tokenization.Batch` of B rows and ``documents`` one of B + N: the positives in
    the order of the queries, then the hard negatives. ``owner`` int64 (B + N,) is the query's row number of each
    document; ``query_hash`` (B,) and ``document_hash`` (B + N,) int64 are equal where texts are; ``score`` float32
    (B,) and ``scores`` float32 (B + N,), a teacher's of each document, are NaN where the data have none; ``set`` is the
    number of the rows' data set; ``counted`` int64 (B,) is 0 for fillers.
    """

    pad_token_id: int
    padding_side: str
    negatives: int
    """Hard negatives a query, at most: of a row that has more, each reading draws some."""

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        chosen = [self._choice(row, key) for row, key in rows]
        # (row in the batch, place among the row's documents): positives first
        places = [(n, 0) for n in range(len(rows))] + [(n, place) for n, drawn in enumerate(chosen) for place in drawn]
        queries = self._pad([Tokens(row["query"], row["query_begin"]) for row, _ in rows])
        documents = self._pad(
            [Tokens(rows[n][0]["documents"][place], rows[n][0]["document_begins"][place]) for n, place in places]
        )
        return {
            "queries": queries,
            "documents": documents,
            "owner": torch.tensor([n for n, _ in places]),
            "query_hash": torch.tensor([row["query_hash"] for row, _ in rows]),
            "document_hash": torch.tensor([rows[n][0]["document_hashes"][place] for n, place in places]),
            "score": torch.tensor([row["score"] for row, _ in rows], dtype=torch.float32),
            "scores": torch.tensor([rows[n][0]["document_scores"][place] for n, place in places], dtype=torch.float32),
            "set": rows[0][0]["set"],
            "counted": torch.tensor([int(key >= 0) for _, key in rows]),
            "tokens": int(queries["attention_mask"].sum() + documents["attention_mask"].sum()),
        }

    def _choice(self, row: dict[str, Any], key: int) -> list[int]:
        have = len(row["documents"]) - 1
        if have <= self.negatives:
            return list(range(1, have + 1))
        generator = torch.Generator().manual_seed(seed_of("negatives", key))
        return sorted((torch.randperm(have, generator=generator)[: self.negatives] + 1).tolist())

    def _pad(self, tokens: list[Tokens]) -> Batch:
        return pad(tokens, self.pad_token_id, self.padding_side)
