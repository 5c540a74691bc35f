"""Texts of files one at a time, with the columns that are kept beside their vectors."""

import collections
import itertools
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from l2v.data.files import RECORD_FILES, ending, find, full_ending, not_utf8, opened
from l2v.data.readers import AS_USUAL, Reading, Record, check_columns, records, text_of
from l2v.errors import L2VError
from l2v.progress import track
from l2v.runs.hashes import file_hash
from l2v.text.tokenization import clean

_TYPES = {bool: "bool", int: "int64", float: "double", str: "string"}
"""What a kept column may hold: Python's type, and Arrow's."""


class Row(NamedTuple):
    """A text and what is kept beside its vector."""

    text: str
    kept: tuple[Any, ...]


@dataclass(frozen=True)
class Inputs:
    """Files of texts. A row is a line of a .txt file, also an empty one, or a record of another."""

    files: str | list[str]
    """A path, a glob pattern, or a list of them."""
    column: str = "text"
    keep: tuple[str, ...] = ()
    override: str = "files"
    """What an error names."""
    reading: Reading = AS_USUAL
    """How rows are read that leave a choice."""

    def paths(self) -> list[Path]:
        """The files, in order; a pattern's are sorted by name."""
        return find(self.files, self.override, [".txt", *RECORD_FILES])

    def rows(self) -> Iterator[Row]:
        """All rows, in order.

        Raises:
            L2VError: a row cannot be read, with file and line.
        """
        for path in self.paths():
            for _, row in self._read(path):
                yield row

    def survey(self, *, show: bool = True) -> dict[str, Any]:
        """Read everything once: ``files`` with hashes and numbers of rows, and the Arrow type of each kept column.

        Raises:
            L2VError: a row cannot be read, or a column cannot be kept, with file and line; or there are no rows.
        """
        files = []
        types: dict[str, str | None] = dict.fromkeys(self.keep)
        for path in self.paths():
            count = 0
            for where, row in track(self._read(path), f"reading {path.name}", show=show):
                count += 1
                for column, value in zip(self.keep, row.kept, strict=True):
                    types[column] = _joined(types[column], value, where, column)
            files.append({"file": str(path), "sha256": file_hash(path), "rows": count})
        if not any(file["rows"] for file in files):
            raise L2VError(f"{self.override}={self.files}: no texts; expected at least one")
        return {"files": files, "columns": {column: _arrow(kind) for column, kind in types.items()}}

    def hashes(self) -> list[list[str]]:
        """What pins the texts: a hash of each file's bytes, and its ending."""
        return [[file_hash(path), full_ending(path)] for path in self.paths()]

    def _read(self, path: Path) -> Iterator[tuple[str, Row]]:
        columns = dict.fromkeys([self.column, *self.keep])
        plain = ending(path) == ".txt"
        if plain and self.keep:
            raise L2VError(f"keep=[{', '.join(self.keep)}]: {path} has no columns; expected {', '.join(RECORD_FILES)}")
        found = _lines(path, self.column) if plain else records(path, columns, "column or keep", self.reading)
        for where, values, problem in found:
            if problem is not None:
                raise L2VError(f"{where}: {problem}")
            text = clean(text_of(values, self.column, where, "column", self.reading))
            check_columns(values, self.keep, where, "keep")
            kept = (values[column] for column in self.keep)
            yield where, Row(text, tuple(clean(value) if isinstance(value, str) else value for value in kept))


def _lines(path: Path, column: str) -> Iterator[Record]:
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield Record(where, None, not_utf8(error))
            else:
                yield Record(where, {column: text.rstrip("\r\n")})


def _arrow(kind: str | None) -> str:
    return "int64" if kind == _LONG else kind or "string"


def _joined(known: str | None, value: Any, where: str, column: str) -> str | None:
    """The Arrow type of a column that was ``known`` and has ``value`` too."""
    if value is None:
        return known
    kind = _TYPES.get(type(value))
    if kind is None or (kind == "int64" and not -(2**63) <= value < 2**63):
        found = "an integer of more than 64 bits" if kind else type(value).__name__
        raise L2VError(f"{where}: keep={column}: expected text, a number or true/false, found {found}")
    if kind == "int64" and abs(value) > 2**53:
        kind = _LONG
    if known in (None, kind):
        return kind
    if (both := {known, kind}) == {"int64", "double"}:
        return "double"
    if both == {"int64", _LONG}:
        return _LONG
    raise L2VError(f"{where}: keep={column}: expected {known} as in the rows before, found {kind}")


_LONG = "int64 of more than 53 bits"
"""An integer that is no float, so that no column has it beside one."""


def chunks(rows: Iterator[Row], size: int, wanted: Container[int], count: int) -> Iterator[tuple[int, list[Row]]]:
    """The ``wanted`` ones of ``count`` chunks of ``size`` rows, with their numbers; one is held at a time."""
    for number in range(count):
        part = itertools.islice(rows, size)
        if number in wanted:
            yield number, list(part)
        else:
            collections.deque(part, maxlen=0)
