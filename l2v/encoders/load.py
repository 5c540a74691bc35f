"""An encoder from its description."""

from dataclasses import asdict

import torch

from l2v.encoders.encoder import Encoder
from l2v.encoders.settings import EncoderSettings
from l2v.encoders.text_encoder import TextEncoder


def load_encoder(
    settings: EncoderSettings, *, with_head: bool = False, device: str | torch.device | None = None
) -> TextEncoder:
    """Load the encoder that settings describe.

    Args:
        settings: which, and how it is used.
        with_head: load the output head too, for masked-token prediction.
        device: None: a GPU where there is one.

    Raises:
        L2VError: nothing there, or not a decoder, or its attention fails the proof.
    """
    return Encoder.from_pretrained(**asdict(settings), with_head=with_head, device=device)
