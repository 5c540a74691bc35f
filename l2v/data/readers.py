"""A user's files as records: .jsonl, .csv, .tsv and .parquet, one at a time, each with the place it stands at."""

import contextlib
import csv
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from l2v.errors import L2VError, first_line
from l2v.runs.hashes import file_hash

RECORD_FILES = (".jsonl", ".csv", ".tsv", ".parquet")
_LONGEST_FIELD = 2**31 - 1
"""Characters in a field of a CSV file; Python's own limit of 131,072 is shorter than a book."""


Column = int | str
"""Of a file: its name, or its number from 0 in text without a header line."""


class Record(NamedTuple):
    """A row of a file, or what is wrong with it."""

    where: str
    """file:line, or file:row for Parquet, both from 1."""
    values: Any
    """What the row holds: a dictionary, if all is well."""
    problem: str | None = None
    """Why the row cannot be read, e.g. not JSON."""


def find(files: str | list[str], override: str, endings: Iterable[str] = RECORD_FILES) -> list[Path]:
    """The files of a path, a glob pattern or a list of them: they exist, are not empty, and end in one of ``endings``.

    Raises:
        L2VError: naming ``override``.
    """
    found: list[Path] = []
    for pattern in [files] if isinstance(files, str) else files:
        path = Path(pattern).expanduser()
        matches = [path] if path.is_file() else sorted(m for m in _glob(path) if m.is_file())
        if not matches:
            raise L2VError(f"{override}={pattern}: no such file")
        found += matches
    for path in found:
        if path.suffix.lower() not in endings:
            raise L2VError(f"{override}={path}: expected {', '.join(endings)}, found {path.suffix or 'no ending'}")
        if path.stat().st_size == 0:
            raise L2VError(f"{override}={path}: the file is empty; expected at least one text")
    return found


def _glob(pattern: Path) -> Iterator[Path]:
    root, parts = (pattern.anchor, pattern.parts[1:]) if pattern.is_absolute() else (".", pattern.parts)
    return Path(root).glob(str(Path(*parts))) if parts else iter(())


def content(paths: Iterable[Path]) -> str:
    """What pins the content of files: a hash of the bytes and the ending of each. A file is hashed once a process."""
    return ":".join(_hash(p, p.stat().st_size, p.stat().st_mtime_ns) + p.suffix.lower() for p in paths)


@functools.lru_cache(maxsize=1024)
def _hash(path: Path, size: int, changed: int) -> str:
    return file_hash(path)


def records(path: Path, columns: Iterable[str], override: str) -> Iterator[Record]:
    """The rows of a file, in order; a row that cannot be read is yielded with its problem.

    Args:
        path: of one of ``RECORD_FILES``, in UTF-8, with or without a byte order mark.
        columns: to read; the others are passed over where the format allows it.
        override: what names the columns, for errors.

    Raises:
        L2VError: the whole file cannot be read: it is not Parquet, not UTF-8, or its header has not the columns.
    """
    if path.suffix.lower() == ".jsonl":
        return _jsonl(path)
    if path.suffix.lower() == ".parquet":
        return _parquet(path, list(columns), override)
    return _csv(path, list(columns), override)


def count_records(path: Path) -> int | None:
    """About how many rows a file has, where that is known without parsing it."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_metadata(path).num_rows
    if path.suffix.lower() == ".jsonl":
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
    return None


def check_columns(have: Iterable[Any], columns: Iterable[str], where: str, override: str) -> None:
    """Raise an L2VError for the first column that is not there, with those that are."""
    names = list(have)
    for column in columns:
        if column not in names:
            told = ", ".join(map(str, names))
            raise L2VError(f"{where}: no column {column!r}; it has {told}; name the column with {override}")


def table_rows(
    paths: list[Path],
    texts: Sequence[Column],
    last: Column,
    kind: Callable[[Any], Any],
    delimiter: str | None,
    name: str,
    least: int = 2,
) -> list[tuple[Any, ...]]:
    """Texts and a value of each row of the files, whose columns have names or, in plain text, numbers.

    Args:
        paths: .jsonl, .csv, .tsv, .parquet; or unquoted text with a ``delimiter``.
        texts: columns that hold text.
        last: the column of the value.
        kind: what converts the value; a ValueError says what it should be.
        delimiter: between the columns of unquoted text.
        name: of the data set, for errors.
        least: rows that there must be.

    Returns:
        A tuple for each row: its texts and its value.

    Raises:
        L2VError: a column is missing, a value is not what it should be, or there are fewer than ``least`` rows.
    """
    found: list[tuple[Any, ...]] = []
    for path in paths:
        for where, row in _raw(path, [*texts, last], delimiter, name):
            try:
                if odd := [value for value in row[:-1] if not isinstance(value, str)]:
                    raise ValueError(f"expected text, found {type(odd[0]).__name__}")
                found.append((*row[:-1], kind(row[-1])))
            except (TypeError, ValueError) as error:
                raise L2VError(f"{where}: {first_line(error)}") from None
    if len(found) < least:
        raise L2VError(f"{name}: {len(found)} row(s) in {', '.join(map(str, paths))}; expected at least {least}")
    return found


def number(value: Any) -> float:
    """What ``table_rows`` takes for a column of numbers."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"expected a number, found {value!r}") from None


