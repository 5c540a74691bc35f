"""A user's files by their endings, as bytes: what is compressed is unpacked while it is read."""

import bz2
import contextlib
import functools
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from l2v.errors import L2VError, first_line
from l2v.runs.hashes import file_hash

RECORD_FILES = (".jsonl", ".csv", ".tsv", ".parquet")
_COMPRESSED: dict[str, Callable[[Path], io.BufferedIOBase]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_SAME = {".json": ".jsonl", ".ndjson": ".jsonl"}
"""Endings of other trainers' files with an object a line, or one list of objects."""
_WAYS_OUT = {
    ".zip": "unpack it (unzip)",
    ".zst": "unpack it (zstd -d)",
    ".tar": "unpack it (tar -xf)",
    ".tgz": "unpack it (tar -xf)",
    ".7z": "unpack it",
    ".xls": "save it as .csv",
    ".xlsx": "save it as .csv",
    ".ods": "save it as .csv",
    ".arrow": "write it as .parquet: datasets.Dataset.from_file(file).to_parquet(...)",
    ".feather": "write it as .parquet: pandas.read_feather(file).to_parquet(...)",
    ".orc": "write it as .parquet: pandas.read_orc(file).to_parquet(...)",
    ".pkl": "write it as .parquet where it was made; a pickle can run code and is not opened",
    ".pickle": "write it as .parquet where it was made; a pickle can run code and is not opened",
    ".md": "rename it to .txt, to read a text a line",
    ".txt": "a text a line has no columns",
}


def ending(path: Path) -> str:
    """What a file is read as: its ending in small letters, without that of a compression."""
    inner = Path(path.stem).suffix if path.suffix.lower() in _COMPRESSED else path.suffix
    return _SAME.get(inner.lower(), inner.lower())


def is_json(path: Path) -> bool:
    """Whether a file's ending, without that of a compression, is .json: it may hold one list, or an object a line."""
    return (Path(path.stem) if path.suffix.lower() in _COMPRESSED else path).suffix.lower() == ".json"


def stem(path: Path) -> str:
    """A file's name without what :func:`ending` reads."""
    return Path(path.stem).stem if path.suffix.lower() in _COMPRESSED else path.stem


def find(files: str | list[str], override: str, endings: Iterable[str] = RECORD_FILES) -> list[Path]:
    """The files of a path, a glob pattern or a list of them: they exist, are not empty, and end in one of ``endings``.

    Each may be compressed: ``texts.jsonl.gz``, also .bz2 and .xz. One that several patterns match is there once.

    Raises:
        L2VError: naming ``override``, and the way out.
    """
    found: list[Path] = []
    for pattern in [files] if isinstance(files, str) else files:
        path = Path(pattern).expanduser()
        matches = [path] if path.is_file() else sorted(m for m in expanded(path) if m.is_file())
        if not matches:
            raise L2VError(f"{override}={pattern}: no such file")
        found += matches
    found = list({path.absolute(): path for path in found}.values())
    for path in found:
        if ending(path) not in endings:
            way_out = f"; {_WAYS_OUT[path.suffix.lower()]}" if path.suffix.lower() in _WAYS_OUT else ""
            raise L2VError(
                f"{override}={path}: expected {', '.join(endings)}, found {path.suffix or 'no ending'}{way_out}"
            )
        if ending(path) == ".parquet" and path.suffix.lower() != ".parquet":
            raise L2VError(f"{override}={path}: a Parquet file is compressed inside; unpack it")
        if path.stat().st_size == 0:
            raise L2VError(f"{override}={path}: the file is empty; expected at least one text")
    return found


def expanded(pattern: Path) -> Iterator[Path]:
    """What a glob pattern matches, in no order."""
    root, parts = (pattern.anchor, pattern.parts[1:]) if pattern.is_absolute() else (".", pattern.parts)
    return Path(root).glob(str(Path(*parts))) if parts else iter(())


def content(paths: Iterable[Path]) -> str:
    """What pins the content of files: a hash of the bytes and the ending of each. A file is hashed once a process."""
    return ":".join(_hash(p, p.stat().st_size, p.stat().st_mtime_ns) + full_ending(p) for p in paths)


def full_ending(path: Path) -> str:
    """With that of a compression: files of the same bytes and another ending are read in another way."""
    packed = path.suffix.lower() in _COMPRESSED
    return (ending(path) if packed else "") + path.suffix.lower()


@functools.lru_cache(maxsize=1024)
def _hash(path: Path, size: int, changed: int) -> str:
    return file_hash(path)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, unpacked.

    Raises:
        L2VError: it is compressed, and damaged.
    """
    unpack = _COMPRESSED.get(path.suffix.lower())
    try:
        with cast(BinaryIO, unpack(path)) if unpack else path.open("rb") as file:
            yield file
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if unpack is None or error.errno is not None:
            raise
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> L2VError:
    return L2VError(f"{path}: cannot be unpacked ({first_line(error)}): the file is damaged or cut off; copy it anew")


def not_utf8(error: UnicodeDecodeError) -> str:
    """What to tell a user whose file is in another encoding."""
    return f"not UTF-8 (byte {error.object[error.start]:#04x}); convert it to UTF-8"


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file that are not empty, without their ends.

    Raises:
        L2VError: it is not UTF-8.
    """
    # Excel and Notepad begin a file with a byte order mark
    with opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n") as text:
        try:
            for line in text:
                if line.strip():
                    yield line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise L2VError(f"{path}: {not_utf8(error)}") from None
