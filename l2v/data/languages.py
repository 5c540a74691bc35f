"""Texts in several languages, from a user's files or from Wikipedia, as one mix."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Literal

from annotated_types import Ge

from l2v.data.order import evenly
from l2v.data.readers import AS_USUAL, Reading
from l2v.data.text_mix import TextMix
from l2v.data.texts import FileTexts, TextSource
from l2v.data.wikipedia import Wikipedia
from l2v.errors import L2VError

Part = Literal["train", "held_out"]


@dataclass(frozen=True)
class TextPart:
    """A set of texts without ``held_out`` evenly spaced ones, or these.

    Raises:
        L2VError: they leave none to train on.
    """

    source: TextSource
    part: Part
    held_out: int
    override: str
    """What an error names."""

    def __post_init__(self) -> None:
        first = sum(1 for _ in islice(self.source.texts(), self.held_out + 1))
        if first <= self.held_out:
            raise L2VError(
                f"{self.override}: {first} text(s), and data.held_out={self.held_out} of them validate; lower it"
            )

    def texts(self) -> Iterator[str]:
        chosen = set(evenly(sum(1 for _ in self.source.texts()), self.held_out))
        held_out = self.part == "held_out"
        return (text for number, text in enumerate(self.source.texts()) if (number in chosen) == held_out)

    def fingerprint(self) -> str:
        return f"part:{self.part}:{self.held_out}:{self.source.fingerprint()}"


def language_texts(
    *,
    part: Part,
    files: dict[str, str | list[str]] | None = None,
    validation_files: dict[str, str | list[str]] | None = None,
    languages: list[str] | None = None,
    held_out: Annotated[int, Ge(1)] = 100,
    articles: Annotated[int, Ge(2)] = 10_000,
    unit: Literal["article", "sentence"] = "article",
    wikipedia: str = "wikimedia/wikipedia",
    dump: str = "20231101",
    revision: str | None = None,
    column: str = "text",
    reading: Reading = AS_USUAL,
    shares: dict[str, float] | None = None,
    alpha: float = 1.0,
) -> TextMix:
    """A set of texts for each language: of the files that are named for it, or of its Wikipedia.

    Args:
        part: train or held_out.
        files: name of a set -> a path, a pattern, or a list of them.
        validation_files: the same, to validate on; None: some texts of each set are held out.
        languages: of the Wikipedias to read.
        held_out: texts, or articles, of each set that validate, evenly spaced.
        articles: of each Wikipedia, those that train and those that validate together.
        unit: of Wikipedia: whether a text is an article or a sentence.
        wikipedia: the data set of the hub with all of them.
        dump: its date, as the data set writes it.
        revision: branch or commit of the data set.
        column: of .jsonl, .csv, .tsv and .parquet.
        reading: how rows of files are read that leave a choice.
        shares: see :class:`~l2v.data.text_mix.TextMix`.
        alpha: likewise.

    Raises:
        L2VError: no set is named, or one twice; a file is missing or holds too little.
    """
    if not files and not languages:
        raise L2VError("data.files={de: de/*.txt, en: en/*.txt} or data.languages=[de,en]: give one or both")
    sets: dict[str, TextSource] = {}
    of_validation = part == "held_out" and validation_files is not None
    key = "validation_files" if of_validation else "files"
    for name, paths in ((validation_files if of_validation else files) or {}).items():
        source = FileTexts(paths, column, f"data.{key}.{name}", reading, "data.train.column")
        whole = validation_files is not None
        sets[name] = source if whole else TextPart(source, part, held_out, f"data.files.{name}")
    for language in languages or []:
        if language in sets:
            raise L2VError(f"data.languages: {language} is named twice, or in data.files too; name each set once")
        sets[language] = Wikipedia(
            language,
            part,
            unit,
            articles=articles,
            held_out=held_out,
            hub=wikipedia,
            dump=dump,
            revision=revision,
        )
    if part == "train":
        return TextMix(sets, shares, alpha)
    return TextMix(sets, override="data.validation")
