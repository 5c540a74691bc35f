"""The texts of training data of any kind."""

from collections.abc import Iterator
from typing import Any

from l2v.data.texts import TextSource
from l2v.errors import L2VError
from l2v.progress import track


def training_texts(source: Any, *, show: bool = False) -> Iterator[str]:
    """The texts of training data of any kind: texts, queries and documents, or labelled sentences.

    Of triplets the rows that are held out are among them, and instructions are not.

    Raises:
        L2VError: it is none of these.
    """
    from l2v.data.triplets.options import TripletMix
    from l2v.data.triplets.reading import triplet_texts
    from l2v.probing.words import WordSource

    if isinstance(source, TripletMix):
        return triplet_texts(source, show=show)
    if isinstance(source, WordSource):
        return track((" ".join(sentence.words) for sentence in source.sentences()), _READING, show=show)
    if isinstance(source, TextSource):
        return track(source.texts(), _READING, show=show)
    raise L2VError(f"data.train: expected texts, triplets or labelled words, found {type(source).__name__}")


_READING = "reading the training texts"
