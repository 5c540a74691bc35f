"""Unsupervised contrastive training: the same text twice, through dropout (SimCSE; paper, section 2.1)."""

import math
from typing import Annotated, Any, cast

import datasets
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from l2v.data.collate import PaddedTexts
from l2v.data.order import seed_of
from l2v.data.texts import TextSource
from l2v.data.tokens import text_rows
from l2v.errors import L2VError
from l2v.kernels.random_state import kept_random_state
from l2v.losses.info_nce import info_nce
from l2v.stages.contrastive import ContrastiveStage

_ROUNDING = 1e-5
"""By so much may the vectors of two equal texts differ in float32, in two passes."""


class SimCSE(ContrastiveStage):
    """Two views of each text by independent dropout; the other texts of the batch, on all ranks, are negatives.

    Both views go through the model in one forward pass: every row has its own dropout mask.

    Args:
        max_length: tokens a text.
        temperature: of the softmax over cosines; 0.05 is the paper's scale of 20.
        settings: see :class:`~l2v.stages.contrastive.ContrastiveStage`.
    """

    fewest_rows = 2  # the other texts of a batch are the negatives

    def __init__(
        self,
        *,
        max_length: Annotated[int, Ge(1)] = 128,
        temperature: Annotated[float, Gt(0)] = 0.05,
        **settings: Any,
    ) -> None:
        super().__init__(max_length=max_length, **settings)
        self.temperature = temperature
        self._views_differ = False

    def rows(self, source: TextSource, *, show: bool) -> datasets.Dataset:
        return text_rows(source, self.backbone.tokenizer, self.max_length, prompt=self.prompt(), show=show)

    def collator(self, *, training: bool) -> PaddedTexts:
        return PaddedTexts(self.backbone.tokenizer.pad_token_id, self.padding_side, views=2)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        first, second = self._views(batch)
        if not self._views_differ:
            self._check_views(first.detach(), second.detach())
        documents = second
        if self.trainer.world_size > 1:  # the ranks have equal numbers of texts
            documents = cast(Tensor, self.all_gather(second, sync_grads=True)).flatten(0, 1)
        loss = info_nce(first, documents, self.temperature, first_positive=self.global_rank * len(first))
        self.log_loss(loss)
        return loss

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.backbone.train()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        with kept_random_state(self.device):
            torch.manual_seed(seed_of("validation", batch_idx, self.global_rank))
            self.keep(batch["key"], *self._views(batch))

    def on_validation_epoch_end(self) -> None:
        sums = dict.fromkeys(("loss", "correct", "alignment", "repulsion", "pairs", "count"), 0.0)
        for batch in self.kept():
            first, second = (F.normalize(views, dim=-1) for views in batch)
            number = len(first)
            distances = torch.pdist(first).square()
            own = torch.arange(number, device=first.device)
            sums["loss"] += info_nce(first, second, self.temperature).item() * number
            sums["correct"] += ((first @ second.T).argmax(dim=1) == own).sum().item()
            sums["alignment"] += (first - second).square().sum().item()
            sums["repulsion"] += torch.exp(-2 * distances).sum().item()
            sums["pairs"] += len(distances)
            sums["count"] += number
        count = sums["count"]
        self.log("validation/loss", sums["loss"] / count, prog_bar=True)
        self.log("validation/accuracy", sums["correct"] / count)
        # Wang and Isola (arXiv 2005.10242): squared distance of the views, and log mean Gaussian potential of texts
        self.log("validation/alignment", sums["alignment"] / count)
        self.log("validation/uniformity", math.log(sums["repulsion"] / sums["pairs"]), prog_bar=True)

    def _views(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Vectors of the two views, (batch, hidden) each."""
        twice = {name: values.repeat(2, 1) for name, values in self.texts_of(batch).items()}
        first, second = self.embed(twice).chunk(2)
        return first, second

    def _has_dropout(self) -> bool:
        return any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in self.backbone.modules())

    def _check_views(self, first: Tensor, second: Tensor) -> None:
        """Two views that are equal make a loss without information."""
        distance = (F.normalize(first, dim=-1) - F.normalize(second, dim=-1)).norm(dim=-1)
        if (distance > _ROUNDING).all():
            self._views_differ = True
        elif self.trainer.global_step > self.warmup_steps or self.max_steps == 1 or not self._has_dropout():
            # before, a new adapter adds nothing or next to nothing, and so does its dropout
            raise L2VError(
                f"the two views of a text are the same (distance {distance.min():.1e}): dropout does not act; raise "
                "stage.attention_dropout or adapter.lora.dropout, or choose model.attn_implementation=eager"
            )
