"""What pins a file, a folder of weights, a model of the hub, or settings."""

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l2v.errors import L2VError
from l2v.runs.files import cache_folder, in_a_name, read_json, write_json
from l2v.runs.locations import Source

_JUST_WRITTEN = 2.0
"""Seconds within which a file may be written again with the same time on it."""
_WEIGHTS = ("*.safetensors", "*.gguf", "*.bin")


_LARGE = 64 * 2**20
"""Bytes from which on a file's hash is kept: a model of 8B parameters takes half a minute, at each start of a run."""


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; computed once a process while the file stays as it is.

    That of a large file is kept in the cache as long as its place, size, times and inode stay the same.
    """
    stat = path.stat()
    if time.time() - stat.st_mtime < _JUST_WRITTEN:
        return _digest(path)
    if stat.st_size < _LARGE:
        return _known_digest(path.absolute(), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    kept = cache_folder("hashes") / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"
    if kept.is_file() and (found := read_json(kept))["state"] == state:
        return str(found["sha256"])
    value = _digest(path)
    with contextlib.suppress(L2VError):  # a cache that cannot be written
        write_json(kept, {"file": str(path.resolve()), "state": state, "sha256": value})
    return value


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=100_000)
def _known_digest(path: Path, number: int, size: int, changed: int) -> str:
    return _digest(path)


def folder_hash(folder: Path, patterns: Sequence[str] = _WEIGHTS) -> str:
    """SHA-256 over the names and hashes of a folder's weight files, or of other files."""
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    return hashlib.sha256("".join(f"{f.name} {file_hash(f)}\n" for f in files).encode()).hexdigest()


def settings_hash(value: Any, digits: int = 16) -> str:
    """SHA-256 of dictionaries, lists and values, whatever the order of keys: its first hex digits."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def distinct_name(text: str, longest: int) -> str:
    """A text as a part of a file's name, with a hash of it at its end where the name has not all of it."""
    name = in_a_name(text)[:longest]
    return name if name == text else f"{name}-{settings_hash(text, 8)}"


def source_hash(source: Source, commit: str | None = None) -> str:
    """What pins a source's weights: a file's or folder's hash, or a hub id's commit."""
    if source.gguf_file and source.is_local:
        return "sha256:" + file_hash(Path(source.path) / source.gguf_file)
    if source.is_local:
        return "sha256:" + folder_hash(Path(source.path))
    return "commit:" + (commit or source.revision or "unknown")
