"""An encoder from its description, whichever library it is of."""

from dataclasses import replace

import torch

from l2v.encoders.encoder import Encoder
from l2v.encoders.external import SentenceTransformersEncoder, is_theirs
from l2v.models.loading import load_tokenizer_and_config, state_size
from l2v.models.settings import EncoderSettings
from l2v.text.prompts import CHAT, chat_template

AnyEncoder = Encoder | SentenceTransformersEncoder


def known_dimension(settings: EncoderSettings) -> int | None:
    """The length of a vector, where a model's config tells it without loading the weights."""
    if is_theirs(settings):
        return None
    place = settings.parts().base
    _, config = load_tokenizer_and_config(place, kind=settings.kind, trust_remote_code=settings.trust_remote_code)
    return state_size(config)


def with_template(settings: EncoderSettings) -> EncoderSettings:
    """The settings with the tokenizer's chat template written out, where they ask for it.

    A template is a program, and may write the date: what goes on another day has to go on with what it wrote first.
    """
    if settings.template != CHAT or is_theirs(settings):
        return settings
    place = settings.parts().base
    tokenizer, _ = load_tokenizer_and_config(place, kind=settings.kind, trust_remote_code=settings.trust_remote_code)
    return replace(settings, template=chat_template(tokenizer))


def load_encoder(
    settings: EncoderSettings, *, with_head: bool = False, device: str | torch.device | None = None
) -> AnyEncoder:
    """Load the encoder that settings describe.

    Example:
        >>> from l2v import EncoderSettings, load_encoder
        >>> causal = load_encoder(EncoderSettings("model", attention="causal"), device="cpu")
        >>> causal.encode(["A dog barks."]).dtype
        dtype('float32')

    Args:
        settings: which, and how it is used.
        with_head: load the output head too, for masked-token prediction.
        device: None: a GPU where there is one.

    Raises:
        L2VError: nothing there, or not a decoder, or its attention fails the proof.
    """
    if is_theirs(settings):
        return SentenceTransformersEncoder.from_pretrained(settings, device)
    return Encoder.from_pretrained(settings, with_head=with_head, device=device)
