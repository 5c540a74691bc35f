"""Whether a prefix's states know what comes after it (paper, section 4.1, figures 4 and 7)."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray

from l2v.data.files import content, find
from l2v.data.readers import records, text_of
from l2v.encoders.encoder import Encoder
from l2v.encoders.finite import check_finite
from l2v.encoders.text_encoder import TextEncoder, with_backbone
from l2v.errors import L2VError
from l2v.evaluation.results import Entries, ResultStore, entry
from l2v.evaluation.task import Task
from l2v.pooling import pool
from l2v.progress import track
from l2v.text.tokenization import Tokens, pad, tokenize

TIE = 1e-6
"""Cosines that differ by less are equal: float32 rounding is below it."""


class Triple(NamedTuple):
    """Three texts that begin alike. The positive goes on as the query does, in other words; the negative does not."""

    query: str
    positive: str
    negative: str


@dataclass(frozen=True)
class PrefixTriples(Task):
    """Cosines of a query with a positive and a negative, all three pooled over the prefix that they share.

    A causal model has the same states for the prefix whatever follows, so both cosines are 1. Only a model that looks
    ahead can tell the positive from the negative.

    Attributes:
        file: .jsonl, .csv, .tsv or .parquet with three texts a row; None: the triples of l2v. The shared prefix is
            found by itself: the tokens with which all three begin.
        query: column of the query.
        positive: column of the text that goes on with the same meaning.
        negative: column of the text that goes on otherwise.
        batch_size: triples in a batch.
    """

    file: str | None = None
    query: str = "query"
    positive: str = "positive"
    negative: str = "negative"
    batch_size: Annotated[int, Ge(1)] = 16

    label = "Shared prefixes"
    metric = "share told apart"
    needs_backbone = True

    def __post_init__(self) -> None:
        self._path()

    def check(self, store: ResultStore) -> None:
        """Raise an L2VError where the file cannot be read."""
        self.triples()

    def evaluated_texts(self) -> list[str]:
        return [text for triple in self.triples() for text in triple]

    def data_fingerprint(self) -> str:
        """What pins the triples: the file's content."""
        return content([self._path()])

    def triples(self) -> list[Triple]:
        """The triples, in the file's order.

        Raises:
            L2VError: the file or a column is missing, or a row is broken.
        """
        columns = (self.query, self.positive, self.negative)
        named = "the settings query, positive, negative"
        found = []
        for where, values, problem in records(self._path(), columns, named):
            if problem is not None:
                raise L2VError(f"{where}: {problem}")
            triple = Triple(*(text_of(values, column, where, named) for column in columns))
            if triple.positive == triple.negative:
                raise L2VError(f"{where}: the positive and the negative are the same text")
            found.append(triple)
        if not found:
            raise L2VError(f"{self._path()}: no triple; expected one or more")
        return found

    def evaluate(self, name: str, encoder: TextEncoder, store: ResultStore, *, show: bool = False) -> Entries:
        """The share of triples whose positive is nearer (a tie counts half), and ``<name>_margin``: by how much.

        ``plot`` has both cosines of every triple.
        """
        cosines = self.cosines(with_backbone(encoder, self.label), show=show)
        margins = cosines[:, 0] - cosines[:, 1]
        ties = np.abs(margins) < TIE
        details = {
            "accuracy": float(np.where(ties, 0.5, margins > 0).mean()),
            "margin": float(margins.mean()),
            "positive": float(cosines[:, 0].mean()),
            "negative": float(cosines[:, 1].mean()),
            "triples": len(cosines),
            "ties": int(ties.sum()),
        }
        positive, negative = cosines.round(6).T.tolist()
        plot = {"kind": "prefix_triples", "positive": positive, "negative": negative}
        margin = "margin"
        return {
            name: entry(self.label, self.metric, details["accuracy"], details) | {"plot": plot},
            f"{name}_margin": entry(self.label, margin, details["margin"], {}),
        }

    @torch.inference_mode()
    def cosines(self, encoder: Encoder, *, show: bool = False) -> NDArray[np.float64]:
        """(triples, 2): of the query with the positive, and with the negative.

        Raises:
            L2VError: the texts of a triple do not begin with the same token.
        """
        triples = self.triples()
        flat = [text for triple in triples for text in triple]
        tokenizer = encoder.backbone.tokenizer
        tokens = tokenize(flat, tokenizer, max_length=encoder.max_length, prompt=encoder.prompt)
        found = np.zeros((len(triples), 2))
        batches = range(0, len(triples), self.batch_size)
        for begin in track(batches, "comparing prefixes", show=show):
            end = min(begin + self.batch_size, len(triples))
            groups = [tokens[3 * row : 3 * row + 3] for row in range(begin, end)]
            vectors = _prefix_vectors(encoder, groups, triples[begin:end])
            check_finite(vectors.flatten(0, 1).float().cpu().numpy(), encoder.dtype)
            query, *others = torch.nn.functional.normalize(vectors.double(), dim=-1).unbind(dim=1)
            found[begin:end] = torch.stack([(query * other).sum(dim=-1) for other in others], dim=1).cpu().numpy()
        return found

    def _path(self) -> Path:
        if self.file is None:
            return Path(str(resources.files("l2v.evaluation.analyses").joinpath("prefix_triples.jsonl")))
        paths = find(self.file, "evaluation.tasks.prefix_triples.file")
        if len(paths) > 1:
            raise L2VError(f"evaluation.tasks.prefix_triples.file={self.file}: {len(paths)} files; expected one")
        return paths[0]


def shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    length = min(map(len, rows))
    return next((place for place in range(length) if len({row[place] for row in rows}) > 1), length)


def _prefix_vectors(encoder: Encoder, groups: list[list[Tokens]], triples: list[Triple]) -> torch.Tensor:
    """Vectors (triples, 3, dimension) of the shared prefixes."""
    batch = pad([text for group in groups for text in group], encoder.backbone.tokenizer.pad_token_id)
    ids, attention_mask, pool_mask = (
        batch[key].to(encoder.device) for key in ("input_ids", "attention_mask", "pool_mask")
    )
    for row, (group, triple) in enumerate(zip(groups, triples, strict=True)):
        prefix = shared_prefix([text.input_ids for text in group])
        if prefix <= max(text.text_begin for text in group):
            raise L2VError(f"a triple shares no first token, so it has no prefix to compare: {triple.query[:60]!r}")
        pool_mask[3 * row : 3 * row + 3, prefix:] = 0
    states = encoder.backbone(ids, attention_mask)
    return pool(states, pool_mask, attention_mask, encoder.pooling).unflatten(0, (-1, 3))
