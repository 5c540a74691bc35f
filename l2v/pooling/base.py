"""What a pooling is: token states go in, one vector a text comes out."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn


class Pooling(nn.Module):
    """From token states to one vector a text. A pooling of one's own is a subclass, named in a config by its path.

    A pooling with weights makes them in :meth:`build`; contrastive stages train them, and they are saved with the
    encoder and exported. What ``__init__`` took has to come back from :meth:`settings`, so that a saved encoder can
    make the pooling anew.

    Example:
        >>> from l2v import Encoder, Pooling
        >>> class Maximum(Pooling):
        ...     def forward(self, hidden, pool_mask, attention_mask):
        ...         outside = pool_mask.unsqueeze(-1) == 0
        ...         return hidden.float().masked_fill(outside, float("-inf")).amax(dim=1)
        >>> encoder = Encoder.from_pretrained("model", pooling=Maximum())
        >>> encoder.encode(["A dog barks."]).shape == (1, encoder.dimension)
        True
    """

    def build(self, hidden_size: int) -> None:
        """Make the weights, once the size of a token state is known; default: there are none."""

    def forward(
        self,
        hidden: Float[Tensor, "batch length hidden"],
        pool_mask: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
    ) -> Float[Tensor, "batch hidden"]:
        """Vectors in float32, not normalised.

        Args:
            hidden: token states, in the dtype of the model.
            pool_mask: 1 for each token of the text itself, without its instruction: at least one a row.
            attention_mask: 1 for each token that is no padding, which may be on either side.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """The arguments that ``__init__`` was given, as JSON holds them."""
        return {}
