"""The settings of ``conf/common/encoder.yaml``, which several programs share."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from l2v.config.build import build, construct

if TYPE_CHECKING:
    from l2v.models.settings import EncoderSettings


def take_encoder(config: dict[str, Any]) -> "EncoderSettings":
    """The encoder that a program's config describes; its settings are taken out of ``config``."""
    from l2v.models.settings import EncoderSettings

    settings = {"source": config.pop("encoder")}
    settings |= {field.name: config.pop(field.name) for field in fields(EncoderSettings) if field.name in config}
    settings["pooling"] = build(settings["pooling"], "pooling")
    return construct(EncoderSettings, settings, "")
