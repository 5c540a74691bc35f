"""Training files of other trainers train as they are: each positive with its query, and never as a negative of it."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from launch import ROOT
from tiny import make_tiny_tokenizer

from l2v.data.mixed_order import MixedOrder
from l2v.data.readers import Reading
from l2v.data.triplets.options import TripletMix
from l2v.data.triplets.reading import Counts, Triplet, read_triplets
from l2v.data.triplets.rows import triplet_rows
from l2v.errors import L2VError

CASES = ROOT.parent / "shared" / "cases"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L2V_CACHE", str(tmp_path / "cache"))


def jsonl(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(files: Path, **settings: Any) -> list[Triplet]:
    (one,) = TripletMix(part="train", files=str(files), **settings).resolved()
    return list(read_triplets(one, Counts(), show=False))


def texts(triplets: list[Triplet]) -> list[tuple[str, ...]]:
    return [(row.query, *row.documents) for row in triplets]


FLAG = [
    {"query": "q", "pos": ["a", "b"], "neg": ["n", "b"], "pos_scores": [0.9, 0.8], "neg_scores": [0.2, 0.7]},
    {"query": "r", "pos": ["c"], "neg": [], "prompt": "Find: "},
    {"query": "s", "pos": ["d"], "neg": ["m"], "pos_scores": [], "neg_scores": None},
]


def test_flagembedding(tmp_path: Path) -> None:
    rows = read(jsonl(tmp_path / "flag.jsonl", *FLAG))
    assert texts(rows) == [("q", "a", "n"), ("q", "b", "n"), ("r", "c"), ("s", "d", "m")]
    assert [row.instruction for row in rows] == [None, None, "Find", None]
    assert rows[0].document_scores == [0.9, 0.2] and rows[1].document_scores == [0.8, 0.2]
    assert np.isnan(rows[2].document_scores).all() and np.isnan(rows[3].document_scores).all()
    own = read(jsonl(tmp_path / "flag.jsonl", *FLAG), query_instructions="Mine")
    assert [row.instruction for row in own] == [None] * 4
    wrong = jsonl(tmp_path / "flag.jsonl", {**FLAG[0], "pos_scores": [0.9]})
    with pytest.raises(L2VError, match=r"flag.jsonl:1: expected 2 numbers under 'pos_scores'"):
        read(wrong)
    with pytest.raises(L2VError, match=r"flag.jsonl:1: the list under 'pos' is empty"):
        read(jsonl(tmp_path / "flag.jsonl", {"query": "q", "pos": [], "neg": []}))


def test_a_prompt_of_a_row_is_the_instruction_of_its_query(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    mix = TripletMix(part="train", files=str(jsonl(tmp_path / "flag.jsonl", *FLAG)), held_out=0)
    rows = triplet_rows(mix, tokenizer, max_length=64, show=False)
    assert tokenizer.decode(rows.data[2]["query"]) == "Find:\nr" and tokenizer.decode(rows.data[3]["query"]) == "s"


def passages(*found: tuple[str, str]) -> list[dict[str, str]]:
    return [{"docid": text, "title": title, "text": text} for title, text in found]


def test_tevatron(tmp_path: Path) -> None:
    row = {"query_id": "1", "query": "q", "positive_passages": passages(("T", "a"), ("", "b"))}
    rows = [row | {"negative_passages": passages(("U", "n"))}, {**row, "negative_passages": []}]
    found = texts(read(jsonl(tmp_path / "t.jsonl", *rows)))
    assert found == [("q", "T a", "U n"), ("q", "b", "U n"), ("q", "T a"), ("q", "b")]
    arrow = pyarrow.Table.from_pylist([{**row, "negative_passages": passages(("U", "n"))}])
    pyarrow.parquet.write_table(arrow, tmp_path / "t.parquet")
    assert texts(read(tmp_path / "t.parquet")) == found[:2]


def test_tevatron_with_a_corpus(tmp_path: Path) -> None:
    row = {"query_id": "1", "query_text": "q", "positive_document_ids": ["1"], "negative_document_ids": ["2", "3"]}
    path = jsonl(tmp_path / "ids.jsonl", row)
    corpus = jsonl(tmp_path / "corpus.jsonl", *({"docid": str(n), "title": "T", "text": f"d{n}"} for n in (1, 2, 3)))
    assert texts(read(path, corpus=str(corpus))) == [("q", "T d1", "T d2", "T d3")]
    with pytest.raises(L2VError, match=r"corpus: must be given"):
        read(path)
    with pytest.raises(L2VError, match=r"ids.jsonl:1: the corpus has no document '3'"):
        read(path, corpus=str(jsonl(tmp_path / "less.jsonl", {"id": 1, "text": "a"}, {"id": 2, "text": "b"})))
    with pytest.raises(L2VError, match=r"odd.jsonl:1: expected an id .* its columns are body"):
        read(path, corpus=str(jsonl(tmp_path / "odd.jsonl", {"body": "a"})))


def test_the_corpus_counts_in_the_fingerprint(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "ids.jsonl", {"query_text": "q", "positive_document_ids": ["1"], "negative_document_ids": []}
    )
    prints = {
        TripletMix(part="train", files=str(path), corpus=str(jsonl(tmp_path / "c.jsonl", {"id": 1, "text": text})))
        .resolved()[0]
        .fingerprint()
        for text in ("a", "b")
    }
    assert len(prints) == 2


def test_nemo(tmp_path: Path) -> None:
    inline = [
        {"question": "q", "pos_doc": "a", "neg_doc": ["m", {"text": "n"}]},
        {"question": "r", "pos_doc": ["b", "c"], "neg_doc": "o"},
    ]
    wanted = [("q", "a", "m", "n"), ("r", "b", "o"), ("r", "c", "o")]
    assert texts(read(jsonl(tmp_path / "nemo.jsonl", *inline))) == wanted
    jsonl(tmp_path / "wiki" / "train.jsonl", {"id": "1", "text": "a"}, {"id": "2", "text": "n"}, {"id": 3, "text": "o"})
    (tmp_path / "wiki" / "merlin_metadata.json").write_text('{"class": "TextQADataset", "corpus_id": "wiki"}')
    data = [{"question_id": "x", "question": "q", "corpus_id": "wiki", "pos_doc": [{"id": "1"}], "neg_doc": ["2", 3]}]
    for place in (str(tmp_path / "wiki"), "wiki"):
        whole = {"corpus": [{"path": place}], "data": data}
        (tmp_path / "nemo.json").write_text(json.dumps(whole, indent=2))
        assert texts(read(tmp_path / "nemo.json")) == [("q", "a", "n", "o")]
    (tmp_path / "nemo.json").write_text(json.dumps({"corpus": [{"path": "gone"}], "data": data}))
    with pytest.raises(L2VError, match=r"nemo.json: its corpus gone has no .jsonl or .parquet files"):
        read(tmp_path / "nemo.json")


def test_sentence_transformers(tmp_path: Path) -> None:
    columns = {"anchor": ["q"], "positive": ["a"], **{f"negative_{n}": [f"n{n}"] for n in (1, 2, 10)}, "score": [0.5]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "st.parquet")
    (row,) = read(tmp_path / "st.parquet")
    assert (row.query, *row.documents) == ("q", "a", "n1", "n2", "n10") and row.score == 0.5
    (tmp_path / "pairs.csv").write_text("anchor,positive\nq,a\n")
    assert texts(read(tmp_path / "pairs.csv")) == [("q", "a")]
    (tmp_path / "mined.csv").write_text("query,answer,negative_1\nq,a,n\n")
    assert texts(read(tmp_path / "mined.csv")) == [("q", "a", "n")]
    (tmp_path / "numbered.csv").write_text("query,positive,negative_1,negative_2\nq,a,n,m\n")
    assert texts(read(tmp_path / "numbered.csv")) == [("q", "a", "n", "m")]


def beir(folder: Path) -> Path:
    jsonl(folder / "corpus.jsonl", *({"_id": f"d{n}", "title": "T", "text": f"t{n}"} for n in range(4)))
    jsonl(folder / "queries.jsonl", {"_id": "q1", "text": "q"}, {"_id": "q2", "text": "r"})
    (folder / "qrels").mkdir()
    rows = ["q1\td0\t1", "q1\td1\t2", "q1\td2\t0", "q2\td3\t1"]
    (folder / "qrels" / "train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n")
    return folder


def test_a_folder_of_beir(tmp_path: Path) -> None:
    folder = beir(tmp_path / "scifact")
    assert texts(read(folder)) == [("q", "T t0", "T t2"), ("q", "T t1", "T t2"), ("r", "T t3")]
    with pytest.raises(L2VError, match=r"a folder without qrels/dev.tsv; expected files, or a folder of BEIR's"):
        read(folder, split="dev")
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td9\t1\n")
    with pytest.raises(L2VError, match=r"train.tsv:2: corpus.jsonl or queries.jsonl has no 'd9'"):
        read(folder)


def test_triples_of_ms_marco(tmp_path: Path) -> None:
    (tmp_path / "triples.tsv").write_text('is a "cat" big\tA cat, "so\tA dog\nr\tb\tn\n')
    wanted = [('is a "cat" big', 'A cat, "so', "A dog"), ("r", "b", "n")]
    assert texts(read(tmp_path / "triples.tsv", format="msmarco")) == wanted
    (tmp_path / "triples.tsv").write_text("1\t2\t3\n")
    with pytest.raises(L2VError, match=r"triples.tsv:1: .*ids, and no texts"):
        read(tmp_path / "triples.tsv", format="msmarco")
    (tmp_path / "triples.tsv").write_text("a\tb\n")
    with pytest.raises(L2VError, match=r"triples.tsv:1: 2 fields; expected query, positive and negative"):
        read(tmp_path / "triples.tsv", format="msmarco")


def test_what_the_user_names_is_taken(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "flag.jsonl", {"query": "q", "pos": ["a"], "neg": ["n"], "positive": "mine", "negative": "x"}
    )
    assert texts(read(path)) == [("q", "mine", "x")]
    assert texts(read(path, format="flagembedding")) == [("q", "a", "n")]
    assert texts(read(path, positive="pos", negative="neg")) == [("q", "a", "n")]
    with pytest.raises(L2VError, match=r"format=tevatron: .* has other columns: query, pos"):
        read(path, format="tevatron")
    other = jsonl(tmp_path / "other.jsonl", {"one": "q", "two": "a"})
    with pytest.raises(L2VError, match=r"other.jsonl:1: no column 'query' \(it has one, two\)"):
        read(other)


def test_positives_of_a_query_never_meet_in_a_batch(tmp_path: Path) -> None:
    rows = [{"query": f"q{n}", "pos": [f"a{n}", f"b{n}"], "neg": [f"n{n}"]} for n in range(40)]
    mix = TripletMix(part="train", files=str(jsonl(tmp_path / "flag.jsonl", *rows)), held_out=0)
    read_rows = triplet_rows(mix, make_tiny_tokenizer(), max_length=32, show=False)
    assert len(read_rows) == 80
    queries = np.array(read_rows.data["query_hash"])
    order = MixedOrder(read_rows.texts(), names=read_rows.names, batch_size=8, batches=20)
    for batch in range(20):
        chosen = queries[order.rows_of(batch)]
        assert len(set(chosen.tolist())) == len(chosen)


def test_the_shared_cases() -> None:
    if not CASES.is_dir():
        pytest.skip("../shared/cases is not there")
    flag = [json.loads(line) for line in (CASES / "flagembedding.jsonl").read_text().splitlines()]
    assert len(read(CASES / "flagembedding.jsonl")) == sum(len(row["pos"]) for row in flag)
    assert read(CASES / "tevatron.jsonl")[0].documents[0] == "T A cat sat on the mat. p0"


def test_a_data_set_of_the_hub_in_another_layout(tmp_path: Path) -> None:
    """Recognised by its columns as files are, or named."""
    file = jsonl(tmp_path / "st.jsonl", {"anchor": "q", "positive": "a", "negative_1": "n", "negative_2": "m"})
    hub: dict[str, Any] = {"hub": "json", "data_files": str(file), "held_out": 0, "part": "train"}
    for settings in ({}, {"format": "sentence-transformers"}):
        (one,) = TripletMix(**hub, **settings).resolved()
        assert texts(list(read_triplets(one, Counts(), show=False))) == [("q", "a", "n", "m")]
    for settings, told in (
        ({"format": "own"}, "no column 'query'; .*; name the column with data.train.query/positive/negative"),
        ({"format": "tevatron"}, "data.train.format=tevatron: json has other columns: anchor, positive"),
        ({"format": "msmarco"}, "data.train.format=msmarco: of files, and data.train.hub is given"),
    ):
        (one,) = TripletMix(**hub, **settings).resolved()
        with pytest.raises(L2VError, match=told):
            list(read_triplets(one, Counts(), show=False))


def test_a_corpus_that_changed_makes_other_rows(tmp_path: Path) -> None:
    """One that only the file of ids names, too."""
    data = [{"question": "q", "pos_doc": [{"id": "1"}], "neg_doc": []}]
    (tmp_path / "nemo.json").write_text(json.dumps({"corpus": {"path": "corpus"}, "data": data}))
    prints = []
    for text in ("old", "new"):
        jsonl(tmp_path / "corpus" / "train.jsonl", {"id": "1", "text": text})
        prints.append(TripletMix(part="train", files=str(tmp_path / "nemo.json")).fingerprint())
        assert texts(read(tmp_path / "nemo.json")) == [("q", text)]
    assert prints[0] != prints[1]


def test_a_corpus_in_a_file_of_another_kind_is_a_word_like_others(tmp_path: Path) -> None:
    whole = {"corpus": "wiki", "data": [{"query": "q", "positive": "a", "negative": "n"}]}
    (tmp_path / "rows.json").write_text(json.dumps(whole))
    assert texts(read(tmp_path / "rows.json")) == [("q", "a", "n")]
    TripletMix(part="train", files=str(tmp_path / "rows.json")).fingerprint()


def test_one_list_of_rows_may_be_compressed(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "rows.json.gz", "wt") as file:
        json.dump([{"query": "q", "positive": "a", "negative": "n"}], file, indent=1)
    assert texts(read(tmp_path / "rows.json.gz")) == [("q", "a", "n")]


def test_what_is_no_text_or_number_is_told_with_its_place(tmp_path: Path) -> None:
    folder = beir(tmp_path / "scifact")
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t\n")
    with pytest.raises(L2VError, match=r"train.tsv:2: expected a number, found ''"):
        read(folder)
    jsonl(folder / "corpus.jsonl", {"_id": "d1", "title": 3, "text": "t"})
    with pytest.raises(L2VError, match=r"corpus.jsonl:1: expected a text as title and text of a document, found 3"):
        read(folder)
    passages = {"query": "q", "positive_passages": [{"title": 7, "text": "t"}], "negative_passages": []}
    with pytest.raises(L2VError, match=r"tevatron.jsonl:1: expected a text as title and text of a document, found 7"):
        read(jsonl(tmp_path / "tevatron.jsonl", passages))
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(L2VError, match=r"cut.parquet: not Parquet"):
        read(tmp_path / "cut.parquet")


def test_ids_are_looked_up_in_every_layout_that_has_a_corpus(tmp_path: Path) -> None:
    corpus = str(jsonl(tmp_path / "corpus.jsonl", *({"_id": f"d{n}", "text": f"text {n}"} for n in range(3))))
    rows = [
        {"query": "q", "positive": "d1", "negative": ["d2"]},
        {"question": "q", "pos_doc": ["d1"], "neg_doc": ["d2"]},
        {"query": "q", "pos": ["d1"], "neg": ["d2"]},
        {"anchor": "q", "positive": "d1", "negative_1": "d2"},
    ]
    for number, row in enumerate(rows):
        path = jsonl(tmp_path / f"{number}.jsonl", row)
        assert texts(read(path, corpus=corpus)) == [("q", "text 1", "text 2")]
    with pytest.raises(L2VError, match=r"0.jsonl:1: the corpus has no document 'd9'"):
        read(jsonl(tmp_path / "0.jsonl", {"query": "q", "positive": "d9"}), corpus=corpus)
    with pytest.raises(L2VError, match=r"format=msmarco: of files, and data.train.corpus is given"):
        read(path, corpus=corpus, format="msmarco")


def test_an_id_of_0_is_one(tmp_path: Path) -> None:
    corpus = str(jsonl(tmp_path / "corpus.jsonl", {"id": 0, "text": "none"}, {"id": 1, "text": "one"}))
    row = {"query_text": "q", "positive_document_ids": 1, "negative_document_ids": 0}
    assert texts(read(jsonl(tmp_path / "ids.jsonl", row), corpus=corpus)) == [("q", "one", "none")]


def test_two_documents_of_one_id_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", {"query": "q", "positive": "0"})
    corpora = [str(jsonl(tmp_path / f"{name}.jsonl", {"id": "0", "text": name})) for name in ("one", "two")]
    with pytest.raises(L2VError, match=r"two.jsonl:1: a document before has the id '0', too, and another text"):
        read(path, corpus=corpora)
    same = jsonl(tmp_path / "same.jsonl", {"id": "0", "text": "one"})
    assert texts(read(path, corpus=[corpora[0], str(same)])) == [("q", "one")]


def test_columns_that_the_user_names_stay_in_a_layout(tmp_path: Path) -> None:
    flag = jsonl(tmp_path / "flag.jsonl", {"query": "q", "pos": ["p"], "neg": ["n"], "title": "T"})
    assert texts(read(flag, negative=None)) == [("q", "p")]
    assert texts(read(flag, query="title")) == [("T", "p", "n")]
    row = {"anchor": "a", "positive": "p", "negative": "n", "ps": 0.5, "ns": 0.25}
    scored = jsonl(tmp_path / "st.jsonl", row)
    assert texts(read(scored, negative=None)) == [("a", "p")]
    (found,) = read(scored, positive_score="ps", negative_scores="ns")
    assert found.document_scores == [0.5, 0.25]


@pytest.mark.parametrize("first", ["query", "anchor"])
def test_a_numbered_negative_that_comes_late_is_not_passed_over(tmp_path: Path, first: str) -> None:
    rows = [{first: f"q{n}", "positive": "p", "negative_1": f"n{n}"} for n in range(1000)]
    path = jsonl(tmp_path / "rows.jsonl", *rows, {**rows[0], "negative_2": "m"})
    with pytest.raises(L2VError, match=r"rows.jsonl:1001: a column 'negative_2', which the first rows have not"):
        read(path)
    for name, part in (("a", rows[:2]), ("b", [{**rows[2], "negative_2": "m"}])):
        jsonl(tmp_path / "parts" / f"{name}.jsonl", *part)
    (one,) = TripletMix(part="train", files=str(tmp_path / "parts" / "*.jsonl")).resolved()
    assert [len(row.documents) for row in read_triplets(one, Counts(), show=False)] == [2, 2, 3]


def test_a_header_is_read_as_its_rows_are(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text('anchor\tpositive\n"odd\tp\nb\tq\n')
    (one,) = TripletMix(part="train", files=str(path), reading=Reading(quotes=False)).resolved()
    assert texts(list(read_triplets(one, Counts(), show=False))) == [('"odd', "p"), ("b", "q")]
