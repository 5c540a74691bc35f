"""mine.py: exact search in blocks, thresholds, what is never mined, vectors that survive a stop."""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from launch import ROOT, composed, script
from tiny import SENTENCES

from l2v import config as configs
from l2v.data.texts import FileTexts
from l2v.encoders.encoder import Encoder
from l2v.errors import L2VError
from l2v.mining import mine as mining_module
from l2v.mining import search as search_module
from l2v.mining import vectors as vectors_module
from l2v.mining.mine import describe, mine
from l2v.mining.search import top_k
from l2v.mining.selection import judge, pick
from l2v.mining.settings import Mining
from l2v.mining.texts import Texts, distinct, find, read_table, text_key
from l2v.mining.vectors import Vectors, encode_texts
from l2v.models.settings import EncoderSettings

needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
BACKENDS = ["torch", pytest.param("faiss", marks=needs_faiss)]


class Rows:
    """Vectors in memory that note which blocks of them are read."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors, self.count, self.read = vectors, len(vectors), []

    def block(self, begin: int, end: int) -> np.ndarray:
        self.read.append((begin, end))
        return self.vectors[begin:end]


@pytest.fixture
def vectors() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    queries, corpus = (generator.standard_normal((rows, 8)).astype(np.float32) for rows in (13, 101))
    return queries, corpus


# search


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", [1, 7, 100, 101, 4096])
@pytest.mark.parametrize("k", [1, 10, 101])
def test_blocks_find_what_the_full_matrix_has(vectors, backend, block, k) -> None:
    queries, corpus = vectors
    scores, found = top_k(queries, Rows(corpus), k, block=block, backend=backend)
    matrix = queries @ corpus.T
    assert (found == np.argsort(-matrix, axis=1)[:, :k]).all()
    np.testing.assert_allclose(scores, -np.sort(-matrix, axis=1)[:, :k], atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", [3, 50, 1000])
def test_excluded_documents_are_not_found_and_cost_no_place(vectors, backend, block) -> None:
    queries, corpus = vectors
    matrix = queries @ corpus.T
    best = np.argsort(-matrix, axis=1)
    lists = [best[row, : row * 3] for row in range(len(queries))]  # the best ones, 0 to 36 of them
    excluded = np.sort(np.concatenate([row * len(corpus) + documents for row, documents in enumerate(lists)]))
    _, found = top_k(queries, Rows(corpus), 5, excluded=excluded, block=block, backend=backend)
    assert (found == [best[row, row * 3 : row * 3 + 5] for row in range(len(queries))]).all()


def test_where_documents_run_out_there_is_none(vectors) -> None:
    queries, corpus = vectors
    excluded = np.arange(98)  # of the first query, all but three
    scores, found = top_k(queries, Rows(corpus), 5, excluded=excluded, block=10)
    assert set(found[0, :3]) == {98, 99, 100} and found[0, 3:].tolist() == [-1, -1]
    assert np.isinf(scores[0, 3:]).all() and np.isfinite(scores[1:]).all() and (found[1:] >= 0).all()


def test_no_more_than_a_block_is_read_and_compared(vectors, monkeypatch) -> None:
    queries, corpus = vectors
    compare, shapes = search_module._compare, []

    def noted(asked, documents, *rest):
        shapes.append((len(asked), len(documents)))
        return compare(asked, documents, *rest)

    monkeypatch.setattr(search_module, "_compare", noted)
    rows = Rows(corpus)
    top_k(queries, rows, 5, block=10)
    assert rows.read == [(begin, min(begin + 10, 101)) for begin in range(0, 101, 10)]
    assert shapes == [(13, 10)] * 10 + [(13, 1)]


# vectors on disk


def table_of(folder: Path, texts: Iterable[str]) -> Texts:
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    table = read_table(FileTexts(str(file)), {"text": "column"}, folder / "tables", title="", show=False)
    return Texts(table, "text", np.arange(len(table.data)))


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float16", 1e-3)])
def test_shards_hold_what_the_encoder_gives(tmp_path, tiny_model, monkeypatch, dtype, error) -> None:
    monkeypatch.setattr(vectors_module, "_PIECE", 3)
    texts = [f"{sentence} {number}" * (1 + number % 4) for number, sentence in enumerate(SENTENCES * 4)]
    encoder = Encoder.from_pretrained(tiny_model, device="cpu")
    table = table_of(tmp_path, texts)
    made = encode_texts(table, lambda: encoder, tmp_path / "v", instruction="Find", dtype=dtype, shard=7, show=False)
    expected = encoder.encode(texts, instruction="Find", normalize=True)
    assert [np.load(made.file(number)).shape[0] for number in range(4)] == [7, 7, 7, 3]
    assert np.load(made.file(0)).dtype == dtype
    for begin, end in [(0, 24), (5, 6), (6, 8), (7, 14), (3, 23)]:
        np.testing.assert_allclose(made.block(begin, end), expected[begin:end], atol=error)
    some = np.array([23, 0, 8, 8])
    np.testing.assert_allclose(made.at(some), expected[some], atol=error)


def test_a_block_of_a_memory_map_is_all_that_is_read(tmp_path, monkeypatch) -> None:
    for number in range(4):
        np.save(tmp_path / f"{number:06d}.npy", np.full((10, 2), number, np.float16))
    load, opened = np.load, []
    monkeypatch.setattr(np, "load", lambda file, **how: opened.append((file.name, how)) or load(file, **how))
    block = Vectors(tmp_path, 40, 10).block(12, 31)
    assert block[:, 0].tolist() == [1] * 8 + [2] * 10 + [3]
    assert opened == [(f"{number:06d}.npy", {"mmap_mode": "r"}) for number in (1, 2, 3)]


def test_vectors_that_are_not_finite_are_refused(tmp_path) -> None:
    broken = SimpleNamespace(dimension=2, encode=lambda texts, **_: np.full((len(texts), 2), np.nan, np.float32))
    with pytest.raises(L2VError, match="not finite; use dtype=float32"):
        encode_texts(table_of(tmp_path, ["a"]), lambda: broken, tmp_path / "v", show=False)
    assert not list((tmp_path / "v").iterdir())


# thresholds


def settings(folder: Path, **changes: Any) -> Mining:
    pairs = folder / "pairs.jsonl"
    if not pairs.exists():
        pairs.write_text('{"query": "q", "positive": "p"}\n')
    made = {"pairs": str(pairs), "output": str(folder / "out.jsonl"), "cache": str(folder / "cache")}
    return Mining(**{"num_negatives": 1, **made, **changes})


SCORES = np.array([0.9, 0.8, 0.761, 0.759, 0.7, 0.1, -np.inf], np.float32)
JUDGED = [
    ({}, [3, 4, 5], {"percentage_margin": 3}),  # 95% of 0.8 is 0.76
    ({"percentage_margin": 1.0}, [1, 2, 3, 4, 5], {"percentage_margin": 1}),
    ({"percentage_margin": None}, [0, 1, 2, 3, 4, 5], {}),
    ({"percentage_margin": None, "absolute_margin": 0.09}, [4, 5], {"absolute_margin": 4}),
    ({"absolute_margin": 0.09}, [4, 5], {"percentage_margin": 3, "absolute_margin": 1}),
    ({"range_min": 2}, [3, 4, 5], {"percentage_margin": 1}),
    ({"range_min": 4, "percentage_margin": None}, [4, 5], {}),
]


@pytest.mark.parametrize(("changes", "ranks", "dropped"), JUDGED)
def test_candidates_are_judged_by_the_positive(tmp_path, changes, ranks, dropped) -> None:
    counts: dict[str, int] = {}
    assert judge(SCORES, 0.8, settings(tmp_path, **changes), counts).tolist() == ranks
    assert counts == dropped


def test_the_limit_is_below_the_positive_also_where_its_score_is_negative(tmp_path) -> None:
    scores = np.array([-0.1, -0.2, -0.204, -0.22], np.float32)
    assert judge(scores, -0.2, settings(tmp_path)).tolist() == [3]


def test_top_takes_the_first_and_random_depends_on_the_seeds_alone(tmp_path) -> None:
    ranks = np.arange(5, 50)
    top = settings(tmp_path, num_negatives=4)
    assert pick(ranks, top, [1, 2]).tolist() == [5, 6, 7, 8]
    drawn = settings(tmp_path, num_negatives=4, sampling="random")
    one = pick(ranks, drawn, [1, 2]).tolist()
    assert one == pick(ranks, drawn, [1, 2]).tolist() == sorted(set(one)) and set(one) <= set(ranks.tolist())
    other = settings(tmp_path, num_negatives=4, sampling="random", seed=1)
    assert one != pick(ranks, drawn, [1, 3]).tolist() and one != pick(ranks, other, [1, 2]).tolist()
    assert pick(ranks[:2], drawn, [1, 2]).tolist() == [5, 6]


# what is mined


@pytest.fixture
def plane(monkeypatch) -> None:
    """An encoder for which "... 30" is the unit vector at 30 degrees, so the cosine of two texts is known."""

    def encode(texts: list[str], **_: Any) -> np.ndarray:
        angles = np.deg2rad([float(re.search(r"-?\d+$", text.strip())[0]) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    fake = SimpleNamespace(dimension=2, encode=encode)
    monkeypatch.setattr(Encoder, "from_pretrained", lambda *_, **__: fake)
    monkeypatch.setattr(EncoderSettings, "fingerprint", lambda self: ["plane"])


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def pairs_file(folder: Path, *pairs: tuple[str, str]) -> None:
    write(folder / "pairs.jsonl", [{"query": query, "positive": positive} for query, positive in pairs])


def mined(folder: Path, **changes: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    changes = {"num_negatives": 9, "percentage_margin": None, "vector_dtype": "float32", **changes}
    summary = mine(EncoderSettings("plane"), settings(folder, **changes), show=False)
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()], summary


def test_negatives_come_hardest_first_with_their_scores(tmp_path, plane) -> None:
    pairs_file(tmp_path, ("q 0", "p 10"), ("q 90", "p 80"), ("q 180", "p 150"))
    rows, summary = mined(tmp_path)
    assert rows[0] == {
        "query": "q 0",
        "positive": "p 10",
        "negative": ["p 80", "p 150"],
        "positive_score": 0.98481,
        "negative_scores": [0.17365, -0.86603],
    }
    assert [row["negative"] for row in rows[1:]] == [["p 150", "p 10"], ["p 80", "p 10"]]
    assert (summary["written"], summary["negatives"], summary["candidates"]) == (3, 6, 6)
    assert summary["positive_first"] == 1
    expected = np.cos(np.deg2rad([10, 10, 30])).mean()
    assert summary["score"]["positive"] == pytest.approx(expected, abs=1e-5)
    negative = np.cos(np.deg2rad([80, 150, 60, 80, 100, 170])).mean()
    assert summary["score"]["negative"] == summary["score"]["candidate"] == pytest.approx(negative, abs=1e-5)
    assert json.loads((tmp_path / "out.summary.json").read_text()) == summary
    assert "3 of 3 pairs have 6 hard negatives" in describe(summary)


def test_no_positive_of_an_equal_query_is_a_negative(tmp_path, plane) -> None:
    pairs_file(tmp_path, ("q 0", "p 5"), ("x 40", "p 45"), ("Q  0", "p 1"), ("q 0", "P 7"))
    rows, summary = mined(tmp_path)
    assert [(row["query"], row["positive"]) for row in rows] == [
        ("q 0", "p 5"),
        ("Q  0", "p 1"),
        ("q 0", "P 7"),
        ("x 40", "p 45"),
    ]
    assert [row["negative"] for row in rows] == [["p 45"]] * 3 + [["P 7", "p 5", "p 1"]]
    assert (summary["pairs"], summary["queries"], summary["known_positives"]) == (4, 2, 4)


def test_equal_texts_and_the_query_itself_are_no_negatives(tmp_path, plane) -> None:
    pairs_file(tmp_path, ("q 0", "p 5"), ("q 0", "p 5"), ("q 90", "P  5"), ("q 200", "q 0"), ("q 210", " "))
    rows, summary = mined(tmp_path)
    assert [(row["query"], row["negative"]) for row in rows] == [("q 90", ["q 0"]), ("q 200", ["p 5"])]
    counts = {name: summary[name] for name in ("empty", "equal_pairs", "equal_documents", "own_texts")}
    assert counts == {"empty": 1, "equal_pairs": 1, "equal_documents": 2, "own_texts": 1}
    assert (summary["pairs"], summary["written"], summary["without_negative"]) == (3, 2, 1)


def test_a_corpus_takes_the_place_of_the_positives(tmp_path, plane) -> None:
    pairs_file(tmp_path, ("q 0", "p 5"), ("q 90", "p 80"))
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("c 20\np 5\nc 100\nc  20\n")
    rows, summary = mined(tmp_path, corpus=str(corpus))
    assert [row["negative"] for row in rows] == [["c 20", "c 100"], ["c 100", "c 20", "p 5"]]
    assert [row["positive_score"] for row in rows] == [0.99619, 0.98481]  # p 80 is not in the corpus
    assert (summary["documents"], summary["equal_documents"], summary["known_positives"]) == (3, 1, 1)


def test_rules_leave_pairs_out_and_are_counted(tmp_path, plane) -> None:
    pairs_file(tmp_path, ("q 0", "p 20"), ("q 90", "p 50"), ("q 45", "p 46"))
    rows, summary = mined(tmp_path, percentage_margin=0.95)
    # q 45: p 50 and p 20 are at 5 and 25 degrees, 95% of the positive's score at 18.2
    assert [(row["query"], row["negative"]) for row in rows] == [
        ("q 0", ["p 46", "p 50"]),
        ("q 90", ["p 46", "p 20"]),
        ("q 45", ["p 20"]),
    ]
    assert summary["dropped"] == {"percentage_margin": 1} and summary["candidates"] == 6
    rows, summary = mined(tmp_path, percentage_margin=0.95, range_max=1, num_negatives=1)
    assert [row["query"] for row in rows] == ["q 0", "q 90"] and summary["without_negative"] == 1
    assert (summary["different_negatives"], summary["most_used_negative"]) == (1, 2)


@pytest.mark.parametrize("blocks", [(1, 1), (2, 3), (1000, 1000)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_and_backends_give_the_same_triplets(tmp_path, plane, blocks, backend) -> None:
    generator = np.random.default_rng(0)
    angles = generator.permutation(180)
    pairs_file(tmp_path, *((f"q {angles[n // 2]}", f"p {angles[n] + 0}") for n in range(60)))
    expected, _ = mined(tmp_path, sampling="random", num_negatives=3)
    query_block, corpus_block = blocks
    rows, _ = mined(
        tmp_path,
        sampling="random",
        num_negatives=3,
        search=backend,
        query_block=query_block,
        corpus_block=corpus_block,
        output=str(tmp_path / "other.jsonl"),
    )
    other = [json.loads(line) for line in (tmp_path / "other.jsonl").read_text().splitlines()]
    assert len(other) == 60 and rows == expected
    assert [row["positive"] for row in other] == [row["positive"] for row in expected]
    for row, same in zip(other, expected, strict=True):  # documents at equal angles may stand in either order
        assert row["negative_scores"] == pytest.approx(same["negative_scores"], abs=1e-4)


def test_where_all_candidates_are_dropped_nothing_is_written(tmp_path, plane) -> None:
    pairs_file(tmp_path, ("q 0", "p 20"), ("q 1", "p 21"))
    (tmp_path / "out.jsonl").write_text("of before\n")
    with pytest.raises(L2VError, match="all 2 candidates were dropped: .*absolute_margin") as error:
        mined(tmp_path, percentage_margin=0.5)
    assert "\n" not in str(error.value)
    assert (tmp_path / "out.jsonl").read_text() == "of before\n" and not (tmp_path / "out.jsonl.tmp").exists()
    with pytest.raises(L2VError, match="no pair has a candidate from rank range_min=50 on"):
        mined(tmp_path, range_min=50)


# stopping and reusing


class Encoded(list):
    """The texts that went through an encoder, which is interrupted at ``limit`` of them."""

    limit = 10**9


@pytest.fixture
def counted(monkeypatch) -> Encoded:
    """What is encoded, in small shards."""
    monkeypatch.setattr(vectors_module, "_PIECE", 2)
    monkeypatch.setattr(mining_module, "encode_texts", functools.partial(encode_texts, shard=4))
    texts, encode = Encoded(), Encoder.encode

    def noted(self: Encoder, some: list[str], **how: Any) -> Any:
        if len(texts) >= texts.limit:
            raise KeyboardInterrupt
        texts.extend(some)
        return encode(self, some, **how)

    monkeypatch.setattr(Encoder, "encode", noted)
    return texts


def ten_pairs(folder: Path) -> None:
    pairs_file(
        folder, *((f"{number} {SENTENCES[number % 6]}", f"{SENTENCES[number % 5]} {number}") for number in range(10))
    )


def test_after_a_stop_only_what_is_missing_is_encoded(tmp_path, tiny_model, counted) -> None:
    ten_pairs(tmp_path)
    (tmp_path / "whole").mkdir()
    ten_pairs(tmp_path / "whole")
    how = {"percentage_margin": None, "num_negatives": 3}
    mine(EncoderSettings(str(tiny_model)), settings(tmp_path / "whole", **how), show=False)
    assert len(counted) == 20
    counted.clear()

    counted.limit = 16  # 10 queries, one shard of documents, and half of the next
    with pytest.raises(KeyboardInterrupt):
        mine(EncoderSettings(str(tiny_model)), settings(tmp_path, **how), show=False)
    assert not (tmp_path / "out.jsonl").exists()
    counted.limit = Encoded.limit
    counted.clear()
    mine(EncoderSettings(str(tiny_model)), settings(tmp_path, **how), show=False)
    assert len(counted) == 6
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole" / "out.jsonl").read_bytes()


def test_vectors_that_were_damaged_are_encoded_anew(tmp_path, tiny_model, counted) -> None:
    ten_pairs(tmp_path)
    subject, how = EncoderSettings(str(tiny_model)), {"percentage_margin": None, "num_negatives": 3}
    mine(subject, settings(tmp_path, **how), show=False)
    before = (tmp_path / "out.jsonl").read_bytes()
    file = min((tmp_path / "cache" / "vectors").rglob("*.npy"))
    rows = len(np.load(file))
    os.truncate(file, file.stat().st_size - 2)
    (tmp_path / "out.jsonl").unlink()
    counted.clear()
    mine(subject, settings(tmp_path, **how), show=False)
    assert len(counted) == rows and (tmp_path / "out.jsonl").read_bytes() == before


def test_triplets_that_are_not_as_they_were_written_are_made_anew(tmp_path, tiny_model, capsys) -> None:
    ten_pairs(tmp_path)
    subject, how = EncoderSettings(str(tiny_model)), {"percentage_margin": None, "num_negatives": 3}
    mine(subject, settings(tmp_path, **how), show=False)
    output = tmp_path / "out.jsonl"
    before = output.read_bytes()
    for damage in (before[: len(before) // 2], b"", before.replace(b"a", b"b", 1)):
        output.write_bytes(damage)
        mine(subject, settings(tmp_path, **how), show=False)
        assert output.read_bytes() == before
        assert f"{output}: is not as it was written, and is made anew" in capsys.readouterr().err


def test_vectors_are_reused_with_other_thresholds_and_no_model_is_loaded(
    tmp_path, tiny_model, counted, monkeypatch, capsys
) -> None:
    ten_pairs(tmp_path)
    subject = EncoderSettings(str(tiny_model))
    how = {"percentage_margin": None}
    mine(subject, settings(tmp_path, **how), show=False)
    counted.clear()
    monkeypatch.setattr(Encoder, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    assert mine(subject, settings(tmp_path, **how, range_min=3), show=False)["candidates"] == 60  # 10 x (10 - 1 - 3)
    before = (tmp_path / "out.jsonl").stat().st_mtime_ns
    assert mine(subject, settings(tmp_path, **how, range_min=3), show=False)["candidates"] == 60
    assert (tmp_path / "out.jsonl").stat().st_mtime_ns == before and "nothing has changed" in capsys.readouterr().err
    assert counted == []


@pytest.mark.parametrize(
    ("subject", "changes", "texts"),
    [
        ({"pooling": "last_token"}, {}, 20),
        ({"max_length": 5}, {}, 20),
        ({}, {"query_instruction": "Find"}, 10),
        ({}, {"document_instruction": "Find"}, 10),
        ({}, {"vector_dtype": "float32"}, 20),
    ],
)
def test_another_encoder_or_instruction_encodes_anew(tmp_path, tiny_model, counted, subject, changes, texts) -> None:
    ten_pairs(tmp_path)
    mine(EncoderSettings(str(tiny_model)), settings(tmp_path, percentage_margin=None), show=False)
    counted.clear()
    mine(EncoderSettings(str(tiny_model), **subject), settings(tmp_path, percentage_margin=None, **changes), show=False)
    assert len(counted) == texts


def test_changed_texts_are_encoded_anew_and_a_corpus_serves_other_pairs(tmp_path, tiny_model, counted) -> None:
    ten_pairs(tmp_path)
    corpus = write(tmp_path / "corpus.jsonl", [{"text": f"{number} {SENTENCES[0]}"} for number in range(9)])
    subject = EncoderSettings(str(tiny_model))
    mine(subject, settings(tmp_path, percentage_margin=None, corpus=str(corpus)), show=False)
    assert len(counted) == 29  # queries, positives outside the corpus, corpus
    counted.clear()
    pairs_file(tmp_path, ("another query", "another positive"))
    mine(subject, settings(tmp_path, percentage_margin=None, corpus=str(corpus)), show=False)
    assert counted == ["another query", "another positive"]


# files


def test_all_formats_are_read_alike(tmp_path) -> None:
    rows = [{"query": f"q, {n}", "positive": f'line\n"two" \t {n}', "more": str(n)} for n in range(3)]
    write(tmp_path / "a.jsonl", rows)
    for name, mark in (("a.csv", ","), ("a.tsv", "\t")):
        quoted = [mark.join('"' + value.replace('"', '""') + '"' for value in row.values()) for row in rows]
        (tmp_path / name).write_text("\ufeff" + mark.join(rows[0]) + "\n" + "\n".join(quoted) + "\n", encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.csv", "a.tsv", "a.parquet"):
        columns = {"query": "query_column", "positive": "positive_column"}
        table = read_table(FileTexts(str(tmp_path / name)), columns, tmp_path / "tables", title="", show=False)
        assert table.data["query"][:] == [row["query"] for row in rows]
        assert table.data["positive"][:] == [row["positive"] for row in rows]
        assert table.keys("query").tolist() == [text_key(row["query"]) for row in rows]


def test_keys_ignore_case_white_space_and_composition() -> None:
    assert text_key("Caf\u00e9  au\nlait ") == text_key("cafe\u0301 AU lait") != text_key("cafe au lait")


def test_distinct_and_find() -> None:
    first, which = distinct(np.array([7, -3, 7, 5, -3]))
    assert first.tolist() == [0, 1, 3] and which.tolist() == [0, 1, 0, 2, 1]
    assert find(np.array([5, 6, -3, 99, -99]), np.array([7, -3, 5])).tolist() == [2, -1, 1, -1, -1]


BROKEN = [
    ("pairs.jsonl", '{"query": "q", "positive": "p"}\n{"query": "q"\n', "pairs.jsonl:2: not JSON"),
    ("pairs.jsonl", '{"query": "q"}\n', "pairs.jsonl:1: no column 'positive'; it has query; .* with positive_column"),
    (
        "pairs.jsonl",
        '{"query": "q", "positive": ["p"]}\n',
        "pairs.jsonl:1: expected a text under 'positive', found list",
    ),
    ("pairs.jsonl", '["q"]\n', "pairs.jsonl:1: expected an object with a text under 'query', found list"),
    ("pairs.jsonl", '{"query": " ", "positive": "p"}\n', "no texts; expected query and positive"),
    ("pairs.csv", "query,positive\nq,p\nq\n", "pairs.csv:3: 1 field, and the header has 2"),
    ("pairs.parquet", "text", "pairs.parquet: not Parquet"),
    ("pairs.jsonl", "", "the file is empty"),
    ("pairs.txt", "text", "pairs=.*pairs.txt: expected .jsonl, .csv, .tsv, .parquet, found .txt"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_file_that_cannot_be_read_is_told_in_one_line(tmp_path, plane, name, content, message) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(L2VError, match=message) as error:
        mined(tmp_path, pairs=str(tmp_path / name))
    assert "\n" not in str(error.value)


# the command


def run_main(*overrides: str) -> None:
    script("mine").main(composed("mine", list(overrides)))


WRONG = [
    (["num_negatives=0"], "^num_negatives=0: .*greater than or equal to 1"),
    (["percentage_margin=1.5"], "^percentage_margin=1.5: .*less than or equal to 1"),
    (["sampling=best"], "^sampling=best: .*'top' or 'random'"),
    (["dtype=float8"], "^dtype=float8"),
    (["range_max=3"], "^range_max=3: expected at least range_min \\+ num_negatives = 4"),
    (["output=out.csv"], "^output=out.csv: expected a .jsonl file"),
    (["output={pairs}"], "^output=.*: is read as well"),
    (["output={pairs}/out.jsonl"], "^output=.*: cannot be written"),
    (["pairs=none.jsonl"], "^pairs=none.jsonl: no such file"),
    (["corpus=none.jsonl"], "^corpus=none.jsonl: no such file"),
    (["positive_column=query"], "^positive_column=query: expected another column"),
    (["encoder=/no/such/model"], "^encoder=/no/such/model: no such file"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG, ids=[" ".join(o) for o, _ in WRONG])
def test_a_wrong_setting_is_named_before_a_model_is_loaded(
    tmp_path, tiny_model, monkeypatch, overrides, message
) -> None:
    ten_pairs(tmp_path)
    monkeypatch.setattr(Encoder, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    pairs = tmp_path / "pairs.jsonl"
    given = [f"encoder={tiny_model}", f"pairs={pairs}", f"output={tmp_path}/out.jsonl"]
    with pytest.raises(L2VError, match=message) as error:
        run_main(*given, *(override.format(pairs=pairs) for override in overrides))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(importlib.util.find_spec("faiss") is not None, reason="faiss is installed")
def test_faiss_is_an_extra(tmp_path) -> None:
    with pytest.raises(L2VError, match=r"search=faiss: faiss is not installed; `pip install 'l2v\[faiss\]'`"):
        settings(tmp_path, search="faiss")


def test_the_defaults_of_the_config_are_those_of_the_class(tmp_path) -> None:
    pairs_file(tmp_path, ("q", "p"))
    config = configs.plain(composed("mine", ["encoder=e", f"pairs={tmp_path}/pairs.jsonl", "output=o.jsonl"]))
    made = Mining(pairs=config["pairs"], output="o.jsonl")
    for name, value in asdict(made).items():
        assert config[name] == value, name


def test_the_command_mines_with_a_tiny_model(tmp_path, tiny_model, capsys) -> None:
    ten_pairs(tmp_path)
    output = tmp_path / "new folder" / "triplets.jsonl"
    run_main(
        f"encoder={tiny_model}", f"pairs={tmp_path}/pairs.jsonl", f"output='{output}'", "percentage_margin=null",
        "num_negatives=2", f"cache={tmp_path}/cache",
    )  # fmt: skip
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 10 and all(len(row["negative"]) == 2 for row in rows)
    assert all(row["positive"] not in row["negative"] for row in rows)
    printed = capsys.readouterr().out
    assert "10 of 10 pairs have 20 hard negatives" in printed and str(output) in printed
    encoder = Encoder.from_pretrained(tiny_model, device="cpu")
    cosine = encoder.similarity(*(encoder.encode([text]) for text in (rows[0]["query"], rows[0]["negative"][0])))
    assert rows[0]["negative_scores"][0] == pytest.approx(float(cosine[0, 0]), abs=1e-3)


def test_help_shows_examples_and_imports_no_torch() -> None:
    code = "import sys, runpy; sys.argv = ['mine.py', '--help']\ntry: runpy.run_path('mine.py', run_name='__main__')\n"
    code += "finally: assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Examples" in done.stdout and "pairs=" in done.stdout
