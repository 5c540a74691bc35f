"""Distillation: the vectors of a teacher, on texts that nobody has labelled."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

import lightning as L
import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from l2v.data.collate import PaddedTexts, Row
from l2v.data.order import seed_of
from l2v.data.tokens import text_rows
from l2v.distillation.taught import TaughtRows, TaughtTexts
from l2v.errors import L2VError
from l2v.losses.triplets import cosines
from l2v.losses.vectors import direction_loss, neighbour_loss
from l2v.models.settings import Sharding
from l2v.stages.contrastive import ContrastiveStage

if TYPE_CHECKING:
    from l2v.runs.initialization import Initialization
    from l2v.training.settings import Training


class TaughtBatch(PaddedTexts):
    """Texts padded to the longest, and ``teacher`` float32 (batch, size): the teacher's vectors of them."""

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        return {**super().__call__(rows), "teacher": torch.tensor([row["teacher"].tolist() for row, _ in rows])}


class Distillation(ContrastiveStage):
    r"""Brings a student's vectors to those of a teacher, and its neighbours to the teacher's.

    .. math:: L_i = w \, (1 - \cos(P s_i, t_i)) + v \, KL(p^t_i \| p^s_i)

    :math:`P` is a linear projection to the teacher's size, which is trained beside the student and stays in the
    checkpoint; where sizes are equal there is none. The second part compares the softmax of the cosines with all other
    texts of the batch, on all ranks, and needs no projection: it shapes the space that the encoder is used in.

    Args:
        max_length: tokens a text.
        direction_weight: :math:`w`.
        neighbour_weight: :math:`v`.
        temperature: of the student's cosines.
        teacher_temperature: of the teacher's.
        settings: see :class:`~l2v.stages.contrastive.ContrastiveStage`.
    """

    fewest_rows = 2  # the other texts of a batch are the neighbours
    reads = TaughtTexts
    reads_what = "texts with a teacher's vectors, as data=taught data.train.files=my.txt data.train.vectors=vectors has"

    def __init__(
        self,
        *,
        max_length: Annotated[int, Ge(1)] = 128,
        direction_weight: Annotated[float, Ge(0)] = 1.0,
        neighbour_weight: Annotated[float, Ge(0)] = 1.0,
        temperature: Annotated[float, Gt(0)] = 0.05,
        teacher_temperature: Annotated[float, Gt(0)] = 0.05,
        **settings: Any,
    ) -> None:
        super().__init__(max_length=max_length, **settings)
        if not direction_weight and not neighbour_weight:
            raise L2VError("stage.direction_weight and stage.neighbour_weight are both 0: nothing would be learned")
        self.direction_weight = direction_weight
        self.neighbour_weight = neighbour_weight
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        self.projection: nn.Module = nn.Identity()

    def check(self, *, encoder: bool, adapter: bool, sharding: Sharding, sources: Sequence[object]) -> None:
        super().check(encoder=encoder, adapter=adapter, sharding=sharding, sources=sources)
        if sharding in ("weights", "zero3"):
            raise L2VError(
                f"stage={self.name}: its projection is not split over processes; choose trainer=ddp, gpu or "
                "deepspeed_zero2"
            )

    def data(self, training: "Training", start: "Initialization", device: torch.device | str) -> L.LightningDataModule:
        module = super().data(training, start, device)
        size, hidden = cast(TaughtTexts, training.train).dimension(), self.backbone.hidden_size
        if self.direction_weight and size != hidden:
            projection = nn.Linear(hidden, size, bias=False)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(self.seed, "projection"))
                nn.init.orthogonal_(projection.weight)
            self.projection = projection
        return module

    def rows(self, source: TaughtTexts, *, show: bool) -> TaughtRows:
        tokens = text_rows(source, self.backbone.tokenizer, self.max_length, prompt=self.prompt(), show=show)
        return TaughtRows(tokens, source)

    def collator(self, *, training: bool) -> TaughtBatch:
        return TaughtBatch(self.backbone.tokenizer.pad_token_id, self.padding_side, views=1)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        vectors, teacher = self.embed(self.texts_of(batch)), batch["teacher"]
        texts, teachers = torch.cat(self.gather_rows(vectors)), torch.cat(self.gather_rows(teacher))
        loss = self._losses(vectors, texts, teacher, teachers, first=self.global_rank * len(vectors)).mean()
        self.log_loss(loss)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.keep(batch["key"], self.embed(self.texts_of(batch)), batch["teacher"])

    def on_validation_epoch_end(self) -> None:
        sums = dict.fromkeys(("loss", "cosine", "agreement", "agreeing", "count"), 0.0)
        for vectors, teacher in self.kept():
            number = len(vectors)
            sums["count"] += number
            sums["loss"] += self._losses(vectors, vectors, teacher, teacher).sum().item()
            if self.direction_weight:
                sums["cosine"] += (1 - self._directions(vectors, teacher)).sum().item()
            if number > 2:  # one pair has no correlation
                first, second = torch.triu_indices(number, number, offset=1, device=vectors.device)
                both = torch.stack([cosines(of, of)[first, second] for of in (vectors, teacher)])
                sums["agreement"] += torch.corrcoef(both)[0, 1].item() * number
                sums["agreeing"] += number
        self.log("validation/loss", sums["loss"] / sums["count"], prog_bar=True)
        if self.direction_weight:
            self.log("validation/cosine", sums["cosine"] / sums["count"])
        if sums["agreeing"]:
            # Pearson correlation of the cosines of all pairs in a batch, the teacher's and the student's
            self.log("validation/agreement", sums["agreement"] / sums["agreeing"], prog_bar=True)

    def _losses(self, vectors: Tensor, texts: Tensor, teacher: Tensor, teachers: Tensor, first: int = 0) -> Tensor:
        """Of these texts, whose row in ``texts`` is ``first``."""
        losses = vectors.new_zeros(len(vectors))
        if self.direction_weight:
            losses = losses + self.direction_weight * self._directions(vectors, teacher)
        if self.neighbour_weight:
            losses = losses + self.neighbour_weight * neighbour_loss(
                vectors,
                texts,
                teacher,
                teachers,
                temperature=self.temperature,
                teacher_temperature=self.teacher_temperature,
                first=first,
            )
        return losses

    def _directions(self, vectors: Tensor, teacher: Tensor) -> Tensor:
        with torch.autocast(vectors.device.type, enabled=False):
            return direction_loss(self.projection(vectors), teacher)
