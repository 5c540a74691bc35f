"""What is embedded, and how it is written."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from l2v.data.readers import AS_USUAL, Reading
from l2v.embedding.compression import StoredType
from l2v.embedding.inputs import Inputs
from l2v.embedding.shards import ROW, VECTOR
from l2v.errors import L2VError
from l2v.runs.files import check_writable


@dataclass(frozen=True)
class Encoding:
    """What is encoded, and how it is written."""

    files: str | list[str]
    """A path, a glob pattern, or a list of them: .txt (a text a line), .jsonl, .csv, .tsv or .parquet."""
    output: str
    """A folder for the shards and their manifest.json."""
    column: str = "text"
    keep: tuple[str, ...] = ()
    """Columns to copy beside the vectors."""
    instruction: str | None = None
    """Put before every text."""
    truncate_dim: Annotated[int, Ge(1)] | None = None
    """Keep the first so many dimensions (before normalising)."""
    normalize: bool = False
    """Scale vectors to length 1."""
    vector_dtype: StoredType = "float32"
    calibration: str | list[str] | None = None
    """Files whose vectors give the ranges of int8; None: the first shard."""
    shard_rows: Annotated[int, Ge(1)] = 10_000
    """Rows a shard: what memory holds, and what a stop loses at most on each process."""
    batch_size: Annotated[int, Ge(1)] = 32
    """Texts in a batch on each process."""
    workers: Literal[0, 1] = 0
    """1: a process (on Ray a thread) beside each reads and tokenizes ahead."""
    reading: Reading = AS_USUAL
    """How rows of files are read that leave a choice."""

    def __post_init__(self) -> None:
        if self.calibration is not None and self.vector_dtype != "int8":
            raise L2VError(f"calibration={self.calibration}: is for vector_dtype=int8, found {self.vector_dtype}")
        for column in self.keep:
            if column in (ROW, VECTOR) or self.keep.count(column) > 1:
                raise L2VError(f"keep={column}: expected each column once, and none named {ROW} or {VECTOR}")
        self.inputs().paths()
        self.sample().paths()
        check_writable(self.folder, as_folder=True)

    @property
    def folder(self) -> Path:
        return Path(self.output).expanduser()

    def inputs(self) -> Inputs:
        return Inputs(self.files, self.column, self.keep, reading=self.reading)

    def sample(self) -> Inputs:
        """What the ranges of int8 are taken from."""
        if self.calibration is None:
            return replace(self.inputs(), keep=())
        return Inputs(self.calibration, self.column, override="calibration", reading=self.reading)

    def settings(self) -> dict[str, Any]:
        """What decides the shards, beside the encoder and the files' content."""
        names = ("column", "keep", "instruction", "truncate_dim", "normalize", "vector_dtype", "shard_rows")
        odd = {} if self.reading == AS_USUAL else {"reading": asdict(self.reading)}
        return {name: value for name, value in asdict(self).items() if name in names} | odd
