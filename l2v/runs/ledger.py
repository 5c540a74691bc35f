"""What was written into a folder, by size and hash, so that damage is found before anything is made of it."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from l2v.errors import L2VError
from l2v.progress import say
from l2v.runs.files import draft_file
from l2v.runs.hashes import file_hash


class Ledger:
    """A line a file: its name, bytes and SHA-256. Several processes may write, each a file of its own.

    Args:
        folder: of the files.
        process: its number among those that write into the folder.
    """

    def __init__(self, folder: Path, process: int = 0) -> None:
        self.folder = folder
        self.file = folder / f".written-{process}.jsonl"

    @contextmanager
    def draft(self, file: Path) -> Iterator[Path]:
        """Write a file as :func:`~l2v.runs.files.draft_file` does, and note it."""
        with draft_file(file) as draft:
            yield draft
            self.note(draft, file.name)

    def note(self, file: Path, name: str | None = None) -> None:
        """Note a file that is written, under the name that it has or is going to have."""
        line = {"file": name or file.name, "bytes": file.stat().st_size, "sha256": file_hash(file)}
        with self.file.open("a", encoding="utf-8") as notes:
            notes.write(json.dumps(line) + "\n")
            notes.flush()
            os.fsync(notes.fileno())

    def sealed(self, files: Iterable[Path]) -> list[Path]:
        """Those of the files that are there as one of the processes wrote them."""
        noted = self._notes()
        return [file for file in files if _is_there(file, noted.get(file.name, set()))]

    def names(self) -> list[str]:
        """Of the files that were noted."""
        return list(self._notes())

    def noted(self, files: Iterable[Path]) -> dict[Path, str]:
        """The hashes of those of the files that are there by name and size; they are not computed again."""
        notes, found = self._notes(), {}
        for file in files:
            size = file.stat().st_size if file.is_file() else None
            hashes = {known for one, known in notes.get(file.name, ()) if one == size}
            if len(hashes) > 1:  # it was written more than once
                hashes &= {file_hash(file)}
            for known in hashes:
                found[file] = known
        return found

    def _notes(self) -> dict[str, set[tuple[int, str]]]:
        """File -> bytes and hash, of each time that it was written. A line that was cut off tells nothing."""
        found: dict[str, set[tuple[int, str]]] = {}
        for notes in self.folder.glob(".written-*.jsonl"):
            for line in notes.read_bytes().splitlines():
                try:
                    note = json.loads(line)
                    found.setdefault(note["file"], set()).add((note["bytes"], note["sha256"]))
                except (ValueError, TypeError, KeyError):
                    continue
        return found


def seal(folder: Path) -> None:
    """Note all files of a folder that is made once and kept."""
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        Ledger(folder).note(file)


def is_kept(folder: Path) -> bool:
    """Whether a folder that was sealed is there as it was written. Damage is said, for it is made anew then."""
    if not folder.exists():
        return False
    ledger = Ledger(folder)
    files = [folder / name for name in ledger.names()]
    whole = ledger.sealed(files)
    damaged = [file for file in files if file not in whole]
    if files and not damaged:
        return True
    say(f"{damaged[0] if damaged else folder}: is not as it was written, and is made anew", style="yellow")
    return False


def check_hash(file: Path, wanted: str, remedy: str) -> None:
    """Fail unless a file has the hash that was noted for it.

    Raises:
        L2VError: with what mends it.
    """
    if not file.is_file() or file_hash(file) != wanted:
        raise L2VError(f"{file}: is damaged (its hash is another than was noted) or gone; {remedy}")


def _is_there(file: Path, noted: set[tuple[int, str]]) -> bool:
    if not noted or not file.is_file():
        return False
    size = file.stat().st_size
    return any(size == one for one, _ in noted) and (size, file_hash(file)) in noted
