"""What bidirectional attention does to an untrained decoder's states (paper, section 4.2, figures 5, 8 and 9)."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from l2v.data.order import evenly
from l2v.data.texts import TextSource
from l2v.encoders.finite import check_finite
from l2v.encoders.text_encoder import TextEncoder, with_backbone
from l2v.evaluation.results import Entries, ResultStore, entry
from l2v.evaluation.task import Task
from l2v.models.backbone import Backbone, hidden_states
from l2v.models.bidirectional import Attention, set_attention
from l2v.models.proof import Proof, prove
from l2v.progress import track
from l2v.text.tokenization import pad, tokenize


@dataclass(frozen=True)
class AttentionStates(Task):
    """Cosine of each token's state under causal attention with the one under bidirectional attention, in every layer.

    Both come from the same weights, loaded once; which attention the encoder was loaded with does not matter. High
    cosines mean that a decoder's states survive the switch without training, as those of Mistral-7B do.

    Attributes:
        texts: where the texts come from; ``count`` of them, evenly spaced, are used.
        count: texts.
        length: tokens; longer texts are cut, and a position is averaged over the texts that reach it.
        columns: of the result: positions are averaged in so many groups of neighbours.
        batch_size: texts in a batch.
    """

    texts: TextSource
    count: Annotated[int, Ge(1)] = 32
    length: Annotated[int, Ge(1)] = 128
    columns: Annotated[int, Ge(1)] = 32
    batch_size: Annotated[int, Ge(1)] = 4

    label = "Causal and bidirectional states"
    metric = "cosine, last layer"
    needs_backbone = True

    def evaluate(self, name: str, encoder: TextEncoder, store: ResultStore, *, show: bool = False) -> Entries:
        """The mean cosine of the last layer, and ``<name>_layers``: over all layers, without the embeddings.

        ``plot`` has the cosines by layer (the embeddings first) and column, and each column's first position.
        """
        model = with_backbone(encoder, self.label)
        backbone = model.backbone
        found = list(self.texts.texts())
        found = [found[row] for row in evenly(len(found), min(self.count, len(found)))]
        tokens = tokenize(found, backbone.tokenizer, max_length=self.length, prompt=model.prompt)
        tokens.sort(key=lambda text: -len(text.input_ids))
        proof = _prove_both(backbone)
        total: NDArray[np.float64] | float = 0.0
        texts = np.zeros(len(tokens[0].input_ids))
        batches = [tokens[begin : begin + self.batch_size] for begin in range(0, len(tokens), self.batch_size)]
        for rows in track(batches, "comparing states", show=show):
            batch = pad(rows, backbone.tokenizer.pad_token_id)
            ids, mask = (batch[key].to(model.device) for key in ("input_ids", "attention_mask"))
            cosines = (state_cosines(backbone, ids, mask) * mask).sum(dim=1)
            missing = len(texts) - mask.shape[1]
            total = total + np.pad(cosines.cpu().numpy(), ((0, 0), (0, missing)))
            texts += np.pad(mask.sum(dim=0).cpu().numpy(), (0, missing))
        check_finite(np.asarray(total), model.dtype)
        table, begins = binned(total / texts, self.columns)
        layers = (np.asarray(total).sum(axis=1) / texts.sum()).tolist()
        details = {
            "last_layer": layers[-1],
            "all_layers": float(np.mean(layers[1:])),
            "texts": len(found),
            "tokens": int(texts.sum()),
        }
        plot = {
            "kind": "attention_states",
            "cosine": table.round(4).tolist(),
            "positions": begins,
            "length": len(texts),
            "layers": [round(value, 4) for value in layers],
            "causal_layers": proof.causal_layers,
        }
        every = "cosine, all layers"
        return {
            name: entry(self.label, self.metric, layers[-1], details) | {"plot": plot},
            f"{name}_layers": entry(self.label, every, details["all_layers"], {}),
        }


@torch.inference_mode()
def state_cosines(
    backbone: Backbone, ids: Int[Tensor, "batch length"], mask: Int[Tensor, "batch length"]
) -> Float[Tensor, "layers batch length"]:
    """Cosines of a decoder's states under both attentions: the embeddings first, the last after the final norm."""
    with attending(backbone, "causal"):
        causal = hidden_states(backbone, ids, mask)
    with attending(backbone, "bidirectional"):
        both_ways = hidden_states(backbone, ids, mask)
    pairs = zip(causal, both_ways, strict=True)
    return torch.stack([torch.cosine_similarity(a.double(), b.double(), dim=-1, eps=1e-12) for a, b in pairs])


@contextlib.contextmanager
def attending(backbone: Backbone, attention: Attention) -> Iterator[None]:
    """The decoder with another attention for a while."""
    set_attention(backbone.decoder, attention)
    try:
        yield
    finally:
        set_attention(backbone.decoder, backbone.attention)


def binned(table: NDArray[np.float64], columns: int) -> tuple[NDArray[np.float64], list[int]]:
    """Means of neighbouring columns, in at most ``columns`` groups of nearly the same size, and where each begins."""
    edges = np.linspace(0, table.shape[1], min(columns, table.shape[1]) + 1).round().astype(int)
    groups = [table[:, begin:end].mean(axis=1) for begin, end in itertools.pairwise(edges)]
    return np.stack(groups, axis=1), edges[:-1].tolist()


def _prove_both(backbone: Backbone) -> Proof:
    """Prove the attention that the decoder was not loaded with; the proof of the bidirectional one is returned."""
    other: Attention = "bidirectional" if backbone.attention == "causal" else "causal"
    with attending(backbone, other):
        # layers that stay causal are part of what is shown, so they are no reason to stop
        proof = prove(backbone.decoder, other, partial=True)
    return proof if other == "bidirectional" else backbone.proof
