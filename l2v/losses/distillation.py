"""A teacher's scores of each query's documents, beside InfoNCE or alone."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor

from l2v.losses.contrastive import Contrastive
from l2v.losses.triplets import Triplets, cosines


@dataclass(frozen=True)
class Distillation(Contrastive):
    r"""What a teacher thinks of a query's own documents: its positive and its hard negatives.

    .. math:: L_i = \lambda \, L_i^{\text{InfoNCE}} + w \, L_i^{\text{teacher}}

    With ``kl`` the second part is :math:`KL(p^{t} \| p^{s})`, where :math:`p^{t}` is the softmax of the teacher's
    scores over :math:`\tau_t` and :math:`p^{s}` that of the cosines over :math:`\tau` (as KaLM-Embedding-V2,
    arXiv 2506.20923). With ``margin_mse`` it is the mean over the negatives of
    :math:`((s_{+} - s_{-}) - (t_{+} - t_{-}))^2`, of cosines as they are (Margin-MSE, arXiv 2010.02666).

    A document without a score is left out. A query without two scored documents has InfoNCE only.

    Attributes:
        kind: what is compared: distributions or differences.
        teacher_temperature: :math:`\tau_t`; that of the teacher's training, for cosines.
        weight: :math:`w`.
        contrastive_weight: :math:`\lambda`; 0: the teacher alone.
    """

    kind: Literal["kl", "margin_mse"] = "kl"
    teacher_temperature: Annotated[float, Gt(0)] = 0.02
    weight: Annotated[float, Gt(0)] = 1.0
    contrastive_weight: Annotated[float, Ge(0)] = 1.0

    needs_scores: ClassVar[bool] = True

    def _of_size(self, queries: Tensor, documents: Tensor, batch: Triplets, rows: slice) -> Tensor:
        scores = cosines(queries[rows], documents)
        own = batch.owner == torch.arange(len(batch), device=queries.device)[rows, None]
        known = own & ~batch.scores.isnan()
        learned = self._kl(scores, batch, known) if self.kind == "kl" else self._margins(scores, batch, known, rows)
        if not self.contrastive_weight:
            return self.weight * learned
        return self.contrastive_weight * super()._of_size(queries, documents, batch, rows) + self.weight * learned

    def _kl(self, scores: Tensor, batch: Triplets, known: Bool[Tensor, "rows documents"]) -> Float[Tensor, " rows"]:
        # a row without a score has one candidate, which both are sure of
        known = known | (~known.any(dim=1, keepdim=True) & _first(known))
        teacher = (batch.scores.nan_to_num() / self.teacher_temperature).expand_as(scores)
        wanted = teacher.masked_fill(~known, -torch.inf).log_softmax(dim=1)
        found = (scores / self.temperature).masked_fill(~known, -torch.inf).log_softmax(dim=1)
        return (wanted.exp() * (wanted - found).masked_fill(~known, 0)).sum(dim=1)

    def _margins(
        self, scores: Tensor, batch: Triplets, known: Bool[Tensor, "rows documents"], rows: slice
    ) -> Float[Tensor, " rows"]:
        count = len(batch)
        place = torch.arange(count, device=scores.device)[rows, None]
        teacher = batch.scores.nan_to_num()
        gap = (scores.gather(1, place) - scores) - (teacher[place] - teacher)
        is_hard = torch.arange(len(teacher), device=scores.device) >= count
        compared = known & is_hard & known.gather(1, place)
        return gap.square().masked_fill(~compared, 0).sum(dim=1) / compared.sum(dim=1).clamp(min=1)


def _first(like: Tensor) -> Tensor:
    return torch.arange(like.shape[1], device=like.device) == 0
