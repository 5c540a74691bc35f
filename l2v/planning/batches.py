"""Batches as large as they get: what a step is planned for."""

from typing import Any

from l2v.data.collate import Row
from l2v.errors import L2VError
from l2v.stages.contrastive import ContrastiveStage
from l2v.stages.mntp import MNTP
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
    elif isinstance(stage, ContrastiveStage):
        length = min(text_tokens or stage.max_length, stage.max_length)
        make = _triplet if isinstance(stage, Supervised) else _text
        rows = [(make(stage, length - (row == 0), row, vocabulary), row) for row in range(stage.batch_size)]
    else:
        raise L2VError(f"stage={stage.name}: plans are of mntp, simcse and supervised")
    return stage.collator(training=True)(rows)


def _ids(length: int, seed: int, vocabulary: int) -> list[int]:
    """Token ids that are none of the special ones of the stand-in tokenizer."""
    first = min(4, vocabulary - 1)
    return [first + (seed * 7919 + place) % (vocabulary - first) for place in range(max(length, 1))]


def _text(stage: Any, length: int, row: int, vocabulary: int) -> dict[str, Any]:
    return {"input_ids": _ids(length, row, vocabulary), "text_begin": 0}


def _triplet(stage: Supervised, length: int, row: int, vocabulary: int) -> dict[str, Any]:
    count = 1 + stage.negatives
    return {
        "query": _ids(length, row, vocabulary),
        "query_begin": 0,
        "query_hash": -1 - row,
        "documents": [_ids(length, row * count + number, vocabulary) for number in range(count)],
        "document_begins": [0] * count,
        "document_hashes": [row * count + number for number in range(count)],
        "document_scores": [float("nan")] * count,
        "score": float("nan"),
        "set": 0,
    }
