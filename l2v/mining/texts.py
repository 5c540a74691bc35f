"""Pairs and corpora: files to Arrow tables of texts, memory mapped, each text with a key that equal texts share."""

import hashlib
import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow
from numpy.typing import NDArray

from l2v.data.files import ending
from l2v.data.readers import records, text_of
from l2v.data.texts import FileTexts
from l2v.errors import L2VError
from l2v.progress import track
from l2v.runs.files import draft_folder, read_json, write_json
from l2v.runs.ledger import is_kept, seal
from l2v.text.tokenization import clean

_VERSION = 2
"""Part of a table's key: raise it when the same files would make another table."""
_CHUNK = 1000
_ROWS, _COUNTS = "rows.arrow", "counts.json"


@dataclass(frozen=True)
class Table:
    """Texts of one or more columns, in the order of the files.

    Attributes:
        data: for each column its texts, and their keys (int64) in ``<column>_key``.
        empty: rows that were left out because a text of theirs is empty.
        fingerprint: of the files' bytes and the columns' names.
    """

    data: datasets.Dataset
    empty: int
    fingerprint: str

    def keys(self, column: str) -> NDArray[np.int64]:
        return self.data.data.column(f"{column}_key").to_numpy()


@dataclass(frozen=True)
class Texts:
    """Some texts of a table: ``rows`` of ``column``, read from disk when they are asked for."""

    table: Table
    column: str
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, numbers: Sequence[int] | NDArray[np.int64]) -> list[str]:
        return list(self.table.data[self.rows[np.asarray(numbers, np.int64)].tolist()][self.column])

    def keys(self) -> NDArray[np.int64]:
        return self.table.keys(self.column)[self.rows]


def text_key(text: str) -> int:
    """A signed 64-bit number that texts share if they differ in case, white space or Unicode composition at most."""
    same = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return int.from_bytes(hashlib.blake2b(same.encode(), digest_size=8).digest(), signed=True)


def distinct(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each different key comes first, in that order; and for every key which of those it is."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = first.argsort()
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[inverse]


def find(wanted: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each wanted key among different ``keys``; -1 where there is none."""
    order = keys.argsort()
    near = np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)
    return np.where(keys[order[near]] == wanted, order[near], -1)


def read_table(files: FileTexts, columns: dict[str, str], folder: Path, *, title: str, show: bool = True) -> Table:
    """The files' texts as a table, made once and kept in ``folder``.

    Args:
        files: where they are.
        columns: column -> the override that names it, for errors.
        folder: of cached tables.
        title: of the progress bar.
        show: the progress bar.

    Raises:
        L2VError: a line cannot be read (with file and line), or no text is left.
    """
    hashed = f"{_VERSION}\n{files.fingerprint()}\n{list(columns)}"
    fingerprint = hashlib.sha256(hashed.encode()).hexdigest()[:24]
    folder = folder / fingerprint
    if not is_kept(folder):
        with draft_folder(folder) as draft:
            counts = _write(track(_rows(files, columns), title, show=show), list(columns), draft / _ROWS)
            if not counts["rows"]:
                raise L2VError(f"{files.override}={files.files}: no texts; expected {' and '.join(columns)}, not empty")
            write_json(draft / _COUNTS, counts)
            seal(draft)
    data = datasets.Dataset.from_file(str(folder / _ROWS))
    return Table(data, read_json(folder / _COUNTS)["empty"], fingerprint)


def _write(rows: Iterator[dict[str, str]], columns: list[str], file: Path) -> dict[str, int]:
    """Write rows as an Arrow stream, some at a time, and count them."""
    fields = [(column, pyarrow.string()) for column in columns]
    schema = pyarrow.schema([*fields, *((f"{column}_key", pyarrow.int64()) for column in columns)])
    counts = {"rows": 0, "empty": 0}
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        while chunk := list(itertools.islice(rows, _CHUNK)):
            full = [row for row in chunk if all(text.strip() for text in row.values())]
            texts = {column: [clean(row[column]) for row in full] for column in columns}
            keys = {f"{column}_key": [text_key(text) for text in texts[column]] for column in columns}
            writer.write_batch(pyarrow.record_batch({**texts, **keys}, schema=schema))
            counts["rows"] += len(full)
            counts["empty"] += len(chunk) - len(full)
    return counts


def _rows(files: FileTexts, columns: dict[str, str]) -> Iterator[dict[str, str]]:
    for path in files.paths():
        if ending(path) == ".txt":
            lines = FileTexts(str(path), override=files.override).texts()
            yield from (dict.fromkeys(columns, line) for line in lines)
            continue
        for where, row, problem in records(path, columns, " and ".join(columns.values()), files.reading):
            if problem:
                raise L2VError(f"{where}: {problem}")
            yield {column: text_of(row, column, where, own, files.reading) for column, own in columns.items()}
