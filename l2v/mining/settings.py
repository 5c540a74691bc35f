"""What is mined, and how."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from l2v.data.files import ending
from l2v.data.readers import AS_USUAL, Reading
from l2v.data.texts import FileTexts
from l2v.errors import L2VError
from l2v.extras import require
from l2v.mining.search import Backend
from l2v.mining.vectors import VectorDType

_OUTPUT = ".jsonl"


@dataclass(frozen=True)
class Mining:
    """What is mined, and how. Candidates are ranked from 0 by their cosine with the query."""

    pairs: str | list[str]
    """A path, a glob pattern, or a list of them: .jsonl, .csv, .tsv or .parquet."""
    output: str
    """A .jsonl file; the summary goes beside it, as .summary.json."""
    query_column: str = "query"
    positive_column: str = "positive"
    corpus: str | list[str] | None = None
    """Where negatives come from (also .txt, a text a line); None: the positives of all pairs."""
    corpus_column: str = "text"
    query_instruction: str | None = None
    document_instruction: str | None = None
    num_negatives: Annotated[int, Ge(1)] = 4
    """At most so many a pair."""
    range_min: Annotated[int, Ge(0)] = 0
    """The first rank that is looked at; higher skips what is likeliest to be relevant."""
    range_max: Annotated[int, Ge(1)] = 100
    """The rank that is looked at no more."""
    percentage_margin: Annotated[float, Gt(0), Le(1)] | None = 0.95
    """Drop candidates that score above this fraction of the positive's score (TopK-PercPos)."""
    absolute_margin: Annotated[float, Ge(0)] | None = None
    """Drop candidates that score above the positive's score less this (TopK-MarginPos)."""
    sampling: Literal["top", "random"] = "top"
    """Of the candidates that are left: the best ranked, or any."""
    seed: Annotated[int, Ge(0)] = 0
    """Of random sampling."""
    search: Backend = "torch"
    batch_size: Annotated[int, Ge(1)] = 32
    """Texts encoded at once."""
    vector_dtype: VectorDType = "float16"
    """Of the vectors on disk."""
    query_block: Annotated[int, Ge(1)] = 4096
    """Queries searched for at once; the corpus is read once for each block of them."""
    corpus_block: Annotated[int, Ge(1)] = 16384
    """Documents compared at once."""
    cache: str | None = None
    """A folder for vectors and tables of texts; None: $L2V_CACHE/mining, else ~/.cache/l2v/mining."""
    reading: Reading = AS_USUAL
    """How rows of files are read that leave a choice."""

    def __post_init__(self) -> None:
        if self.range_max < self.range_min + self.num_negatives:
            raise L2VError(
                f"range_max={self.range_max}: expected at least range_min + num_negatives = "
                f"{self.range_min + self.num_negatives}"
            )
        if self.search == "faiss":
            require("search=faiss", "faiss")
        if self.query_column == self.positive_column:
            raise L2VError(f"positive_column={self.positive_column}: expected another column than query_column")
        output = Path(self.output).expanduser()
        if output.suffix != _OUTPUT:
            raise L2VError(f"output={self.output}: expected a {_OUTPUT} file")
        inputs = self.pair_files().paths() + (self.corpus_files().paths() if self.corpus else [])
        for path in inputs:
            if path.resolve() == output.resolve():
                raise L2VError(f"output={self.output}: is read as well; choose another file")
        for path in self.pair_files().paths():
            if ending(path) == ".txt":
                raise L2VError(f"pairs={path}: expected .jsonl, .csv, .tsv, .parquet, found .txt")

    def pair_files(self) -> FileTexts:
        return FileTexts(self.pairs, override="pairs", reading=self.reading)

    def corpus_files(self) -> FileTexts:
        return FileTexts(self.corpus or [], override="corpus", reading=self.reading)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the negatives: the settings, and the files by their content."""
        settings = asdict(self)
        for name in ("output", "cache", "batch_size", "query_block", "corpus_block", "search"):
            del settings[name]
        corpus = self.corpus_files().fingerprint() if self.corpus else None
        return {**settings, "pairs": self.pair_files().fingerprint(), "corpus": corpus}
