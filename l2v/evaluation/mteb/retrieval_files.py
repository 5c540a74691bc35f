"""Retrieval of mteb from files."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from l2v.data.files import RECORD_FILES
from l2v.data.readers import check_columns, records, table_rows
from l2v.errors import L2VError
from l2v.evaluation.mteb.files import Files, LocalSet


@dataclass(frozen=True, kw_only=True)
class RetrievalSet(LocalSet):
    """Queries, documents and judgements in the files of BEIR: nDCG@10.

    ``sample`` draws that many documents; those that are judged for one of the queries always belong to them.

    Attributes:
        corpus: .jsonl with ``_id``, ``text`` and perhaps ``title``.
        queries: .jsonl with ``_id`` and ``text``.
        qrels: .tsv with ``query-id``, ``corpus-id`` and ``score``.
        sample_queries: how many of the queries that have a judgement to take; None: all.
    """

    corpus: Files
    queries: Files
    qrels: Files
    sample_queries: Annotated[int, Ge(1)] | None = None

    metric = "nDCG@10"
    sampled: ClassVar[str] = "documents"
    kind: ClassVar[str] = "Retrieval"
    main_score: ClassVar[str] = "ndcg_at_10"
    base: ClassVar[str] = "AbsTaskRetrieval"
    endings: ClassVar[tuple[str, ...]] = RECORD_FILES

    @property
    def label(self) -> str:  # type: ignore[override]
        drawn = [(self.sample, "documents"), (self.sample_queries, "queries")]
        told = ", ".join(f"{number:,} {what}" for number, what in drawn if number)
        return f"{self.name} ({told})" if told else self.name

    @property
    def _task_name(self) -> str:
        return super()._task_name + (f".{self.sample_queries}q" if self.sample_queries else "")

    def _paths(self) -> list[Path]:
        return [path for files in (self.corpus, self.queries, self.qrels) for path in self._find(files)]

    def _dataset(self) -> Any:
        from datasets import Dataset

        judged: dict[str, dict[str, int]] = {}
        columns = ("query-id", "corpus-id")
        for query, document, score in table_rows(self._find(self.qrels), columns, "score", int, None, self.name, 1):
            judged.setdefault(query, {})[document] = score
        queries = [row for row in table_rows(self._find(self.queries), ("_id",), "text", _text, None, self.name, 1)
                   if any(score > 0 for score in judged.get(row[0], {}).values())]  # fmt: skip
        queries = self._drawn(queries, self.sample_queries, "queries")
        if not queries:
            raise L2VError(f"{self.name}: no query of {self.queries} has a relevant document in {self.qrels}")
        judged = {query: judged[query] for query, _ in queries}
        needed = {document for documents in judged.values() for document in documents}
        documents = list(_documents(self._find(self.corpus), self.name))
        if lost := needed - {document["id"] for document in documents}:
            raise L2VError(f"{self.name}: {self.qrels} judges the document {min(lost)}, which {self.corpus} has not")
        if self.sample is not None:
            others = [document for document in documents if document["id"] not in needed]
            kept = {document["id"] for document in self._drawn(others, max(self.sample - len(needed), 0))} | needed
            documents = [document for document in documents if document["id"] in kept]
        split = {
            "corpus": Dataset.from_list(documents),
            "queries": Dataset.from_list([{"id": key, "text": text} for key, text in queries]),
            "relevant_docs": judged,
            "top_ranked": None,
        }
        return {"default": {"test": split}}


def _documents(paths: list[Path], name: str) -> Iterable[dict[str, str]]:
    for path in paths:
        for where, values, problem in records(path, ("_id", "text"), name):
            if problem or not isinstance(values, dict):
                raise L2VError(f"{where}: {problem or 'expected an object'}")
            check_columns(values, ("_id", "text"), where, f"{name}: corpus")
            try:
                title = "" if values.get("title") is None else _text(values["title"])
                yield {"id": str(values["_id"]), "title": title, "text": _text(values["text"])}
            except ValueError as error:
                raise L2VError(f"{where}: {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {type(value).__name__}")
    return value
