"""Triplets: what is read, what is refused, what is held out, and what a batch of them is."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from launch import ROOT, composed
from tiny import make_tiny_tokenizer

from l2v import config as configs
from l2v.data.collate import TripletBatch
from l2v.data.mixed_order import MixedOrder
from l2v.data.order import Pick
from l2v.data.triplets import rows as module
from l2v.data.triplets.options import SetOptions, TripletMix
from l2v.data.triplets.rows import triplet_counts, triplet_rows
from l2v.errors import L2VError
from l2v.text.prompts import Prompt
from l2v.text.tokenization import tokenize

TOKENIZER = make_tiny_tokenizer()
E5_SAMPLE = ROOT.parent / "shared" / "data" / "e5-sample"
Lines = list[Any]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L2V_CACHE", str(tmp_path / "cache"))


def triplet(number: int, **more: Any) -> dict[str, Any]:
    return {"query": f"q{number}", "positive": f"p{number}", "negative": f"n{number}", **more}


def written(path: Path, rows: Lines) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def mix(path: Path, rows: Lines | None = None, **settings: Any) -> TripletMix:
    """A mix of one file, none of it held out."""
    if rows is not None:
        written(path, rows)
    return TripletMix(**{"part": "train", "files": str(path), "held_out": 0} | settings)


def read(of: TripletMix, **settings: Any) -> list[dict[str, Any]]:
    rows = triplet_rows(of, TOKENIZER, **{"max_length": 64, "show": False} | settings)
    return [row for row, _ in rows.__getitems__([Pick(n, n) for n in range(len(rows))])]


def texts(row: dict[str, Any]) -> list[str]:
    """The texts of a row, with their instructions."""
    return TOKENIZER.batch_decode([row["query"], *row["documents"]])


def test_a_row_is_a_query_and_its_documents_tokenized(tmp_path: Path) -> None:
    (row,) = read(mix(tmp_path / "a.jsonl", [triplet(1)]))
    assert texts(row) == ["q1", "p1", "n1"]
    assert (row["query_begin"], row["document_begins"], row["set"]) == (0, [0, 0], 0)
    assert np.isnan(row["score"])


def test_columns_have_any_name_and_a_score_is_kept(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "p", "wrong": ["n1", "n2"], "stars": "3.5"}]
    (row,) = read(mix(tmp_path / "a.jsonl", rows, query="question", positive="answer", negative="wrong", score="stars"))
    assert texts(row) == ["q", "p", "n1", "n2"] and row["score"] == 3.5


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
def test_tables_may_have_several_negative_columns_not_all_of_them_filled(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    if ending == ".parquet":
        columns = {"query": ["q", "r"], "positive": ["p", "s"], "n1": ["x", "y"], "n2": ["z", None], "other": [1, 2]}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        table = "query,positive,n1,n2,other\nq,p,x,z,1\nr,s,y,,2\n"
        path.write_text(table.replace(",", "\t") if ending == ".tsv" else table)
    assert [texts(row) for row in read(mix(path, negative=["n1", "n2"]))] == [["q", "p", "x", "z"], ["r", "s", "y"]]


@pytest.mark.parametrize("negative", [None, []])
def test_pairs_have_no_negatives(tmp_path: Path, negative: Any) -> None:
    of = mix(tmp_path / "a.jsonl", [{"query": "q", "positive": "p"}], negative=negative)
    assert [texts(row) for row in read(of)] == [["q", "p"]]


def test_rows_of_one_file_may_have_none_or_many_negatives(tmp_path: Path) -> None:
    rows = [triplet(1, negative=[]), triplet(2, negative=["x", "y"]), triplet(3, negative=None)]
    assert [len(row["documents"]) for row in read(mix(tmp_path / "a.jsonl", rows))] == [1, 3, 1]


def test_a_hub_data_set_is_read_like_a_file(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", [triplet(1), triplet(2)])
    of = TripletMix(part="train", hub="json", data_files=str(tmp_path / "a.jsonl"), held_out=0)
    assert [texts(row)[0] for row in read(of)] == ["q1", "q2"]


def test_a_column_may_say_to_which_set_a_row_belongs(tmp_path: Path) -> None:
    rows = [triplet(1, kind="a"), triplet(2, kind="b"), triplet(3, kind="a"), triplet(4, kind="c")]
    of = mix(tmp_path / "all.jsonl", rows, task="kind", sets={"a": SetOptions(), "b": SetOptions()})
    assert [(row["set"], texts(row)[0]) for row in read(of)] == [(0, "q1"), (0, "q3"), (1, "q2")]


# what is wrong with a file

BROKEN = [
    ('{"query": ', "not JSON"),
    ("[1, 2]", "expected an object with 'query', found list"),
    ({"query": "q", "negative": "n"}, r"no column 'positive' \(it has query, negative\); name the column with "),
    ({"query": "q", "positive": "p"}, "no column 'negative' .*null: pairs"),
    ({"query": " \t", "positive": "p", "negative": "n"}, "the text under 'query' is empty"),
    ({"query": "q", "positive": 3, "negative": "n"}, "expected a text under 'positive', found int"),
    ({"query": "q", "positive": "p", "negative": ["n", ""]}, "the text under 'negative' is empty"),
    ({"query": "q", "positive": "p", "negative": ""}, "the text under 'negative' is empty"),
]


@pytest.mark.parametrize(("line", "problem"), BROKEN, ids=[problem for _, problem in BROKEN])
def test_a_broken_row_is_told_with_its_line_and_leaves_nothing(tmp_path: Path, line: Any, problem: str) -> None:
    of = mix(tmp_path / "a.jsonl", [triplet(1), "", line, triplet(2)])
    with pytest.raises(L2VError, match=rf"a.jsonl:3: {problem}.*data.train.on_error=skip") as error:
        read(of)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.arrow")) and not list((tmp_path / "cache" / "triplets").iterdir())


@pytest.mark.parametrize(("line", "problem"), BROKEN, ids=[problem for _, problem in BROKEN])
def test_a_broken_row_can_be_skipped_and_is_counted(tmp_path: Path, line: Any, problem: str) -> None:
    of = mix(tmp_path / "a.jsonl", [triplet(1), line, triplet(2)], on_error="skip")
    assert [texts(row)[0] for row in read(of)] == ["q1", "q2"]
    counts = triplet_counts(of, TOKENIZER, max_length=64)["a"]
    assert (counts["rows"], counts["broken"], len(counts["places"])) == (2, 1, 1)
    assert counts["places"][0].startswith(f"{tmp_path}/a.jsonl:2: ")


def test_a_line_that_is_not_utf_8_is_told_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(triplet(1)).encode() + b'\n{"query": "caf\xe9"}\n')
    with pytest.raises(L2VError, match=r"a.jsonl:2: not UTF-8 \(byte 0xe9\)"):
        read(mix(path))


def test_a_table_without_the_column_is_refused_also_where_broken_rows_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("query,note\nq,p\n")
    with pytest.raises(L2VError, match=r"a.csv: no column 'positive'; it has query, note; name the column with"):
        read(mix(tmp_path / "a.csv", on_error="skip"))


def test_a_row_of_a_table_is_told_by_its_number(tmp_path: Path) -> None:
    columns = {"query": ["q", ""], "positive": ["p", "p"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(L2VError, match=r"a.parquet:2: the text under 'query' is empty"):
        read(mix(tmp_path / "a.parquet", negative=None))


def test_a_score_that_is_no_number_is_broken(tmp_path: Path) -> None:
    with pytest.raises(L2VError, match=r"a.jsonl:1: expected a number under 'stars', found 'many'"):
        read(mix(tmp_path / "a.jsonl", [triplet(1, stars="many")], score="stars"))


SCORED = {"positive_score": "positive_score", "negative_scores": "negative_scores"}


def test_a_teachers_scores_go_with_their_documents(tmp_path: Path) -> None:
    rows = [
        # the positive, the query and the second x are dropped, and their scores with them
        triplet(0, negative=["p0", "x", "q0", "x", "y"], positive_score=0.75, negative_scores=[1, 0.5, 2, 3, None]),
        triplet(1, negative="z", positive_score=None, negative_scores=0.25),
        triplet(2, negative=["a", "b"], positive_score="1.5", negative_scores=None),
    ]
    made = triplet_rows(mix(tmp_path / "a.jsonl", rows, **SCORED), TOKENIZER, max_length=64, show=False)
    picked = made.__getitems__([Pick(n, n) for n in range(3)])
    batch = TripletBatch(0, "right", negatives=2)(picked)
    nan = np.nan
    assert batch["scores"].dtype == torch.float32
    np.testing.assert_array_equal(batch["scores"].numpy(), np.float32([0.75, nan, 1.5, 0.5, nan, 0.25, nan, nan]))


def test_drawn_negatives_bring_their_own_scores(tmp_path: Path) -> None:
    row = triplet(0, negative=[f"n{n}" for n in range(10)], positive_score=-1, negative_scores=list(range(10)))
    made = triplet_rows(mix(tmp_path / "a.jsonl", [row], **SCORED), TOKENIZER, max_length=64, show=False)
    for key in range(5):
        ((kept, _),) = picked = made.__getitems__([Pick(0, key)])
        batch = TripletBatch(0, "right", negatives=3)(picked)
        places = [kept["document_hashes"].index(text) for text in batch["document_hash"].tolist()]
        assert batch["scores"].tolist() == [place - 1 for place in places] and places[0] == 0


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"negative_scores": [1, 2]}, "expected a number under 'negative_scores' for each of 1 negatives, found"),
        ({"negative_scores": "high"}, "expected a number under 'negative_scores', found 'high'"),
        ({"negative_scores": 1, "positive_score": "high"}, "expected a number under 'positive_score', found 'high'"),
    ],
)
def test_scores_that_fit_no_document_are_broken(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(L2VError, match=problem):
        read(mix(tmp_path / "a.jsonl", [triplet(1, **{"positive_score": 1} | row)], **SCORED))


def test_each_negative_column_has_a_column_of_scores(tmp_path: Path) -> None:
    rows = [triplet(1, other="o1", a=0.5, b=0.25)]
    columns = {"negative": ["negative", "other"], "negative_scores": ["a", "b"]}
    (row,) = read(mix(tmp_path / "a.jsonl", rows, **columns))
    assert row["document_scores"][1:] == [0.5, 0.25] and np.isnan(row["document_scores"][0])
    with pytest.raises(L2VError, match=r"data.train.negative_scores: expected a column for each of 2 .*, found 1"):
        mix(tmp_path / "a.jsonl", **columns | {"negative_scores": "a"})


def test_a_file_of_broken_rows_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(L2VError, match=r"data.train.files: no row of a can be used; .*a.jsonl:1: not JSON"):
        read(mix(tmp_path / "a.jsonl", ["{", "{"], on_error="skip"))


def test_negatives_that_repeat_a_text_of_their_row_are_dropped_and_counted(tmp_path: Path) -> None:
    of = mix(tmp_path / "a.jsonl", [triplet(1, negative=["p1", "x", "q1", " x ", "y"]), triplet(2, negative="p2")])
    assert [texts(row)[1:] for row in read(of)] == [["p1", "x", "y"], ["p2"]]
    counts = triplet_counts(of, TOKENIZER, max_length=64)["a"]
    assert (counts["negatives"], counts["negatives_dropped"]) == (2, 4)


def test_what_was_left_out_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of = mix(tmp_path / "a.jsonl", [triplet(1), "{", triplet(2, negative="p2")], on_error="skip")
    for _ in range(2):
        read(of, show=True)
    told = capsys.readouterr().err
    assert told.count("a: 2 rows, 1 hard negatives; 1 negatives left out") == 1 and "a.jsonl:2: not JSON" in told


# instructions


def test_wordings_take_turns_by_the_rows_place_in_the_file(tmp_path: Path) -> None:
    rows = [triplet(0), triplet(1), "{", triplet(3)]
    of = mix(tmp_path / "a.jsonl", rows, query_instructions=["first", "second"], on_error="skip")
    assert [texts(row)[0] for row in read(of)] == ["first:\nq0", "second:\nq1", "second:\nq3"]
    (first, *_) = read(of, prompt=Prompt(separator="; "))
    assert texts(first) == ["first; q0", "p0", "n0"]
    assert TOKENIZER.decode(first["query"][first["query_begin"] :]).strip() == "q0"


@pytest.mark.parametrize(
    ("symmetric", "symmetric_documents", "expected"),
    [
        (False, True, ["p0", "p1"]),
        (True, True, ["a:\np0", "b:\np1"]),
        ([False, True], True, ["p0", "b:\np1"]),
        (True, False, ["p0", "p1"]),
    ],
)
def test_documents_of_symmetric_sets_get_the_querys_instruction(
    tmp_path: Path, symmetric: Any, symmetric_documents: bool, expected: list[str]
) -> None:
    settings = {"query_instructions": ["a", "b"], "symmetric": symmetric, "symmetric_documents": symmetric_documents}
    of = mix(tmp_path / "a.jsonl", [triplet(0), triplet(1)], **settings)
    assert [texts(row)[1] for row in read(of)] == expected


def test_documents_may_have_an_instruction_of_their_own(tmp_path: Path) -> None:
    (row,) = read(mix(tmp_path / "a.jsonl", [triplet(0)], document_instruction="d"))
    assert texts(row) == ["q0", "d:\np0", "d:\nn0"]


def test_equal_texts_have_equal_hashes_whatever_their_instructions(tmp_path: Path) -> None:
    rows = [triplet(0, positive="same"), triplet(1, query="same", negative="other"), triplet(2, positive="other ")]
    first, second, third = read(mix(tmp_path / "a.jsonl", rows, query_instructions="i"))
    assert first["document_hashes"][0] == second["query_hash"]
    assert second["document_hashes"][1] == third["document_hashes"][0]
    assert len({h for row in (first, second, third) for h in (row["query_hash"], *row["document_hashes"])}) == 7


def test_a_template_stands_around_queries_and_documents(tmp_path: Path) -> None:
    of = mix(tmp_path / "a.jsonl", [triplet(0)])
    for template in ("[{text}]", "({text})"):
        (row,) = read(of, prompt=Prompt(template=template))
        for ids in (row["query"], *row["documents"]):
            assert (TOKENIZER.decode(ids)[0], TOKENIZER.decode(ids)[-1]) == (template[0], template[-1])


# the cache


def test_rows_are_made_once_and_memory_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = mix(tmp_path / "a.jsonl", [triplet(n) for n in range(5)])
    before = read(of)
    monkeypatch.setattr(module, "tokenize", None)
    again = triplet_rows(of, TOKENIZER, max_length=64, show=False)
    assert [texts(row) for row in read(of)] == [texts(row) for row in before]
    assert again.data.cache_files[0]["filename"].endswith("rows.arrow")


def test_a_change_of_one_set_leaves_the_others_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        written(tmp_path / f"{name}.jsonl", [triplet(n) for n in range(3)])
    mixes = [
        TripletMix(part="train", folder=str(tmp_path), sets={"a": SetOptions(), "b": b}, held_out=0)
        for b in (SetOptions(), SetOptions(query_instructions="i"))
    ]
    read(mixes[0])
    tokenized: list[str] = []

    def spy(texts: list[str], *arguments: Any, **settings: Any) -> Any:
        tokenized.extend(settings["instructions"])
        return tokenize(texts, *arguments, **settings)

    monkeypatch.setattr(module, "tokenize", spy)
    read(mixes[1])
    assert tokenized == ["i"] * 3 + [None] * 6


@pytest.mark.parametrize("change", ["file", "length", "separator", "negative", "share", "instruction"])
def test_whatever_changes_the_rows_makes_new_ones(tmp_path: Path, change: str) -> None:
    settings: dict[str, Any] = {"query_instructions": "i"}
    of = mix(tmp_path / "a.jsonl", [triplet(n) for n in range(8)], **settings)
    read(of)
    made = len(list((tmp_path / "cache" / "triplets").iterdir()))
    changed: dict[str, Any] = {
        "negative": {"negative": None},
        "share": {"share": 0.5},
        "instruction": {"query_instructions": "j"},
    }
    if change == "file":
        written(tmp_path / "a.jsonl", [triplet(n) for n in range(9)])
    read(
        mix(tmp_path / "a.jsonl", **settings | changed.get(change, {})),
        max_length=32 if change == "length" else 64,
        prompt=Prompt(separator="; " if change == "separator" else ":\n"),
    )
    assert (made, len(list((tmp_path / "cache" / "triplets").iterdir()))) == (1, 2)


def test_an_interrupted_first_reading_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = mix(tmp_path / "a.jsonl", [triplet(n) for n in range(2000)])
    calls = []

    def interrupted(*arguments: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return tokenize(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(module, "tokenize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read(of)
    assert list((tmp_path / "cache" / "triplets").iterdir()) == []
    assert len(read(of)) == 2000


def test_the_fingerprint_tells_bytes_parts_and_options_but_not_the_place(tmp_path: Path) -> None:
    of = mix(tmp_path / "a.jsonl", [triplet(0)])
    moved = mix((tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl"))
    other = mix(tmp_path / "c.jsonl", [triplet(1)])
    prints = [one.fingerprint() for one in (moved, other, mix(tmp_path / "b.jsonl", negative=None))]
    prints.append(mix(tmp_path / "b.jsonl", part="held_out").fingerprint())
    assert len(set(prints)) == 4
    written(tmp_path / "a.jsonl", [triplet(0)])
    assert of.fingerprint() == prints[0]


def test_a_share_is_a_fixed_part_that_grows_with_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [triplet(n) for n in range(400)])
    tenth, half = ({texts(row)[0] for row in read(mix(path, share=share))} for share in (0.1, 0.5))
    assert 20 < len(tenth) < 60 and 160 < len(half) < 240 and tenth < half
    assert tenth == {texts(row)[0] for row in read(mix(path, share=0.1))}
    assert tenth != {texts(row)[0] for row in read(mix(path, share=0.1, seed=1))}


# what is held out


def both(path: Path, **settings: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    train, held_out = (read(mix(path, **{"held_out": 5, "part": part} | settings)) for part in ("train", "held_out"))
    return train, held_out


def test_held_out_rows_are_not_trained_on(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [triplet(n) for n in range(100)])
    train, held_out = both(path)
    assert (len(train), len(held_out)) == (95, 5)
    assert sorted(texts(row)[0] for row in [*train, *held_out]) == sorted(f"q{n}" for n in range(100))
    assert both(path)[1] == held_out or np.isnan(held_out[0]["score"])
    assert [texts(row)[0] for row in both(path, seed=1)[1]] != [texts(row)[0] for row in held_out]


def test_at_most_a_tenth_is_held_out(tmp_path: Path) -> None:
    train, held_out = both(written(tmp_path / "a.jsonl", [triplet(n) for n in range(30)]), held_out=256)
    assert (len(train), len(held_out)) == (27, 3)


@pytest.mark.parametrize("queries", [10, 40])
def test_a_query_of_many_rows_is_not_held_out_beyond_the_tenth(tmp_path: Path, queries: int) -> None:
    rows = [triplet(n % queries, positive=f"p{n}") for n in range(200)]
    if queries == 10:  # of 20 rows each, and there is room for 15
        with pytest.raises(L2VError, match=r"a query that has no more rows than that"):
            both(written(tmp_path / "a.jsonl", rows), held_out=15)
        rows += [triplet(1000 + n) for n in range(5)]
    train, held_out = both(written(tmp_path / "a.jsonl", rows), held_out=15)
    assert len(held_out) == (5 if queries == 10 else 15) and len(train) + len(held_out) == len(rows)


def test_no_text_of_a_held_out_query_is_trained_on(tmp_path: Path) -> None:
    rows = [triplet(n % 40) for n in range(80)]  # every query twice
    rows += [triplet(100 + n, positive=f"q{n}") for n in range(40)]  # and once as a document
    other = [triplet(n) for n in range(40)]  # and in another set
    written(tmp_path / "a.jsonl", rows)
    written(tmp_path / "b.jsonl", other)
    settings = {"files": None, "folder": str(tmp_path)}
    train, held_out = both(tmp_path / "unused", **settings)
    queries = {row["query_hash"] for row in held_out}
    assert {row["set"] for row in held_out} == {row["set"] for row in train} == {0, 1}
    assert 5 <= sum(row["set"] == 0 for row in held_out) <= 6 and len(train) < 160 - len(held_out)
    assert not queries & {h for row in train for h in (row["query_hash"], *row["document_hashes"])}


def test_sets_too_small_to_hold_anything_out_are_refused(tmp_path: Path) -> None:
    with pytest.raises(L2VError, match=r"data.held_out: expected a set of 10 rows .*data.validation.files="):
        both(written(tmp_path / "a.jsonl", [triplet(n) for n in range(9)]))


# batches


def test_a_batch_has_the_positives_first_and_knows_whose_each_negative_is(tmp_path: Path) -> None:
    rows = [triplet(0, negative=["x", "y"]), triplet(1, negative=[]), triplet(2)]
    made = triplet_rows(mix(tmp_path / "a.jsonl", rows, query_instructions="i"), TOKENIZER, max_length=64, show=False)
    picked = made.__getitems__([Pick(0, 7), Pick(1, 8), Pick(2, -1)])
    batch = TripletBatch(TOKENIZER.eos_token_id, "right", negatives=2)(picked)
    ids, mask = batch["documents"]["input_ids"], batch["documents"]["attention_mask"].bool()
    assert [TOKENIZER.decode(row[m]) for row, m in zip(ids, mask, strict=True)] == ["p0", "p1", "p2", "x", "y", "n2"]
    assert batch["owner"].tolist() == [0, 1, 2, 0, 0, 2]
    assert batch["query_hash"].tolist() == [row["query_hash"] for row, _ in picked]
    assert batch["document_hash"].tolist()[3:5] == picked[0][0]["document_hashes"][1:]
    assert batch["counted"].tolist() == [1, 1, 0] and batch["set"] == 0 and batch["score"].isnan().all()
    queries = batch["queries"]
    assert (queries["pool_mask"].sum(1) < queries["attention_mask"].sum(1)).all()
    assert batch["tokens"] == queries["attention_mask"].sum() + mask.sum()


def test_of_many_negatives_each_reading_draws_some(tmp_path: Path) -> None:
    made = triplet_rows(
        mix(tmp_path / "a.jsonl", [triplet(0, negative=[f"n{n}" for n in range(10)])]),
        TOKENIZER,
        max_length=64,
        show=False,
    )
    collate = TripletBatch(0, "left", negatives=2)
    drawn = [collate(made.__getitems__([Pick(0, key)]))["document_hash"].tolist() for key in (1, 2, 3, 1)]
    assert all(len(set(hashes)) == 3 for hashes in drawn) and drawn[0] == drawn[3]
    assert len({tuple(hashes) for hashes in drawn}) > 1
    assert collate(made.__getitems__([Pick(0, 0)]))["documents"]["position_ids"].shape[0] == 3
    assert TripletBatch(0, "left", negatives=0)(made.__getitems__([Pick(0, 0)]))["owner"].tolist() == [0]


def test_rows_can_be_sent_to_a_loader_process_and_thinned(tmp_path: Path) -> None:
    made = triplet_rows(
        mix(tmp_path / "a.jsonl", [triplet(n) for n in range(10)]), TOKENIZER, max_length=64, show=False
    )
    sent = pickle.loads(pickle.dumps(made))
    assert repr(sent.__getitems__([Pick(4, 0)])) == repr(made.__getitems__([Pick(4, 0)]))
    few = made.spread(2)
    assert [texts(row)[0] for row, _ in few.__getitems__([Pick(0, 0), Pick(1, 0)])] == ["q0", "q9"]
    assert len(few.texts()) == len(few.sets) == 2


# configs


def data(*overrides: str) -> Any:
    return configs.build_training(configs.plain(composed("train", ["name=test", "stage=supervised", *overrides])))


def test_one_file_of_ones_own_takes_one_override(tmp_path: Path) -> None:
    written(tmp_path / "faq.jsonl", [triplet(n) for n in range(30)])
    training = data("data=triplets", f"data.train.files={tmp_path / 'faq.jsonl'}")
    assert training.train.names == training.validation.names == ["faq"]
    train, held_out = ({texts(row)[0] for row in read(part)} for part in (training.train, training.validation))
    assert len(train) == 27 and len(held_out) == 3 and not train & held_out


def test_own_validation_files_leave_all_rows_to_training(tmp_path: Path) -> None:
    train, validation = (written(tmp_path / f"{name}.jsonl", [triplet(n) for n in range(30)]) for name in "ab")
    training = data(
        "data=triplets", f"data.train.files={train}", f"data.validation.files={validation}", "data.held_out=0"
    )
    assert len(read(training.train)) == 30 and training.validation.names == ["b"]


def test_a_folder_is_a_mix_of_its_files(tmp_path: Path) -> None:
    for name in ("b", "a"):
        written(tmp_path / f"{name}.jsonl", [triplet(0)])
    assert data("data=triplets", f"data.folder={tmp_path}").train.names == ["a", "b"]


def test_a_mix_of_ones_own_is_a_file_of_a_few_lines(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "data"
    folder.mkdir(parents=True)
    for name in ("faq", "titles"):
        written(tmp_path / f"{name}.jsonl", [triplet(n) for n in range(4)])
    (folder / "mine.yaml").write_text(
        f"defaults: [triplets]\nfolder: {tmp_path}\n"
        "sets:\n  faq: {query_instructions: Find the answer}\n  titles: {share: 0.5, symmetric: true}\n"
    )
    training = data("data=mine", f"hydra.searchpath=[{folder.parent}]")
    faq, titles = training.train.resolved()
    assert (faq.wordings, faq.share, titles.share, titles.symmetric) == (["Find the answer"], 1.0, 0.5, True)


def test_the_e5_mix_is_that_of_the_reference(tmp_path: Path) -> None:
    names = configs.plain(composed("train", ["name=test", "data=e5", "data.folder=x"]))["data"]["sets"]
    for name in names:
        written(tmp_path / f"{name}.jsonl", [triplet(n) for n in range(4)])
    plain, quirky = (
        {one.name: one for one in data("data=e5", f"data.folder={tmp_path}", f"quirks={quirks}").train.resolved()}
        for quirks in ("none", "llm2vec")
    )
    assert len(plain) == 14 and plain.keys() == quirky.keys() == names.keys()
    assert {name for name, one in plain.items() if len(one.wordings) > 1} == {"allnli", "quora_duplicates"}
    entailed, similar = (
        "Given a premise, retrieve a hypothesis that is entailed by the premise",
        "Retrieve semantically similar text",
    )
    assert [plain["allnli"].instructions(n) for n in (0, 1)] == [(entailed, None), (similar, similar)]
    assert [quirky["allnli"].instructions(n) for n in (0, 1)] == [(entailed, None), (similar, None)]
    assert all(quirky["quora_duplicates"].instructions(n)[1] is None for n in (0, 1))
    assert all(one.instructions(0)[0] for one in plain.values())


@pytest.mark.skipif(not E5_SAMPLE.is_dir(), reason="no sample of the E5 data beside the repository")
def test_real_triplets_train_in_batches_without_false_negatives() -> None:
    rows = triplet_rows(TripletMix(part="train", folder=str(E5_SAMPLE)), TOKENIZER, max_length=16, show=False)
    held_out = triplet_rows(TripletMix(part="held_out", folder=str(E5_SAMPLE)), TOKENIZER, max_length=16, show=False)
    assert rows.names == ["allnli", "squad", "trec_qa", "wikiqa"]
    hashes, held_hashes = rows.texts(), held_out.texts()
    assert not np.isin(hashes.queries, held_hashes.queries).any() and set(held_out.sets) == {0, 1, 2, 3}
    order = MixedOrder(hashes, names=rows.names, batch_size=32, batches=100)
    assert order.left_out == []
    for number in range(100):
        picked = [pick.row for pick in order.batch(number)]
        queries = hashes.queries[picked]
        documents = [set(hashes.documents[hashes.offsets[row] : hashes.offsets[row + 1]].tolist()) for row in picked]
        positives = hashes.documents[hashes.offsets[:-1][picked]]
        assert len(set(hashes.sets[picked])) == 1 and len(set(queries.tolist())) == 32
        for n, own in enumerate(documents):
            others = {*np.delete(queries, n).tolist(), *np.delete(positives, n).tolist()}
            assert not own & others


def test_validation_files_beside_sets_are_read(tmp_path: Path) -> None:
    for name in ("a", "mine"):
        written(tmp_path / f"{name}.jsonl", [triplet(n, query=f"{name} {n}") for n in range(20)])
    overrides = ["data=triplets", f"data.folder={tmp_path}", "+data.sets.a={}", "data.held_out=0"]
    config = composed("train", ["stage=supervised", *overrides, f"data.validation.files={tmp_path / 'mine.jsonl'}"])
    train, validation = (configs.build(configs.plain(config)["data"][part], "data") for part in ("train", "validation"))
    train.check_validation(validation)
    assert (train.names, validation.names) == (["a"], ["mine"])
    with pytest.raises(L2VError, match="data.validation has files of its own; set data.held_out=0"):
        replace(train, held_out=5).check_validation(replace(validation, held_out=5))
    with pytest.raises(L2VError, match="data.validation.files=.*: no such file"):
        replace(validation, files=str(tmp_path / "gone.jsonl"))
    with pytest.raises(L2VError, match="data.train.files, .hub and data.sets exclude each other"):
        replace(train, files=str(tmp_path / "mine.jsonl"))
