"""Documents by their ids, from a corpus of any size: on disk while it is read from, and not in memory."""

import json
import sqlite3
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from l2v.data.files import ending, is_json, opened
from l2v.data.readers import records
from l2v.errors import L2VError

_IDS = ("docid", "_id", "id", "corpus-id", "pid")
_TEXTS = ("text", "contents", "passage")


def passage(document: Any) -> Any:
    """The text of a document: of one with a title, both with a space between; anything but a document as it is.

    Raises:
        ValueError: title or text is no text.
    """
    if not isinstance(document, dict):
        return document
    parts = [part for part in (document.get("title"), _first(document, _TEXTS)) if part is not None]
    if odd := [part for part in parts if not isinstance(part, str)]:
        raise ValueError(f"expected a text as title and text of a document, found {odd[0]!r}")
    return " ".join(filter(None, parts)).strip()


def named_corpora(paths: list[Path]) -> list[Path]:
    """The files of the corpora that NeMo's one JSON of ids names, beside its rows."""
    found: list[Path] = []
    for path in paths:
        if not is_json(path):
            continue
        with opened(path) as file:
            try:
                whole = json.load(file)
            except (UnicodeDecodeError, json.JSONDecodeError):  # an object a line, or what its reader tells
                continue
        rows = whole.get("data") if isinstance(whole, dict) else None
        is_nemo = isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict) and "pos_doc" in rows[0]
        corpora = whole.get("corpus") if is_nemo else None
        for corpus in corpora if isinstance(corpora, list) else [corpora] if corpora else []:
            place = corpus.get("path") if isinstance(corpus, dict) else corpus
            folder = path.parent / str(place)  # an absolute one stays
            files = sorted(f for f in folder.rglob("*") if ending(f) in (".jsonl", ".parquet") and f.suffix != ".json")
            if not files:
                raise L2VError(f"{path}: its corpus {place} has no .jsonl or .parquet files")
            found += files
    return found


class Corpus:
    """Documents by their ids.

    Args:
        files: .jsonl, .csv, .tsv or .parquet with an id (docid, _id, id) and a text, perhaps a title.

    Raises:
        L2VError: a row cannot be read, or has no id or no text, or the id of another text.
    """

    def __init__(self, files: list[Path]) -> None:
        folder = tempfile.TemporaryDirectory(prefix="l2v-corpus-")
        self._database = sqlite3.connect(str(Path(folder.name) / "corpus.db"))
        weakref.finalize(self, _close, self._database, folder)
        self._database.execute("PRAGMA synchronous=OFF")
        self._database.execute("CREATE TABLE corpus (id TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID")
        last = ""

        def documents() -> Iterator[tuple[str, str]]:
            nonlocal last
            for where, key, text in _rows(files):
                last = f"{where}: a document before has the id {key!r}, too, and another text"
                yield key, text

        # the same document may be there twice
        insert = """INSERT INTO corpus VALUES (?, ?)
            ON CONFLICT (id) DO UPDATE SET text = CASE WHEN text = excluded.text THEN text END"""
        try:
            self._database.executemany(insert, documents())
        except sqlite3.IntegrityError:
            raise L2VError(last) from None
        self._database.commit()

    def text(self, key: str) -> str:
        """A document's title and text.

        Raises:
            KeyError: there is none with this id.
        """
        found = self._database.execute("SELECT text FROM corpus WHERE id = ?", (key,)).fetchone()
        if found is None:
            raise KeyError(key)
        return str(found[0])


def _close(database: sqlite3.Connection, folder: "tempfile.TemporaryDirectory[str]") -> None:
    database.close()
    folder.cleanup()


def _rows(files: list[Path]) -> Iterator[tuple[str, str, str]]:
    """Of each document where it stands, its id, and its text."""
    for path in files:
        for where, values, problem in records(path, (), "corpus"):
            if problem or not isinstance(values, dict):
                raise L2VError(f"{where}: {problem or 'expected an object'}")
            key = _first(values, _IDS)
            if key is None or _first(values, _TEXTS) is None:
                told = ", ".join(map(str, values)) or "none"
                raise L2VError(f"{where}: expected an id ({', '.join(_IDS)}) and a text; its columns are {told}")
            try:
                yield where, str(key), passage(values)
            except ValueError as error:
                raise L2VError(f"{where}: {error}") from None


def _first(values: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)
