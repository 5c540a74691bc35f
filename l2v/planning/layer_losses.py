"""How many layers to keep of a decoder, proposed from the loss of each layer's vectors before any training.

After Thennal, Fischer and Biemann (L3Prune, arXiv 2410.14578): over the layers of a decoder that was never trained on
it, the loss falls, rises and falls again. Its lowest point in the deeper half is the larger model to train, and the one
in the other half the smaller. They take 100 batches of 64 queries of the data that will be trained on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge

from l2v.data.collate import TripletBatch
from l2v.data.mixed_order import MixedOrder
from l2v.data.triplets.options import TripletMix
from l2v.data.triplets.rows import triplet_rows
from l2v.encoders.encoder import Encoder
from l2v.errors import L2VError
from l2v.losses.base import Loss
from l2v.losses.triplets import Triplets
from l2v.models.depth import depth_of, prove_depths, states_of_depths
from l2v.pooling import pool
from l2v.progress import track


@dataclass(frozen=True)
class Sample:
    """How much of the data is looked at."""

    batches: Annotated[int, Ge(1)] = 100
    batch_size: Annotated[int, Ge(2)] = 64
    """Queries; the documents of one are the negatives of the others."""
    negatives: Annotated[int, Ge(0)] = 1
    """Hard negatives a query, where its row has so many."""
    seed: int = 0


@dataclass(frozen=True)
class Depths:
    """What was found."""

    losses: list[float]
    """In nats, of the vectors after 1, 2, ... layers."""

    @property
    def smaller(self) -> int:
        """Layers: the lowest loss in the first half."""
        return 1 + self._lowest(0, max(1, len(self.losses) // 2))

    @property
    def larger(self) -> int:
        """Layers: the lowest loss in the other half."""
        return 1 + self._lowest(len(self.losses) // 2, len(self.losses))

    def _lowest(self, begin: int, end: int) -> int:
        return min(range(begin, end), key=self.losses.__getitem__)

    def record(self) -> dict[str, Any]:
        return {"layers": len(self.losses), "smaller": self.smaller, "larger": self.larger, "losses": self.losses}


@torch.inference_mode()
def layer_losses(encoder: Encoder, data: TripletMix, loss: Loss, sample: Sample) -> Depths:
    """The mean loss of the vectors after each layer, the final norm behind it.

    Args:
        encoder: untrained for this loss.
        data: what will be trained on.
        loss: that will be trained with.
        sample: of the data.

    Raises:
        L2VError: too few rows for a batch, or a decoder whose layers cannot be told from what stands behind them.
    """
    if loss.needs_scores:
        raise L2VError("loss: one that learns from a teacher's scores says nothing of layers; choose loss=contrastive")
    loss.check(encoder.backbone.hidden_size)
    backbone = encoder.backbone
    prove_depths(backbone)
    sums = torch.zeros(depth_of(backbone.config), dtype=torch.float64)
    for batch in track(_batches(encoder, data, sample), "layers", total=sample.batches):
        queries, documents = (_by_layer(encoder, batch[side]) for side in ("queries", "documents"))
        for layer, (of_queries, of_documents) in enumerate(zip(queries, documents, strict=True)):
            device = of_queries.device
            found = Triplets(
                queries=of_queries,
                documents=of_documents,
                owner=batch["owner"].to(device),
                query_hash=batch["query_hash"].to(device),
                document_hash=batch["document_hash"].to(device),
                counted=batch["counted"].bool().to(device),
                scores=batch["scores"].to(device),
            )
            sums[layer] += loss(found).mean().item()
    return Depths((sums / sample.batches).tolist())


def _batches(encoder: Encoder, data: TripletMix, sample: Sample) -> Iterator[dict[str, Any]]:
    tokenizer = encoder.backbone.tokenizer
    rows = triplet_rows(data, tokenizer, max_length=encoder.max_length, prompt=encoder.prompt)
    order = MixedOrder(
        rows.texts(),
        names=rows.names,
        batch_size=sample.batch_size,
        batches=sample.batches,
        seed=sample.seed,
        alpha=rows.alpha,
        override="batch_size",
    )
    collate = TripletBatch(tokenizer.pad_token_id, encoder.padding_side, sample.negatives)
    for picks in order:
        yield collate(rows.__getitems__(picks))


def _by_layer(encoder: Encoder, texts: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Of each layer the vectors (texts, hidden)."""
    backbone = encoder.backbone
    device = next(backbone.decoder.parameters()).device
    here = {name: value.to(device) for name, value in texts.items()}
    places = (here["input_ids"], here["attention_mask"], here.get("position_ids"))
    states = states_of_depths(backbone, range(1, depth_of(backbone.config)), *places)
    return [pool(one, here["pool_mask"], here["attention_mask"], encoder.pooling) for one in states]
