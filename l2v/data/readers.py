"""A user's files as records: .jsonl, .csv, .tsv and .parquet, one at a time, each with the place it stands at."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from l2v.data.delimited import delimited, header_problem
from l2v.data.files import ending, is_json, not_utf8, opened
from l2v.errors import L2VError, first_line

Column = int | str
"""Of a file: its name, or its number from 0 in text without a header line."""
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Record(NamedTuple):
    """A row of a file, or what is wrong with it."""

    where: str
    """file:line, or file:row for Parquet, both from 1."""
    values: Any
    """What the row holds: a dictionary, if all is well."""
    problem: str | None = None
    """Why the row cannot be read, e.g. not JSON."""


@dataclass(frozen=True)
class Reading:
    """How files are read that leave a choice."""

    quotes: bool = True
    """Of .csv and .tsv: a field may stand in quotation marks. False: they are characters like any other."""
    numbers: bool = False
    """Of .jsonl and .parquet: a number where a text is expected is taken as the text that writes it."""


AS_USUAL = Reading()


def records(path: Path, columns: Iterable[str], override: str, reading: Reading = AS_USUAL) -> Iterator[Record]:
    """The rows of a file, in order; a row that cannot be read is yielded with its problem.

    Args:
        path: of one of ``RECORD_FILES``, in UTF-8, with or without a byte order mark; it may be compressed.
        columns: to read; the others are passed over where the format allows it.
        override: what names the columns, for errors.
        reading: how.

    Raises:
        L2VError: the whole file cannot be read: it is not Parquet, not UTF-8, or its header has not the columns.
    """
    if ending(path) == ".jsonl":
        return _json(path)
    if ending(path) == ".parquet":
        return _parquet(path, list(columns), override)
    return _csv(path, list(columns), override, reading)


def count_records(path: Path) -> int | None:
    """About how many rows a file has, where that is known without parsing it."""
    if ending(path) == ".parquet":
        return _parquet_file(path).metadata.num_rows
    if path.suffix.lower() == ".jsonl":
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
    return None


def column_names(path: Path, reading: Reading = AS_USUAL, rows: int = 1000) -> list[str] | None:
    """The columns of a file: of objects, those that the first rows have; None where no row is one.

    Raises:
        L2VError: see :func:`records`.
    """
    if ending(path) == ".parquet":
        return list(_parquet_file(path).schema_arrow.names)
    found: dict[str, None] = {}
    for record in itertools.islice(records(path, (), "", reading), rows if ending(path) == ".jsonl" else 1):
        found |= dict.fromkeys(record.values) if isinstance(record.values, dict) else {}
    return [str(name) for name in found] or None


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
        paths: .jsonl, .csv, .tsv, .parquet; or unquoted text with a ``delimiter``. A .csv or .tsv whose columns have
            numbers has no header line.
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


def label(value: Any) -> str:
    """What ``table_rows`` takes for a column of labels."""
    if value is None:
        raise ValueError("expected a label, found None")
    return str(value)


def number(value: Any) -> float:
    """What ``table_rows`` takes for a column of numbers."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"expected a number, found {value!r}")
    return found


def _raw(path: Path, columns: list[Column], delimiter: str | None, name: str) -> Iterable[tuple[str, list[Any]]]:
    """Where a row stands, and its values of the columns."""
    quotes = delimiter is None
    if quotes and all(isinstance(column, int) for column in columns):
        delimiter = _DELIMITERS.get(ending(path))
    if delimiter is None:
        if ending(path) == ".txt" or not all(isinstance(column, str) for column in columns):
            raise L2VError(f"{name}: {path}: text with columns by number, or .txt, needs a delimiter, as '\\t'")
        names = [str(column) for column in columns]
        for where, values, problem in records(path, names, name):
            if problem or not isinstance(values, dict):
                raise L2VError(f"{where}: {problem or 'expected an object'}")
            check_columns(values, names, where, f"the settings of {name}")
            yield where, [values[column] for column in names]
        return
    numbers = [column for column in columns if isinstance(column, int)]
    named = [str(column) for column in columns]
    header: list[str] | None = None
    for line, fields, problem in delimited(path, delimiter, quotes=quotes, way_out="close it"):
        where = f"{path}:{line}"
        if problem:
            raise L2VError(f"{where}: {problem}")
        if len(numbers) < len(columns):
            header = fields
            check_columns(header, named, str(path), f"the settings of {name}")
            if doubled := header_problem(header, named):
                raise L2VError(f"{path}: {doubled}")
            numbers = [header.index(column) for column in named]
            continue
        if header is not None and len(fields) > len(header):
            raise L2VError(f"{where}: {len(fields)} fields; the header has {len(header)}")
        if max(numbers) >= len(fields):
            raise L2VError(f"{where}: {len(fields)} columns; expected one with number {max(numbers)}")
        yield where, [fields[number] for number in numbers]
    if len(numbers) < len(columns):
        check_columns([], named, str(path), f"the settings of {name}")


