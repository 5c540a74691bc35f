"""Where raw text comes from: the hub, a user's files, an installed package.

Each source is a small frozen dataclass with two methods: ``texts()`` yields strings and ``fingerprint()`` says which
bytes they come from, so that what is made of them can be cached.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from l2v.data.files import RECORD_FILES, content, ending, expanded, find, lines
from l2v.data.readers import AS_USUAL, Reading, check_columns, records, text_of
from l2v.errors import L2VError, first_line


class DataSource(Protocol):
    """Where training data come from: texts (:class:`TextSource`) or triplets (``l2v.data.triplets``)."""

    def fingerprint(self) -> str:
        """Which bytes the data come from, and how they are read: part of the key of what is made of them."""
        ...


@runtime_checkable
class TextSource(Protocol):
    """Texts in a fixed order."""

    def texts(self) -> Iterator[str]: ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class HubTexts:
    """A text column of a data set on the Hugging Face hub."""

    path: str
    """owner/name."""
    split: str
    name: str | None = None
    """The configuration, e.g. wikitext-103-raw-v1."""
    column: str = "text"
    revision: str | None = None
    data_files: str | None = None

    def texts(self) -> Iterator[str]:
        for row in load_hub(
            self.path, self.name, self.split, self.revision, self.data_files, columns=[self.column], override="data"
        ):
            if row[self.column]:
                yield text_of(row, self.column, f"data={self.path}", "data.train.column")

    def fingerprint(self) -> str:
        pinned = content_of_local(self.path, self.data_files)
        return f"hub:{self.path}:{self.name}:{self.split}:{self.column}:{self.revision}:{self.data_files}{pinned}"


def content_of_local(path: str, data_files: str | None) -> str:
    """What pins the files of this machine that ``datasets`` reads: those of a folder, or those that are named."""
    place = Path(path).expanduser()
    files = {file for file in place.rglob("*") if file.is_file()} if place.is_dir() else set()
    if data_files is not None:
        named = Path(data_files).expanduser()
        files |= {file for file in (named, *expanded(named)) if file.is_file()}
    return "".join(f":{content([file])}" for file in sorted(files))


@dataclass(frozen=True)
class FileTexts:
    """Local files, perhaps packed: .txt (a text a line), .jsonl, .csv, .tsv or .parquet (a text a row of ``column``).

    Example:
        >>> from l2v import FileTexts
        >>> texts = FileTexts("texts.txt")
        >>> next(texts.texts())
        'A dog barks.'
    """

    files: str | list[str]
    """A path, a glob pattern, or a list of them."""
    column: str = "text"
    override: str = "data.train.files"
    """What an error names."""
    reading: Reading = AS_USUAL
    """How rows are read that leave a choice."""
    column_override: str | None = None
    """What names the column in an error; None: as ``override`` tells."""

    def __post_init__(self) -> None:
        self.paths()

    def paths(self) -> list[Path]:
        """The files: they exist, are not empty, and end in something that can be read."""
        return find(self.files, self.override, [".txt", *RECORD_FILES])

    def texts(self) -> Iterator[str]:
        seen = False
        for path in self.paths():
            for text in self._read(path):
                if text:
                    seen = True
                    yield text
        if not seen:
            raise L2VError(f"{self.override}={self.files}: the file is empty; expected at least one text")

    def _read(self, path: Path) -> Iterator[str]:
        if ending(path) == ".txt":
            yield from lines(path)
            return
        for where, row, problem in records(path, [self.column], self._column_override, self.reading):
            if problem is not None:
                raise L2VError(f"{where}: {problem}")
            if ending(path) == ".parquet" and row[self.column] is None:
                continue
            yield text_of(row, self.column, where, self._column_override, self.reading)

    @property
    def _column_override(self) -> str:
        group, of_files, _ = self.override.partition(".files")
        return self.column_override or (f"{group}.column" if of_files else "column")

    def fingerprint(self) -> str:
        odd = "" if self.reading == AS_USUAL else f":{self.reading}"
        return f"files:{content(self.paths())}:{self.column}{odd}"


def load_hub(
    path: str,
    name: str | None,
    split: str,
    revision: str | None,
    data_files: str | None,
    *,
    columns: Iterable[str],
    override: str,
    column_override: str = "data.train.column",
) -> Any:
    """A data set of the Hugging Face hub, with the columns that are asked for.

    Raises:
        L2VError: it cannot be loaded, or has not the columns.
    """
    import datasets

    try:
        data: Any = datasets.load_dataset(path, name, split=split, revision=revision, data_files=data_files)
    except Exception as error:  # datasets raises a dozen unrelated types here
        raise _not_loaded(f"{override}={path}", error) from error
    check_columns(data.column_names, columns, f"{override}={path}", column_override)
    return data


def stream_hub(path: str, name: str, revision: str | None, column: str, *, override: str) -> Iterator[Any]:
    """A column of the training split of a data set of the hub, read on the way: what is not asked for is not loaded.

    Raises:
        L2VError: it cannot be loaded, now or later on, or has not the column.
    """
    import datasets

    try:
        for row in datasets.load_dataset(path, name, split="train", revision=revision, streaming=True):
            check_columns(row, [column], override, "another data set")
            yield row[column]
    except L2VError:
        raise
    except Exception as error:  # datasets raises a dozen unrelated types here
        raise _not_loaded(override, error) from error


def _not_loaded(setting: str, error: Exception) -> L2VError:
    return L2VError(
        f"{setting}: cannot be loaded from the hub ({first_line(error)}); choose another data=, or use local files "
        "(data=files, data=triplets)"
    )
