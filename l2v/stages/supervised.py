"""Supervised contrastive training: queries, their positives and hard negatives (paper, section 4 and appendix G)."""

from typing import Annotated, Any

import torch
from annotated_types import Ge
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
from l2v.stages.contrastive import ContrastiveStage
from l2v.text.prompts import SEPARATOR


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
        **settings: Any,
    ) -> None:
        super().__init__(max_length=max_length, **settings)
        self.loss = loss
        self.separator = separator
        self.encoder_separator = encoder_separator
        self.negatives = negatives
        self.sts = sts if sts is not None and sts.file is not None else None
        # vectors of the validation's batches so far, and the number of each query's set
        self._held_out: list[tuple[Triplets, Tensor]] = []
        if self.sts is not None:
            self.sts.pairs()  # a broken line is found before the model is loaded

    def attach(self, backbone: Backbone, seed: int) -> None:
        super().attach(backbone, seed)
        self.loss.check(backbone.hidden_size)

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
        parts = self._of_all_ranks(self._embed(batch))
        begin = sum(len(part) for part in parts[: self.global_rank])
        own = slice(begin, begin + len(parts[self.global_rank]))
        everyone = Triplets.join(parts)
        losses = self.loss(everyone, own)[everyone.counted[own]]
        # the mean over the queries of all ranks: DDP averages the ranks' losses
        loss = losses.sum() / everyone.counted.sum().clamp(min=1) * self.trainer.world_size
        self.log_loss(loss)
        return loss

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
        return Triplets(
            self.embed(batch["queries"]),
            self.embed(batch["documents"]),
            batch["owner"],
            batch["query_hash"],
            batch["document_hash"],
            batch["counted"].bool(),
            batch["scores"],
        )

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
