"""A teacher's vectors of the same texts: where each one points, and which others are near to it."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from l2v.losses.triplets import cosines


def direction_loss(vectors: Float[Tensor, "rows size"], teacher: Float[Tensor, "rows size"]) -> Float[Tensor, " rows"]:
    r"""How far a vector points elsewhere than the teacher's of the same text: :math:`1 - \cos(s_i, t_i)`.

    Of vectors of length 1 it is half of their squared distance, which sentence-transformers' ``MSELoss`` takes the mean
    of.
    """
    return 1 - F.cosine_similarity(vectors, teacher, dim=-1)


def neighbour_loss(
    vectors: Float[Tensor, "rows hidden"],
    texts: Float[Tensor, "texts hidden"],
    teacher: Float[Tensor, "rows size"],
    teachers: Float[Tensor, "texts size"],
    *,
    temperature: float,
    teacher_temperature: float,
    first: int = 0,
) -> Float[Tensor, " rows"]:
    r"""How differently a text's neighbours are weighed: :math:`KL(p^t_i \| p^s_i)` over the other texts of the batch.

    :math:`p^t_i` is the softmax of the teacher's cosines of text :math:`i` and the others over :math:`\tau_t`, and
    :math:`p^s_i` that of the student's over :math:`\tau`. Sizes of vectors need not be equal.

    Args:
        vectors: of this rank's texts.
        texts: of the texts of all ranks.
        teacher: of this rank's texts, by the teacher.
        teachers: of the texts of all ranks, by the teacher.
        temperature: tau, above 0.
        teacher_temperature: tau_t, above 0.
        first: the row of ``texts`` where this rank's begin.
    """
    itself = torch.arange(len(vectors), device=vectors.device)[:, None] + first == torch.arange(
        len(texts), device=vectors.device
    )
    found = (cosines(vectors, texts) / temperature).masked_fill(itself, -torch.inf).log_softmax(dim=1)
    wanted = (cosines(teacher, teachers) / teacher_temperature).masked_fill(itself, -torch.inf).log_softmax(dim=1)
    return (wanted.exp() * (wanted - found).masked_fill(itself, 0)).sum(dim=1)
