"""Batches as large as they get: what a step is planned for."""

from typing import Any

from l2v.data.collate import Row
from l2v.errors import L2VError
from l2v.stages.mntp import MNTP
from l2v.stages.simcse import SimCSE
from l2v.stages.stage import Stage
from l2v.stages.supervised import Supervised


def longest_batch(stage: Stage, vocabulary: int, text_tokens: int | None = None) -> dict[str, Any]:
    """A batch of one process by the collator of a stage that has its model.

    Its texts have as many tokens as the stage takes, but for one that has a token fewer: a batch with padding needs
    an attention mask, and one without would hide its memory.

    Args:
        stage: mntp, simcse or supervised.
        vocabulary: of the model.
        text_tokens: tokens a text, of stages that read texts; None: as many as they take.

    Raises:
        L2VError: the stage's rows are not known here.
    """
    if isinstance(stage, MNTP):
        rows: list[Row] = [
            ({"input_ids": _ids(stage.block_length, row, vocabulary)}, row) for row in range(stage.batch_size)
        ]
    elif isinstance(stage, SimCSE | Supervised):
        length = min(text_tokens or stage.max_length, stage.max_length)
        negatives = stage.negatives if isinstance(stage, Supervised) else None
        texts = [_ids(length - (row == 0), row, vocabulary) for row in range(stage.batch_size)]
        rows = [
            (_text(ids) if negatives is None else _triplet(ids, row, negatives), row) for row, ids in enumerate(texts)
        ]
    else:
        raise L2VError(f"stage={stage.name}: plans are of mntp, simcse and supervised")
    return stage.collator(training=True)(rows)


def _ids(length: int, seed: int, vocabulary: int) -> list[int]:
    """Token ids that are none of the special ones of the stand-in tokenizer."""
    first = min(4, vocabulary - 1)
    return [first + (seed * 7919 + place) % (vocabulary - first) for place in range(max(length, 1))]


def _text(ids: list[int]) -> dict[str, Any]:
    return {"input_ids": ids, "text_begin": 0}


def _triplet(ids: list[int], row: int, negatives: int) -> dict[str, Any]:
    """A query and documents of the same tokens, which count as different texts."""
    count = 1 + negatives
    return {
        "query": ids,
        "query_begin": 0,
        "query_hash": -1 - row,
        "documents": [ids] * count,
        "document_begins": [0] * count,
        "document_hashes": [row * count + number for number in range(count)],
        "document_scores": [float("nan")] * count,
        "score": float("nan"),
        "set": 0,
    }
