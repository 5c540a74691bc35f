"""Which data sets are mixed, and how each is read."""

import dataclasses
import glob
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from l2v.data.files import RECORD_FILES, content, ending, find, stem
from l2v.data.readers import AS_USUAL, Reading, Record, column_names, count_records, records
from l2v.data.texts import content_of_local, load_hub
from l2v.data.triplets.corpus import named_corpora
from l2v.errors import L2VError
from l2v.progress import track

Format = Literal["own", "flagembedding", "tevatron", "sentence-transformers", "nemo", "beir", "msmarco"]
BEIR_FILES = ("corpus.jsonl", "queries.jsonl", "qrels")


@dataclass(frozen=True, kw_only=True)
class SetOptions:
    """Where a set's rows are and how they are read. None: as the mix says."""

    files: str | list[str] | None = None
    """A path, a glob pattern or a list of them: .jsonl, .csv, .tsv or .parquet."""
    hub: str | None = None
    """owner/name of a data set on the Hugging Face hub, in place of files."""
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    data_files: str | None = None
    """What to load of the hub's data set."""
    query: str | None = None
    positive: str | None = None
    negative: str | list[str] | None = None
    """Columns. A negative column holds a text or a list of texts; several columns, a text each; []: pairs."""
    score: str | None = None
    """A column of numbers, kept with the row."""
    positive_score: str | None = None
    """A column of numbers: a teacher's score of the positive; null where it is unknown."""
    negative_scores: str | list[str] | None = None
    """A column beside each negative column: a number for each of its texts, as ``mine.py`` writes them."""
    task: str | None = None
    """The column that says which set a row belongs to, where a file holds several: a set takes the rows of its name."""
    query_instructions: str | list[str] | None = None
    """One wording or several, which take turns: row n of the set has wording n modulo their number."""
    document_instruction: str | None = None
    symmetric: bool | list[bool] | None = None
    """Whether documents are of the same kind as queries, and get the query's instruction; or that for each wording."""
    share: Annotated[float, Gt(0), Le(1)] | None = None
    """Fraction of the rows to use: a fixed seeded choice."""
    on_error: Literal["fatal", "skip"] | None = None
    """What to do about a row that cannot be read, has a field missing or an empty text."""
    reading: Reading | None = None
    """How rows of files are read that leave a choice."""
    prompt: str | None = None
    """A column with each row's own instruction for its query, where ``query_instructions`` are none."""
    format: Format | None = None
    """Whose layout the files have; None: as their columns tell."""
    corpus: str | list[str] | None = None
    """The documents, where rows have their ids: a path, a glob pattern or a list of them."""


