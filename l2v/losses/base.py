"""What a contrastive stage asks of its loss."""

from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from l2v.losses.triplets import Triplets


@runtime_checkable
class Loss(Protocol):
    """A loss of queries and documents, as ``stage.loss`` names it; one of your own inherits from this class.

    A loss with weights is a ``torch.nn.Module`` too: its weights are trained and saved in checkpoints, and stay out of
    the encoder.

    Attributes:
        needs_scores: of a teacher, in the data; rows without any are refused.
    """

    needs_scores: ClassVar[bool] = False

    def __call__(self, batch: Triplets, rows: slice = slice(None)) -> Float[Tensor, " rows"]:
        """The losses of these queries.

        Args:
            batch: of all ranks.
            rows: the queries to score, as a rank scores its own only.
        """
        ...

    def check(self, hidden_size: int) -> None:
        """Refuse settings that do not go with vectors of this size, before the first step.

        Raises:
            L2VError: naming the override.
        """
        return None
