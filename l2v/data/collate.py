"""From token rows to batches. Collators are plain picklable objects, so that loader processes can be spawned."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from l2v.data.order import seed_of
from l2v.masking import IGNORED, Strategy, mask_tokens
from l2v.tokenization import Tokens, pad

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
    """SimCSE: texts padded to the longest of the batch; ``counted`` (batch,) is 0 for fillers."""

    pad_token_id: int
    padding_side: str
    views: int
    """How often the model reads a text; it counts in ``tokens``."""

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        tokens = [Tokens(row["input_ids"], row["text_begin"]) for row, _ in rows]
        batch = pad(tokens, self.pad_token_id, self.padding_side)
        counted = torch.tensor([int(key >= 0) for _, key in rows])
        return {**batch, "counted": counted, "tokens": self.views * int(batch["attention_mask"].sum())}
