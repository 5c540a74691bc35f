"""Unlabelled texts and a teacher's vectors of them, which encode.py has written: no teacher beside the student."""

import functools
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import datasets
import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from l2v.data.datamodule import Rows
from l2v.data.files import ending
from l2v.data.order import Pick, evenly
from l2v.data.readers import AS_USUAL, Reading
from l2v.embedding.inputs import Inputs
from l2v.embedding.shards import finished_manifest, read_vectors
from l2v.errors import L2VError
from l2v.runs.files import cache_folder, draft_folder
from l2v.runs.ledger import is_kept, seal

_FILE = "vectors.npy"


@dataclass(frozen=True)
class TaughtTexts:
    """Files of texts, and the folder that ``encode.py files=<these files>`` wrote with the teacher.

    Attributes:
        files: a path, a pattern, or a list of them, as encode.py was given them.
        vectors: the folder.
        part: all texts but ``held_out`` evenly spaced ones, or these.
        held_out: texts that validate.
        column: of the texts.
        reading: how rows are read that leave a choice.
        override: what an error names.
    """

    files: str | list[str]
    vectors: str
    part: Literal["train", "held_out"] = "train"
    held_out: Annotated[int, Ge(2)] = 500
    column: str = "text"
    reading: Reading = AS_USUAL
    override: str = "data.train"

    def __post_init__(self) -> None:
        if self._inputs().hashes() != self._manifest()["pinned"]["files"]:
            raise L2VError(
                f"{self.override}.vectors={self.vectors}: of other files than {self.override}.files={self.files}; name "
                "those that encode.py was given, in its order"
            )
        if any(ending(path) != ".txt" for path in self._inputs().paths()):
            self._check_columns(self._manifest()["settings"])
        if self.held_out >= self._manifest()["rows"]:
            raise L2VError(f"data.held_out={self.held_out} leaves none of {self._manifest()['rows']} texts to train on")

    def _check_columns(self, settings: dict[str, Any]) -> None:
        """Refuse another column than that of the teacher's texts, or another way to read it."""
        read = Reading(**settings.get("reading", {}))
        for name, own, its in (("column", self.column, settings["column"]), ("reading", self.reading, read)):
            if own != its:
                raise L2VError(
                    f"{self.override}.{name}={own}: {self.override}.vectors={self.vectors} was written with "
                    f"{name}={its}; set it so"
                )

    def texts(self) -> Iterator[str]:
        """The texts of the part, in order."""
        wanted = self.numbers()
        place = 0
        for number, row in enumerate(self._inputs().rows()):
            if place < len(wanted) and wanted[place] == number:
                place += 1
                yield row.text

    def numbers(self) -> NDArray[np.int64]:
        """Which rows of the files the part has, in order."""
        rows = self._manifest()["rows"]
        held_out = np.array(evenly(rows, self.held_out), dtype=np.int64)
        return held_out if self.part == "held_out" else np.setdiff1d(np.arange(rows), held_out)

    def dimension(self) -> int:
        """Of the teacher's vectors."""
        return int(self._manifest()["dimension"])

    def teacher(self) -> NDArray[np.float32]:
        """The teacher's vectors (texts, dimension) of all rows of the files, mapped from one file in the cache."""
        folder = cache_folder("teachers") / self._pinned()
        if not is_kept(folder):
            with draft_folder(folder) as draft:
                manifest = self._manifest()
                shape = (manifest["rows"], manifest["dimension"])
                kept = np.lib.format.open_memmap(draft / _FILE, mode="w+", dtype=np.float32, shape=shape)
                begin = 0
                for shard in read_vectors(self.vectors):
                    kept[begin : begin + len(shard)] = shard
                    begin += len(shard)
                kept.flush()
                del kept
                seal(draft)
        return np.load(folder / _FILE, mmap_mode="r")

    def fingerprint(self) -> str:
        files = ":".join(itertools.chain(*self._inputs().hashes()))
        return f"taught:{files}:{self._pinned()}:{self.part}:{self.held_out}:{self.column}:{self.reading}"

    def _inputs(self) -> Inputs:
        return Inputs(self.files, column=self.column, override=f"{self.override}.files", reading=self.reading)

    def _manifest(self) -> dict[str, Any]:
        return finished_manifest(self.vectors, f"{self.override}.vectors")

    def _pinned(self) -> str:
        """A hash of the shards."""
        return hashlib.sha256("".join(record["sha256"] for record in self._manifest()["shards"]).encode()).hexdigest()


class TaughtRows(Rows):
    """Token rows with the column ``teacher``: the teacher's vector of the row's text.

    Args:
        data: rows with ``number``, the text's place in the part.
        source: of the texts.
    """

    def __init__(self, data: datasets.Dataset, source: TaughtTexts) -> None:
        super().__init__(data)
        self.source = source
        self.numbers = source.numbers()

    @functools.cached_property
    def _teacher(self) -> NDArray[np.float32]:
        return self.source.teacher()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_teacher"}

    def _columns(self, picks: list[Pick]) -> dict[str, list[Any]]:
        columns = super()._columns(picks)
        return {**columns, "teacher": list(self._teacher[self.numbers[columns["number"]]])}