@dataclass(frozen=True, kw_only=True)
class TripletSet(SetOptions):
    """One data set of a mix, with every option settled."""

    name: str
    override: str
    """What an error names, e.g. data.sets.nli."""
    seed: int
    symmetric_documents: bool

    def __post_init__(self) -> None:
        if self.files is None and self.hub is None:
            raise L2VError(f"{self.override}.files: must be given (or {self.override}.hub)")
        if self.files is not None and self.hub is not None:
            raise L2VError(f"{self.override}.files and {self.override}.hub exclude each other; give one")
        self.paths()
        self.corpus_paths()
        if self.negative_scores is not None and len(self.score_columns) != len(self.negatives):
            raise L2VError(
                f"{self.override}.negative_scores: expected a column for each of {len(self.negatives)} negative "
                f"columns, found {len(self.score_columns)}"
            )
        wordings = self.wordings
        if isinstance(self.symmetric, list) and len(self.symmetric) != len(wordings):
            raise L2VError(
                f"{self.override}.symmetric: expected one value or one for each of {len(wordings)} "
                f"query_instructions, found {len(self.symmetric)}"
            )

    def paths(self) -> list[Path]:
        """The files; of a BEIR folder its corpus, its queries and the judgements of ``split`` (train)."""
        if self.files is None:
            return []
        folder = Path(self.files).expanduser() if isinstance(self.files, str) else None
        if folder is None or not folder.is_dir():
            return find(self.files, f"{self.override}.files")
        corpus, queries, judgements = (folder / name for name in BEIR_FILES)
        parts = [corpus, queries, judgements / f"{self.split or 'train'}.tsv"]
        for part in parts:
            if not part.is_file():
                raise L2VError(
                    f"{self.override}.files={folder}: a folder without {part.relative_to(folder)}; expected files, or "
                    f"a folder of BEIR's with {', '.join(BEIR_FILES)}/<{self.override}.split>.tsv"
                )
        return parts

    def corpus_paths(self) -> list[Path]:
        return find(self.corpus, f"{self.override}.corpus") if self.corpus is not None else []

    @property
    def layout(self) -> Format | None:
        """Whose layout the files have; None: as their columns tell."""
        is_folder = isinstance(self.files, str) and Path(self.files).expanduser().is_dir()
        return "beir" if is_folder else self.format

    @property
    def how(self) -> Reading:
        """How rows of files are read that leave a choice."""
        return self.reading or AS_USUAL

    @property
    def wordings(self) -> list[str | None]:
        """Instructions of the queries, at least one; None is no instruction."""
        given = self.query_instructions
        wordings: list[str | None] = [given] if isinstance(given, str) else [*(given or ())]
        return wordings or [None]

    @property
    def negatives(self) -> list[str]:
        """Columns of the hard negatives."""
        return [self.negative] if isinstance(self.negative, str) else self.negative or []

    @property
    def score_columns(self) -> list[str]:
        """Columns of the hard negatives' scores, in the order of ``negatives``; none: they have no scores."""
        return [self.negative_scores] if isinstance(self.negative_scores, str) else self.negative_scores or []

    @property
    def columns(self) -> list[str]:
        scores = [self.score, self.positive_score, *self.score_columns]
        named = [self.query, self.positive, *self.negatives, *scores, self.task, self.prompt]
        return [name for name in named if name is not None]

    def instructions(self, number: int) -> tuple[str | None, str | None]:
        """Those of the query and of the documents of row ``number``."""
        turn = number % len(self.wordings)
        symmetric = self.symmetric[turn] if isinstance(self.symmetric, list) else self.symmetric
        if symmetric:
            return self.wordings[turn], self.wordings[turn] if self.symmetric_documents else None
        return self.wordings[turn], self.document_instruction

    def fingerprint(self) -> str:
        """Of the files' bytes and of every option that makes the rows."""
        options = dataclasses.asdict(self)
        unneeded = [*(() if self.task else ("name",)), *(() if self.share != 1 else ("seed",))]
        unneeded += ["reading"] if self.reading == AS_USUAL else []
        unneeded += [key for key in ("prompt", "format") if options[key] is None]
        for key in ("files", "corpus", "override", *unneeded):
            del options[key]
        files = [*self.paths(), *self.corpus_paths(), *named_corpora(self.paths())]
        of_hub = content_of_local(self.hub, self.data_files) if self.hub is not None else ""
        return content(files) + of_hub + json.dumps(options, sort_keys=True)

    @property
    def _column_override(self) -> str:
        return f"{self.override}.query/positive/negative"

    def _of_hub(self, columns: Iterable[str]) -> Any:
        assert self.hub is not None
        return load_hub(
            self.hub,
            self.config,
            self.split or "train",
            self.revision,
            self.data_files,
            columns=columns,
            override=f"{self.override}.hub",
            column_override=self._column_override,
        )

    def column_names(self) -> list[str] | None:
        """The columns of its files, or on the hub; see :func:`l2v.data.readers.column_names`."""
        if self.hub is not None:
            return list(self._of_hub(()).column_names)
        return list(dict.fromkeys(n for path in self.paths() for n in column_names(path, self.how) or ())) or None

    def records(self, *, show: bool) -> Iterator[Record]:
        """The rows as they are in the files or on the hub, with a progress bar."""
        title = f"reading {self.name}"
        if self.hub is not None:
            data = self._of_hub(self.columns)
            named = (Record(f"{self.hub}:{number}", row) for number, row in enumerate(data, 1))
            yield from track(named, title, total=len(data), show=show)
            return
        paths = self.paths()
        counts = [count_records(path) for path in paths]
        total = None if None in counts else sum(count or 0 for count in counts)
        all_records = (
            record for path in paths for record in records(path, self.columns, self._column_override, self.how)
        )
        yield from track(all_records, title, total=total, show=show)


