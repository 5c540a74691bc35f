"""Compare an encoder with its own vectors: ``l2v verify encoder=exported url=http://localhost:8000/v1``."""

import os
from typing import Annotated

from annotated_types import Gt, Lt
from omegaconf import DictConfig

from l2v import config as configs
from l2v.errors import L2VError
from l2v.progress import say


def main(composed: DictConfig) -> None:
    """Check the config, get both sides' vectors, compare; exits with 1 where they differ."""
    config = configs.plain(composed)
    tolerance = configs.check_value(Annotated[float, Gt(0), Lt(1)] | None, config["tolerance"], "tolerance")
    settings = configs.take_encoder(config)

    from l2v.encoders.encoder import Encoder
    from l2v.encoders.load import load_encoder
    from l2v.export.vectors import TEXTS, TOLERANCE, VECTORS_FILE, Carried, read_vectors_of
    from l2v.export.verify import compare, likely_cause, served_vectors
    from l2v.models.settings import EncoderSettings

    settings.parts()  # of what is not there this says that it is encoder=
    carried = read_vectors_of(settings)
    if config["url"] is not None:
        key = os.environ.get(variable := config["key_variable"] or "")
        if variable and key is None:
            raise L2VError(f"key_variable={variable}: no such environment variable")
        if carried is None:
            carried = Carried(list(TEXTS), Encoder.from_pretrained(settings).encode(list(TEXTS)), TOLERANCE)
        name = config["served_name"] or settings.folder.name
        served, who = served_vectors(config["url"], name, carried.texts, key), config["url"]
    else:
        if carried is None:
            raise L2VError(
                f"encoder={settings.source}: it carries no {VECTORS_FILE}, which `l2v export` writes; or name a url="
            )
        served, who = load_encoder(settings).encode(carried.texts), "what is loaded here"
    texts, own = carried.texts, carried.vectors
    tolerance = tolerance or carried.tolerance
    found = compare(own, served)
    told = f"{len(texts)} texts, cosines {min(found.cosines):.6f} to {max(found.cosines):.6f}"
    if not found.agrees(tolerance):
        if config["url"] is None:  # what is compared is the encoder as it was saved, however it is used here
            settings = EncoderSettings(
                settings.source, revision=settings.revision, trust_remote_code=settings.trust_remote_code
            )
        cause = likely_cause(settings, texts, own, served, tolerance)
        raise L2VError(f"{who}: other vectors than the encoder's ({told}); {cause}")
    scaled = "; they are scaled to length 1" if abs(found.served_length - 1) < 1e-3 < abs(found.own_length - 1) else ""
    say(f"{who}: the encoder's own vectors ({told}){scaled}")


def start() -> None:
    """The program, with the arguments of this process."""
    configs.run(main, name="verify")


if __name__ == "__main__":
    start()
