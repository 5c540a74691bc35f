"""Whether an encoder that somebody serves gives its own vectors, and what is likely to be wrong where it does not."""

import itertools
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2v.encoders.encoder import Encoder
from l2v.encoders.saved_settings import settings_of
from l2v.encoders.texts import unit
from l2v.errors import L2VError, first_line
from l2v.models.settings import EncoderSettings
from l2v.pooling import POOLINGS
from l2v.text.prompts import TEXT

Vectors = NDArray[np.float32]
_TIMEOUT = 120
"""Seconds."""
_CAUSES = {
    "attention": "a token does not see those after it: the server runs the model as a causal one and does not read "
    "`is_causal: false` of its config.json",
    "pooling": "vectors are pooled by {pooling}, and not by {own}",
    "template": "the template {own!r} is missing around the text",
}


@dataclass(frozen=True)
class Comparison:
    """Served vectors beside an encoder's own."""

    cosines: tuple[float, ...]
    """Of each text."""
    served_length: float
    """The mean of the served vectors' lengths."""
    own_length: float

    def agrees(self, tolerance: float) -> bool:
        return min(self.cosines) >= 1 - tolerance


def compare(own: Vectors, served: Vectors) -> Comparison:
    """Compare vectors (texts, dimension) of the same texts."""
    return Comparison(tuple(cosines(own, served)), float(_lengths(served).mean()), float(_lengths(own).mean()))


def likely_cause(
    settings: EncoderSettings, texts: Sequence[str], own: Vectors, served: Vectors, tolerance: float
) -> str:
    """What would make the encoder give the vectors that were served: one change, or two at once.

    Args:
        settings: of the encoder. It is loaded, once with each attention.
        texts: that were given to both.
        own: vectors of the encoder.
        served: that differ from them.
        tolerance: as in :meth:`Comparison.agrees`.
    """
    if served.shape[1] < own.shape[1]:
        size = served.shape[1]
        if compare(own[:, :size], served).agrees(tolerance):
            return f"vectors are cut to their first {size} of {own.shape[1]} dimensions"
        return f"the vectors have {size} dimensions, and the encoder's {own.shape[1]}: it is another model"
    if served.shape[1] > own.shape[1]:
        return f"the vectors have {served.shape[1]} dimensions, and the encoder's {own.shape[1]}: it is another model"
    nearest = (unit(served) @ unit(own).T).argmax(axis=1)
    if sorted(nearest.tolist()) == list(range(len(texts))) and compare(own[nearest], served).agrees(tolerance):
        return f"the vectors come in another order: {nearest.tolist()}"
    for told, vectors in _variants(settings, texts):
        if compare(vectors, served).agrees(tolerance):
            return told
    return (
        "no cause that is known here (attention, pooling, template, order, size, two at once); what is left: a prompt "
        "that the server adds, other tokens at the ends of a text, other weights"
    )


def _variants(settings: EncoderSettings, texts: Sequence[str]) -> Iterator[tuple[str, Vectors]]:
    """What the encoder gives when it is used otherwise, and how that is told: single changes first."""
    encoder = Encoder.from_pretrained(settings)
    saved, place = settings_of(settings.parts())
    saved = settings.usage(saved) | {"pooling": encoder.pooling, "attention": encoder.backbone.attention}
    single: list[tuple[str, dict[str, Any]]] = []
    if encoder.backbone.attention == "bidirectional" and settings.kind == "decoder":
        single.append((_CAUSES["attention"], {"attention": "causal"}))
    if isinstance(encoder.pooling, str):
        for pooling in POOLINGS:
            if pooling != encoder.pooling:
                told = _CAUSES["pooling"].format(pooling=pooling, own=encoder.pooling)
                single.append((told, {"pooling": pooling}))
    if encoder.prompt.template != TEXT:
        single.append((_CAUSES["template"].format(own=encoder.prompt.template), {"template": None}))
    pairs = [
        (f"{first[0]}; and {second[0]}", {**first[1], **second[1]})
        for first, second in itertools.combinations(single, 2)
        if first[1].keys() != second[1].keys()
    ]
    backbones = {encoder.backbone.attention: encoder.backbone}
    for told, changes in [*single, *pairs]:
        attention = changes.get("attention", encoder.backbone.attention)
        if attention not in backbones:
            backbones[attention] = Encoder.from_pretrained(replace(settings, attention=attention)).backbone
        used = Encoder.with_settings(backbones[attention], {**saved, **changes}, place)
        yield told, used.encode(list(texts))


def served_vectors(url: str, model: str, texts: Sequence[str], key: str | None = None) -> Vectors:
    """Vectors (texts, dimension) of an OpenAI-compatible endpoint (``/v1/embeddings``).

    Args:
        url: of the endpoint, or of what it lies under (``http://localhost:8000/v1``).
        model: its name there.
        texts: one request has all of them.
        key: sent as a bearer token.

    Raises:
        L2VError: nothing answers there, or it answers otherwise.
    """
    address = url if url.rstrip("/").endswith("/embeddings") else f"{url.rstrip('/')}/embeddings"
    if not address.startswith(("http://", "https://")):
        raise L2VError(f"url={url}: expected http:// or https://")
    body = json.dumps({"model": model, "input": list(texts), "encoding_format": "float"}).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        request = urllib.request.Request(address, body, headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            given = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        said = " ".join(error.read(300).decode(errors="replace").split())
        raise L2VError(f"url={address}: {error}: {said}") from None
    except (OSError, ValueError) as error:
        raise L2VError(f"url={address}: {first_line(error)}") from None
    try:
        rows = sorted(given["data"], key=lambda row: row["index"])
        vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
    except (KeyError, TypeError, ValueError):
        raise L2VError(f"url={address}: not an answer of an embeddings endpoint (data, index, embedding)") from None
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise L2VError(f"url={address}: expected {len(texts)} vectors of one size, found shape {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise L2VError(f"url={address}: a vector has numbers that are not finite")
    return vectors


def cosines(a: Vectors, b: Vectors) -> list[float]:
    """Of the rows of two matrices (texts, dimension); of different sizes: 0."""
    if a.shape != b.shape:
        return [0.0] * len(a)
    return (unit(a) * unit(b)).sum(axis=1).tolist()


def _lengths(vectors: Vectors) -> NDArray[np.floating[Any]]:
    return np.linalg.norm(vectors, axis=1)