@dataclass(frozen=True, kw_only=True)
class TripletMix(SetOptions):
    """Data sets to train or to validate on; what a set does not say itself it has from here.

    One set is given by ``files`` or ``hub``; several by ``sets``, whose files are ``folder``/<name>.<ending> where they
    name none; ``folder`` alone makes a set of every file in it.
    """

    part: Literal["train", "held_out"]
    folder: str | None = None
    sets: dict[str, SetOptions] = field(default_factory=dict)
    held_out: Annotated[int, Ge(0)] = 256
    """Rows of each set (but at most a tenth) that validate and are never trained on; 0: every row is in both parts."""
    alpha: Annotated[float, Ge(0), Le(1)] = 1.0
    """A set's share of the batches goes as its size to this power: 1 proportional, 0 the same for all sets."""
    seed: Annotated[int, Ge(0)] = 0
    """Of the choice of held-out rows and of shares."""
    symmetric_documents: bool = True
    """False: documents of symmetric sets get no instruction, as in the reference implementation."""
    query: str | None = "query"
    positive: str | None = "positive"
    negative: str | list[str] | None = "negative"
    """None, here: pairs without hard negatives."""
    symmetric: bool | list[bool] | None = False
    share: Annotated[float, Gt(0), Le(1)] | None = 1.0
    on_error: Literal["fatal", "skip"] | None = "fatal"
    reading: Reading | None = AS_USUAL
    override: str = "data.train"
    """What an error names."""

    def __post_init__(self) -> None:
        self.resolved()

    @property
    def names(self) -> list[str]:
        """The names of the sets; a row's ``set`` is an index into them."""
        return list(self._sets())

    def resolved(self) -> list[TripletSet]:
        """The sets with every option settled."""
        inherited = {f.name: getattr(self, f.name) for f in dataclasses.fields(SetOptions)}
        made = []
        for name, (own, override) in self._sets().items():
            options = {k: v for k, v in vars(own).items() if v is not None}
            elsewhere = {"files": None, "hub": None} if options.keys() & {"files", "hub"} else {}
            made.append(
                TripletSet(
                    **(inherited | elsewhere | options),
                    name=name,
                    override=override,
                    seed=self.seed,
                    symmetric_documents=self.symmetric_documents,
                )
            )
        return made

    def _sets(self) -> dict[str, tuple[SetOptions, str]]:
        """Name -> the set's own options, and what its errors name."""
        group = self.override.partition(".")[0]
        has_files = self.files is not None or self.hub is not None
        if self.sets and has_files and not self.task and self.part == "train":
            raise L2VError(
                f"{self.override}.files, .hub and {group}.sets exclude each other, unless {self.override}.task names "
                "the column with a row's set; give one"
            )
        if self.sets and (self.task or not has_files):
            return {name: (self._placed(name, own), f"{group}.sets.{name}") for name, own in self.sets.items()}
        if has_files:
            one_file = isinstance(self.files, str) and Path(self.files).expanduser().is_file()
            name = stem(Path(str(self.files))) if one_file else self.hub or "triplets"
            return {name: (SetOptions(), self.override)}
        if self.folder is None:
            raise L2VError(f"{self.override}.files: must be given (or {group}.folder, or {group}.sets)")
        files = sorted(file for file in self._folder().iterdir() if _is_data(file))
        if not files:
            raise L2VError(f"{group}.folder={self.folder}: expected {', '.join(RECORD_FILES)} files, found none")
        if len({stem(file) for file in files}) < len(files):
            raise L2VError(f"{group}.folder={self.folder}: two files of the same name; list them in {group}.sets")
        return {stem(file): (SetOptions(files=str(file)), f"{group}.sets.{stem(file)}") for file in files}

    def _folder(self) -> Path:
        group = self.override.partition(".")[0]
        if self.folder is None:
            raise L2VError(f"{group}.folder: must be given: the folder with the files of {group}.sets")
        if not (folder := Path(self.folder).expanduser()).is_dir():
            raise L2VError(f"{group}.folder={self.folder}: no such folder; it holds the files of {group}.sets")
        return folder

    def _placed(self, name: str, own: SetOptions) -> SetOptions:
        """A set's options with its file in the folder, where it names none."""
        if own.files is not None or own.hub is not None or (self.task and (self.files or self.hub)):
            return own
        folder = self._folder()
        beside = (file for file in folder.glob(f"{glob.escape(name)}.*") if stem(file) == name and _is_data(file))
        found = sorted(beside, key=lambda file: RECORD_FILES.index(ending(file)))
        if not found:
            group = self.override.partition(".")[0]
            raise L2VError(f"{group}.folder={self.folder}: no {name}.jsonl (.csv, .tsv, .parquet) in it")
        return replace(own, files=str(found[0]))

    def check_validation(self, validation: Any) -> None:
        """That no mix validates on what it trains on.

        Raises:
            L2VError: the same rows in both, or rows held out for nothing.
        """
        if not isinstance(validation, TripletMix):
            return
        mine, theirs = ([replace(one, override="") for one in mix.resolved()] for mix in (self, validation))
        if mine == theirs and self.held_out == 0:
            raise L2VError("data.held_out=0: nothing to validate on; raise it, or name data.validation.files=")
        if mine == theirs and (self.held_out, self.seed) != (validation.held_out, validation.seed):
            raise L2VError("data.train and data.validation: expected the same held_out and seed; set data.held_out")
        if mine != theirs and self.held_out > 0:
            raise L2VError(
                "data.validation has files of its own; set data.held_out=0, so that all of data.train trains"
            )

    def fingerprint(self) -> str:
        prints = [s.fingerprint() for s in self.resolved()]
        return (
            f"triplets:{self.part}:{self.held_out}:{self.seed}:"
            + hashlib.sha256("\n".join(prints).encode()).hexdigest()
        )


def _is_data(file: Path) -> bool:
    """Whether a file of a folder is a data set; a .json beside them may say something of them."""
    return ending(file) in RECORD_FILES and ".json" not in file.suffixes
