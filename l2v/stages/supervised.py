"""Supervised contrastive training: queries, their positives and hard negatives (paper, section 4 and appendix G)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import lightning as L
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from l2v.data.collate import TripletBatch
from l2v.data.mixed_order import MixedOrder, MixedValidationOrder
from l2v.data.triplets.options import TripletMix
from l2v.data.triplets.rows import TripletRows, triplet_rows
from l2v.encoders.encoder import Encoder
from l2v.errors import L2VError
from l2v.evaluation.tasks.sts import StsPairs
from l2v.losses.base import Loss
from l2v.losses.triplets import Triplets
from l2v.models.backbone import Backbone
from l2v.models.bidirectional import decoder_layers
from l2v.models.depth import number_of_layers, prove_depths
from l2v.models.settings import Sharding
from l2v.stages.contrastive import ContrastiveStage
from l2v.text.prompts import SEPARATOR

if TYPE_CHECKING:
    from l2v.runs.initialization import Initialization
    from l2v.training.settings import Training


class Supervised(ContrastiveStage):
    """Pulls a query to its positive, away from its hard negatives and from the documents of all other queries.

    Queries and documents of all ranks make one batch: a rank scores its own queries against all documents. Validation
    searches the held-out documents of a set for each of its held-out queries.

    Args:
        loss: what is minimised, see :class:`~l2v.losses.base.Loss`.
        max_length: tokens a text, instruction included.
        separator: between an instruction and its text, in training.
        encoder_separator: the same in ``sts``, as in the encoder that comes out.
        negatives: hard negatives a query, where its row has so many.
        sts: scored sentence pairs to validate on beside the held-out rows.
        layers: after which the decoder can be cut too, as numbers from 1 or as shares of all between 0 and 1. The loss
            is the weighted mean of those of the vectors at these depths and at the last (2D Matryoshka, arXiv
            2402.14776; at all chosen depths in each step, as in Starbucks, arXiv 2410.13230).
        layer_weights: one for each of ``layers``, beside 1 for the whole decoder. None: all 1.
        settings: see :class:`~l2v.stages.contrastive.ContrastiveStage`.
    """

    reads = TripletMix
    reads_what = "triplets, as data=triplets data.train.files=my.jsonl or data=e5 data.folder=... has"

    def __init__(
        self,
        *,
        loss: Loss,
        max_length: Annotated[int, Ge(1)] = 512,
        separator: str = SEPARATOR,
        encoder_separator: str = SEPARATOR,
        negatives: Annotated[int, Ge(0)] = 1,
        sts: StsPairs | None = None,
        layers: tuple[Annotated[int, Ge(1)] | Annotated[float, Gt(0), Lt(1)], ...] = (),
        layer_weights: tuple[Annotated[float, Gt(0)], ...] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(max_length=max_length, **settings)
        if layer_weights is not None and len(layer_weights) != len(layers):
            raise L2VError(
                f"stage.layer_weights: expected one for each of stage.layers ({len(layers)}), found "
                f"{len(layer_weights)}"
            )
        self.loss = loss
        self.separator = separator
        self.encoder_separator = encoder_separator
        self.negatives = negatives
        self.sts = sts if sts is not None and sts.file is not None else None
        self.layers = layers
        self.layer_weights = layer_weights or (1.0,) * len(layers)
        self._depths: list[int] = []
        # vectors of the validation's batches so far, and the number of each query's set
        self._held_out: list[tuple[Triplets, Tensor]] = []
        if self.sts is not None:
            self.sts.pairs()  # a broken line is found before the model is loaded

    def attach(self, backbone: Backbone, seed: int) -> None:
        super().attach(backbone, seed)
        self.loss.check(backbone.hidden_size)
        self._depths = _numbers(self.layers, len(decoder_layers(backbone.decoder))) if self.layers else []

    def check(self, *, encoder: bool, adapter: bool, sharding: Sharding, sources: Sequence[object]) -> None:
        super().check(encoder=encoder, adapter=adapter, sharding=sharding, sources=sources)
        if self.layers and sharding in ("weights", "zero3"):
            raise L2VError(
                "stage.layers: the final norm is called at each depth, and its weights are split over processes; "
                "choose trainer=ddp, gpu or deepspeed_zero2, or set stage.layers=[]"
            )

    def data(self, training: "Training", start: "Initialization", device: torch.device | str) -> L.LightningDataModule:
        module = super().data(training, start, device)
        if self.layers:
            prove_depths(self.backbone)
        return module

    def rows(self, source: TripletMix, *, show: bool) -> TripletRows:
        tokenizer = self.backbone.tokenizer
        rows = triplet_rows(
            source, tokenizer, max_length=self.max_length, prompt=self.prompt(self.separator), show=show
        )
        if self.loss.needs_scores and not rows.has_scores():
            raise L2VError(
                "stage.loss: it learns from a teacher's scores, and the rows of data= have none; name their columns by "
                "data.train.positive_score and data.train.negative_scores"
            )
        return rows

    def collator(self, *, training: bool) -> TripletBatch:
        return TripletBatch(self.backbone.tokenizer.pad_token_id, self.padding_side, self.negatives)

    def training_order(self, rows: TripletRows, **settings: Any) -> MixedOrder:
        return MixedOrder(rows.texts(), names=rows.names, alpha=rows.alpha, **settings)

    def validation_order(self, rows: TripletRows, **settings: Any) -> MixedValidationOrder:
        return MixedValidationOrder(rows.sets, **settings)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        depths = self._embed_depths(batch)
        weights = [*self.layer_weights, 1.0]
        loss = torch.stack([w * self._loss(own) for w, own in zip(weights, depths, strict=True)]).sum() / sum(weights)
        self.log_loss(loss)
        return loss

    def _loss(self, vectors: Triplets) -> Tensor:
        """The mean loss of all ranks' queries, as this rank's part of it."""
        parts = self._of_all_ranks(vectors)
        begin = sum(len(part) for part in parts[: self.global_rank])
        own = slice(begin, begin + len(parts[self.global_rank]))
        everyone = Triplets.join(parts)
        losses = self.loss(everyone, own)[everyone.counted[own]]
        # the mean over the queries of all ranks: DDP averages the ranks' losses
        return losses.sum() / everyone.counted.sum().clamp(min=1) * self.trainer.world_size

    def on_validation_epoch_start(self) -> None:
        self._held_out = []

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        vectors = self._embed(batch)
        self._held_out.append((vectors, torch.full_like(vectors.query_hash, batch["set"])))

    def on_validation_epoch_end(self) -> None:
        everyone = Triplets.join(self._of_all_ranks(Triplets.join([vectors for vectors, _ in self._held_out])))
        sets = torch.cat(self.gather_rows(torch.cat([numbers for _, numbers in self._held_out])))
        self._held_out = []
        means: dict[str, list[float]] = {"loss": [], "accuracy": [], "mrr": []}
        for number, name in enumerate(self.trainer.datamodule.validation_rows.names):  # type: ignore[attr-defined]
            rows = everyone.of((sets == number) & everyone.counted)
            if len(rows) == 0:
                continue
            places = rows.places()
            for metric, values in (
                ("loss", self.loss(rows)),
                ("accuracy", (places == 1).float()),
                ("mrr", 1 / places.float()),
            ):
                means[metric].append(values.mean().item())
                self.log(f"validation/{metric}/{name}", means[metric][-1])
        for metric, of_sets in means.items():
            self.log(f"validation/{metric}", sum(of_sets) / max(len(of_sets), 1), prog_bar=metric != "mrr")
        if self.sts is not None:
            self.log("validation/sts", self._similarity(self.sts), prog_bar=True)

    def _embed(self, batch: dict[str, Any]) -> Triplets:
        """The vectors of this rank's batch."""
        return self._triplets(batch, self.embed(batch["queries"]), self.embed(batch["documents"]))

    def _triplets(self, batch: dict[str, Any], queries: Tensor, documents: Tensor) -> Triplets:
        return Triplets(
            queries,
            documents,
            batch["owner"],
            batch["query_hash"],
            batch["document_hash"],
            batch["counted"].bool(),
            batch["scores"],
        )

    def _embed_depths(self, batch: dict[str, Any]) -> list[Triplets]:
        """The same at each of ``layers``, then of the whole decoder."""
        if not self._depths:
            return [self._embed(batch)]
        queries, documents = (self.embed(batch[texts], self._depths) for texts in ("queries", "documents"))
        return [
            self._triplets(batch, *vectors)
            for vectors in zip(queries.unbind(dim=1), documents.unbind(dim=1), strict=True)
        ]

    def _of_all_ranks(self, own: Triplets) -> list[Triplets]:
        """Each rank's batch."""
        vectors = self.gather_rows(torch.cat([own.queries, own.documents]))
        of_queries = torch.stack([own.query_hash, own.counted.long()], dim=1)
        of_documents = torch.stack([own.document_hash, own.owner], dim=1)
        return [
            Triplets(
                queries=both[: len(queries)],
                documents=both[len(queries) :],
                owner=documents[:, 1],
                query_hash=queries[:, 0],
                document_hash=documents[:, 0],
                counted=queries[:, 1].bool(),
                scores=scores,
            )
            for both, queries, documents, scores in zip(
                vectors,
                self.gather_rows(of_queries),
                self.gather_rows(of_documents),
                self.gather_rows(own.scores),
                strict=True,
            )
        ]

    def _similarity(self, task: StsPairs) -> float:
        """The task's metric; each rank encodes its share of the sentences."""
        first, second, scores = task.pairs()
        sentences = [*first, *second]
        share = -(-len(sentences) // self.trainer.world_size)
        # all ranks run equally many batches, as sharded weights need
        filled = sentences + sentences[-1:] * (share * self.trainer.world_size - len(sentences))
        encoder = Encoder(
            self.backbone,
            pooling=self.pooling,
            max_length=self.max_length,
            prompt=self.prompt(self.encoder_separator),
            padding_side=self.padding_side,
        )
        begin = self.global_rank * share
        with self.trainer.precision_plugin.forward_context():
            own = encoder.encode(filled[begin : begin + share], instruction=task.instruction)
        everyone = self.gather_rows(torch.from_numpy(own).to(self.device))
        vectors = torch.cat(everyone)[: len(sentences)].cpu().numpy()
        return task.rate(vectors[: len(first)], vectors[len(first) :], scores)[task.metric]


def _numbers(layers: Sequence[int | float], count: int) -> list[int]:
    """Shares of ``count`` layers as numbers of them."""
    numbers = [number_of_layers(layer, count, "stage.layers") for layer in layers]
    if max(numbers) >= count or len(set(numbers)) < len(numbers):
        raise L2VError(
            f"stage.layers={list(layers)}: expected different numbers below {count}, that of all layers, which are "
            f"always trained, or shares of it; found {numbers}"
        )
    return numbers
