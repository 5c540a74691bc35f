"""Documents by their ids, from a corpus of any size: on disk while it is read from, and not in memory."""

import sqlite3
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from l2v.data.readers import records
from l2v.errors import L2VError

_IDS = ("docid", "_id", "id", "corpus-id", "pid")
_TEXTS = ("text", "contents", "passage")


def passage(document: Any) -> Any:
    """The text of a document: of one with a title, both with a space between; anything but a document as it is."""
    if not isinstance(document, dict):
        return document
    return " ".join(filter(None, (document.get("title"), _first(document, _TEXTS)))).strip()


class Corpus:
    """Documents by their ids.

    Args:
        files: .jsonl, .csv, .tsv or .parquet with an id (docid, _id, id) and a text, perhaps a title.

    Raises:
        L2VError: a row cannot be read, or has no id or no text.
    """

    def __init__(self, files: list[Path]) -> None:
        folder = tempfile.TemporaryDirectory(prefix="l2v-corpus-")
        self._database = sqlite3.connect(str(Path(folder.name) / "corpus.db"))
        weakref.finalize(self, _close, self._database, folder)
        self._database.execute("PRAGMA synchronous=OFF")
        self._database.execute("CREATE TABLE corpus (id TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID")
        self._database.executemany("INSERT OR REPLACE INTO corpus VALUES (?, ?)", _rows(files))
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


def _rows(files: list[Path]) -> Iterator[tuple[str, str]]:
    for path in files:
        for where, values, problem in records(path, (), "corpus"):
            if problem or not isinstance(values, dict):
                raise L2VError(f"{where}: {problem or 'expected an object'}")
            key = _first(values, _IDS)
            if key is None or _first(values, _TEXTS) is None:
                told = ", ".join(map(str, values)) or "none"
                raise L2VError(f"{where}: expected an id ({', '.join(_IDS)}) and a text; its columns are {told}")
            yield str(key), passage(values)


def _first(values: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)
