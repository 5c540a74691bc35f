"""An exported adapter in sentence-transformers. Needs that package, so nothing in l2v imports this module."""

from typing import Any

try:
    from sentence_transformers.sentence_transformer.modules import Transformer
except ModuleNotFoundError:  # before version 6
    from sentence_transformers.models import Transformer  # type: ignore[no-redef]

from l2v.models.bidirectional import set_attention


class BidirectionalTransformer(Transformer):
    """sentence-transformers' own module, attending both ways.

    Where a folder holds an adapter, sentence-transformers reads the config of the base, which is causal, and has no
    setting to change it. So the ``modules.json`` of ``form=adapter`` names this class. With ``trust_remote_code=True``,
    which sentence-transformers asks for before it imports a class of another package, the folder gives the right
    vectors; without it, or without l2v, an error, and never the vectors of causal attention.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        set_attention(self.auto_model, "bidirectional")