def text_of(values: Any, column: str, where: str, override: str, reading: Reading = AS_USUAL) -> str:
    """The text in a column of a row.

    Raises:
        L2VError: the row is no object, has no such column, or something else in it.
    """
    if not isinstance(values, dict):
        raise L2VError(f"{where}: expected an object with a text under {column!r}, found {type(values).__name__}")
    check_columns(values, [column], where, override)
    value = as_text(values[column], reading)
    if not isinstance(value, str):
        way_out = number_hint(value) or f"name the column with {override}"
        raise L2VError(f"{where}: expected a text under {column!r}, found {type(value).__name__}; {way_out}")
    return value


def as_text(value: Any, reading: Reading) -> Any:
    """A number as the text that writes it, where that is asked for; anything else as it is."""
    return str(value) if reading.numbers and _is_number(value) else value


def number_hint(value: Any) -> str:
    """The way out for a number where a text is expected."""
    return "reading.numbers=true takes numbers as texts" if _is_number(value) else ""


def _is_number(value: Any) -> bool:
    """Whether it is one, and no nan, which stands for a value that is missing."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_NOT_JSON = (ValueError, RecursionError)
"""What Python's reader raises: also for bytes that are no text, numbers of thousands of digits, and deep nesting."""


def _json(path: Path) -> Iterator[Record]:
    """An object a line; of a .json also one list of objects, by itself or under ``data``."""
    with opened(path) as file:
        first = file.readline()
        if is_json(path) and not _is_a_line(first):
            try:
                whole = json.loads((first + file.read()).decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise L2VError(f"{path}: {not_utf8(error)}") from None
            except _NOT_JSON as error:
                raise L2VError(f"{path}: not JSON ({first_line(error)})") from None
            listed = whole.get("data") if isinstance(whole, dict) else whole
            if not isinstance(listed, list):
                raise L2VError(f"{path}: expected an object a line, a list of objects, or one under 'data'")
            yield from (Record(f"{path}:{number}", values) for number, values in enumerate(listed, 1))
            return
        for number, line in enumerate(itertools.chain([first], file), 1):
            where = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield Record(where, json.loads(text))
            except UnicodeDecodeError as error:
                yield Record(where, None, not_utf8(error))
            except _NOT_JSON as error:
                told = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)
                yield Record(where, None, f"not JSON ({told})")


def _is_a_line(line: bytes) -> bool:
    """Whether a first line is a row of its own, and no beginning of one list or object."""
    try:
        found = json.loads(line.decode("utf-8-sig"))
    except _NOT_JSON:
        return False
    return isinstance(found, dict) and not isinstance(found.get("data"), list)


def _csv(path: Path, columns: list[str], override: str, reading: Reading) -> Iterator[Record]:
    delimiter = _DELIMITERS[ending(path)]
    way_out = "close it, or read the text without quoting by reading.quotes=false"
    names: list[str] | None = None
    for line, fields, problem in delimited(path, delimiter, quotes=reading.quotes, way_out=way_out):
        where = f"{path}:{line}"
        if problem and names is None:
            raise L2VError(f"{where}: {problem}")
        if problem:
            yield Record(where, None, problem)
        elif names is None:
            names = fields
            check_columns(names, columns, str(path), override)
            if doubled := header_problem(names, columns):
                raise L2VError(f"{path}: {doubled}")
        elif len(fields) > len(names):
            told = f"{len(fields)} fields, and the header has {len(names)}"
            yield Record(where, None, f"{told}; put a text with the delimiter in it between quotation marks")
        elif len(fields) < len(names):
            told = f"{len(fields)} field{'s' if len(fields) > 1 else ''}, and the header has {len(names)}"
            yield Record(where, None, f"{told}; put a text with a line break in it between quotation marks")
        else:
            yield Record(where, dict(zip(names, fields, strict=True)))
    if names is None:
        check_columns([], columns, str(path), override)


def _parquet_file(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise L2VError(f"{path}: not Parquet ({first_line(error)})") from None


def _parquet(path: Path, columns: list[str], override: str) -> Iterator[Record]:
    import pyarrow

    file = _parquet_file(path)
    check_columns(file.schema_arrow.names, columns, str(path), override)
    number = 0
    batches = file.iter_batches(batch_size=1000, columns=columns or None)
    while True:
        try:
            rows = batch.to_pylist() if (batch := next(batches, None)) is not None else None
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise L2VError(f"{path}: damaged after row {number} ({first_line(error)})") from None
        if rows is None:
            return
        for values in rows:
            number += 1
            yield Record(f"{path}:{number}", values)
