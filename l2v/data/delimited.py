"""Text with a delimiter between its columns: rows whole, or what is wrong with them, and never cut or lost."""

import collections
import contextlib
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from l2v.data.files import not_utf8, opened
from l2v.errors import L2VError, first_line

_LONGEST_FIELD = 2**31 - 1
"""Characters in a field of a CSV file; Python's own limit of 131,072 is shorter than a book."""
_LONGEST_QUOTATION = 10_000
"""Lines."""


class Row(NamedTuple):
    """A row of a file, or what is wrong with it."""

    line: int
    """Where it begins, from 1."""
    fields: list[str]
    problem: str | None = None


def delimited(path: Path, delimiter: str, *, quotes: bool, way_out: str) -> Iterator[Row]:
    """The rows of a file in UTF-8, in order; empty lines are passed over.

    A quotation mark that opens and closes nowhere, or in the middle of a later row, is the problem of the row that it
    stands in: the lines after it are read by themselves.

    Args:
        path: of the file, which may be compressed.
        delimiter: between fields.
        quotes: whether a field may stand in quotation marks, with delimiters and ends of lines inside.
        way_out: what to tell a user whose quotation marks are none.

    Raises:
        L2VError: the file is not UTF-8, or cannot be unpacked.
    """
    with opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        lines = _Lines(text)
        own: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
        reader = csv.reader(lines, delimiter=delimiter, quoting=own, strict=True)
        begin = 0
        try:
            while True:
                begin = lines.begin_row()
                try:
                    with _long_fields():
                        fields = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Row(begin, [], _problem(error, lines, way_out))
                    lines.back_to_the_second()
                else:
                    if fields and quotes and delimiter == "\t" and _swallows(lines.of_row, delimiter, len(fields)):
                        yield Row(begin, [], f"a quotation mark opens here and closes {_count(lines)} on; {way_out}")
                        lines.back_to_the_second()
                    elif fields:
                        yield Row(begin, fields)
        except UnicodeDecodeError as error:
            raise L2VError(f"{path}: {not_utf8(error)}") from None


def header_problem(fields: list[str], columns: list[str]) -> str | None:
    """What is wrong with a header line: a column that is asked for stands there twice."""
    for column in columns:
        if fields.count(column) > 1:
            return f"two columns are named {column!r}; rename one of them"
    return None


class _Lines:
    """Lines of a file that remember those of the current row, and can go back to the second of them."""

    def __init__(self, file: Iterator[str]) -> None:
        self._file, self._again = file, collections.deque[str]()
        self.of_row: list[str] = []
        self._read = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self.of_row) > _LONGEST_QUOTATION:
            raise csv.Error("the quotation is too long")
        line = self._again.popleft() if self._again else next(self._file)
        self._read += 1
        self.of_row.append(line)
        return line

    def begin_row(self) -> int:
        """Forget the lines of the row before; the number of the next line."""
        self.of_row = []
        return self._read + 1

    def back_to_the_second(self) -> None:
        rest = self.of_row[1:]
        self._again.extendleft(reversed(rest))
        self._read -= len(rest)


def _problem(error: csv.Error, lines: _Lines, way_out: str) -> str:
    if '"' in lines.of_row[0]:
        return f"a quotation mark opens here and is not closed before a delimiter or the end of a line; {way_out}"
    return f"not CSV ({first_line(error)})"


def _swallows(lines: list[str], delimiter: str, fields: int) -> bool:
    """Whether each line of a row that goes over several is a row of its own, if quotation marks are none."""
    return len(lines) > 1 and fields > 1 and all(line.count(delimiter) == fields - 1 for line in lines)


def _count(lines: _Lines) -> str:
    return f"{len(lines.of_row) - 1} line{'s' if len(lines.of_row) > 2 else ''}"


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Meanwhile, as the limit is the whole process's."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)