def _raw(path: Path, columns: list[Column], delimiter: str | None, name: str) -> Iterable[tuple[str, list[Any]]]:
    """Where a row stands, and its values of the columns."""
    if delimiter is None:
        if path.suffix == ".txt" or not all(isinstance(column, str) for column in columns):
            raise L2VError(f"{name}: {path}: text with columns by number, or .txt, needs a delimiter, as '\\t'")
        names = [str(column) for column in columns]
        for where, values, problem in records(path, names, name):
            if problem or not isinstance(values, dict):
                raise L2VError(f"{where}: {problem or 'expected an object'}")
            check_columns(values, names, where, f"the settings of {name}")
            yield where, [values[column] for column in names]
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        numbers = [column for column in columns if isinstance(column, int)]
        if len(numbers) < len(columns):
            header = next(lines, [])
            named = [str(column) for column in columns]
            check_columns(header, named, str(path), f"the settings of {name}")
            numbers = [header.index(column) for column in named]
        for row in lines:
            if row and max(numbers) >= len(row):
                raise L2VError(f"{path}:{lines.line_num}: {len(row)} columns; expected one with number {max(numbers)}")
            if row:
                yield f"{path}:{lines.line_num}", [row[number] for number in numbers]


def text_of(values: Any, column: str, where: str, override: str) -> str:
    """The text in a column of a row.

    Raises:
        L2VError: the row is no object, has no such column, or something else in it.
    """
    if not isinstance(values, dict):
        raise L2VError(f"{where}: expected an object with a text under {column!r}, found {type(values).__name__}")
    check_columns(values, [column], where, override)
    if not isinstance(values[column], str):
        kind = type(values[column]).__name__
        raise L2VError(f"{where}: expected a text under {column!r}, found {kind}; name the column with {override}")
    return values[column]


def _jsonl(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield Record(where, json.loads(text))
            except UnicodeDecodeError as error:
                yield Record(where, None, not_utf8(error))
            except json.JSONDecodeError as error:
                yield Record(where, None, f"not JSON ({error.msg})")


def _csv(path: Path, columns: list[str], override: str) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            with _long_fields():
                names = reader.fieldnames or ()
            check_columns(names, columns, str(path), override)
            while True:
                try:
                    with _long_fields():
                        values = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Record(f"{path}:{reader.line_num}", None, f"not CSV ({error})")
                else:
                    yield Record(f"{path}:{reader.line_num}", values)
        except UnicodeDecodeError as error:
            raise L2VError(f"{path}: {not_utf8(error)}") from None


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Meanwhile, as the limit is the whole process's."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path, columns: list[str], override: str) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise L2VError(f"{path}: not Parquet ({first_line(error)})") from None
    check_columns(file.schema_arrow.names, columns, str(path), override)
    number = 0
    for batch in file.iter_batches(batch_size=1000, columns=columns):
        for values in batch.to_pylist():
            number += 1
            yield Record(f"{path}:{number}", values)


def not_utf8(error: UnicodeDecodeError) -> str:
    """What to tell a user whose file is in another encoding."""
    return f"not UTF-8 (byte {error.object[error.start]:#04x}); convert it to UTF-8"
