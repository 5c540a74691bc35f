"""Text with a delimiter: rows come whole or with what is wrong with them; and what is compressed is unpacked."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from launch import ROOT

from l2v.data.files import content, find
from l2v.data.readers import Reading, records, table_rows
from l2v.data.texts import FileTexts
from l2v.data.triplets.options import SetOptions, TripletMix
from l2v.data.triplets.reading import Counts, read_triplets
from l2v.embedding.inputs import Inputs
from l2v.errors import L2VError

CASES = ROOT.parent / "shared" / "cases"
PLAIN = Reading(quotes=False)
QUOTES = 'id\ttext\n1\tA dog.\n2\t"Hello, he said\n3\tA cat.\n4\t"Yes, she said\n5\tLast line.\n6\tThe end.\n'
SWALLOWED = 'id\ttext\n1\tA dog.\n2\t"Hello\n3\tA cat.\n4\tthe "end"\n5\tLast "one".\n'
OPEN = 'text,id\nA dog.,1\n"Hello,2\nA cat.,3\n'
COMMAS = "text,id\nA cat is small, furry and quick,1\n"


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def texts(path: Path, reading: Reading = Reading()) -> list[str]:  # noqa: B008
    return list(FileTexts(str(path), reading=reading).texts())


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("quote.tsv", QUOTES, r"quote.tsv:3: a quotation mark opens here .* reading.quotes=false"),
        ("swallowed.tsv", SWALLOWED, r"swallowed.tsv:3: a quotation mark opens here"),
        ("open.csv", OPEN, r"open.csv:3: a quotation mark opens here and is not closed"),
        ("commas.csv", COMMAS, r"commas.csv:2: 3 fields, and the header has 2; put a text .* quotation marks"),
        ("twice.csv", "text,id,text\na,1,b\n", r"twice.csv: two columns are named 'text'; rename one"),
        ("header.csv", '"text,id\na,1\n', r"header.csv:1: a quotation mark opens here"),
    ],
)
def test_a_row_that_would_be_cut_or_lost_is_an_error_at_its_line(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    path = written(tmp_path, name, text)
    with pytest.raises(L2VError, match=told) as error:
        texts(path)
    assert "\n" not in str(error.value)
    with pytest.raises(L2VError, match=told):
        list(Inputs(str(path)).rows())
    with pytest.raises(L2VError, match=told):
        table_rows([path], ("text",), "id", str, None, "a task", least=1)


def test_a_quotation_over_rows_that_ends_at_a_line_is_an_error_where_there_are_tabs_in_it(tmp_path: Path) -> None:
    path = written(tmp_path, "texts.tsv", 'id\ttext\n2\t"Hello\n3\tA cat."\n4\tA dog.\n')
    with pytest.raises(L2VError, match=r"texts.tsv:2: a quotation mark opens here and closes 1 line on"):
        texts(path)
    assert texts(path, PLAIN) == ['"Hello', 'A cat."', "A dog."]


def test_without_quoting_every_row_is_there(tmp_path: Path) -> None:
    wanted = ["A dog.", '"Hello, he said', "A cat.", '"Yes, she said', "Last line.", "The end."]
    path = written(tmp_path, "quote.tsv", QUOTES)
    assert texts(path, PLAIN) == wanted
    assert [row.text for row in Inputs(str(path), reading=PLAIN).rows()] == wanted
    assert FileTexts(str(path), reading=PLAIN).fingerprint() != FileTexts(str(path)).fingerprint()


def test_what_is_quoted_as_it_should_be_is_read(tmp_path: Path) -> None:
    rows = 'text,id\n"a, b",1\n"two\nlines, and ""quotes""",2\nsays "yes",3\n\n,4\n"",5\n'
    assert texts(written(tmp_path, "t.csv", rows)) == ["a, b", 'two\nlines, and "quotes"', 'says "yes"']
    long = "word " * 100_000
    assert texts(written(tmp_path, "t.tsv", f'text\n"{long}"\nb\n')) == [long, "b"]
    assert texts(written(tmp_path, "t.tsv", 'id\ttext\n1\t"two\nlines"\n2\tb\n')) == ["two\nlines", "b"]


def test_a_skipped_row_takes_no_other_with_it(tmp_path: Path) -> None:
    rows = 'query,positive\na,b\n"c,d\ne,f\ng,"h\ni,j\n'
    path = written(tmp_path, "pairs.csv", rows)
    (one,) = TripletMix(part="train", files=str(path), negative=[], on_error="skip").resolved()
    counts = Counts()
    assert [row.query for row in read_triplets(one, counts, show=False)] == ["a", "e", "i"]
    assert counts.broken == 2 and counts.places[0].startswith(f"{path}:3: a quotation mark opens")


def test_unquoted_text_with_more_fields_than_its_header_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "pairs.txt", "first\tsecond\tscore\na\tb\t1\na\tb\tc\t2\n")
    with pytest.raises(L2VError, match=r"pairs.txt:3: 4 fields; the header has 3"):
        table_rows([path], ("first", "second"), "score", float, "\t", "a task")


def test_the_shared_cases(tmp_path: Path) -> None:
    if not CASES.is_dir():
        pytest.skip("../shared/cases is not there")
    with pytest.raises(L2VError, match=r"quote.tsv:3: "):
        texts(CASES / "quote.tsv")
    assert len(texts(CASES / "quote.tsv", PLAIN)) == 6
    with pytest.raises(L2VError, match=r"commas.csv:2: "):
        texts(CASES / "commas.csv")


PACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("packed", PACK)
def test_compressed_files_are_read(tmp_path: Path, packed: str) -> None:
    contents = {
        "t.txt": "a\nb\n",
        "t.csv": "text\na\nb\n",
        "t.tsv": "text\na\nb\n",
        "t.jsonl": '{"text": "a"}\n{"text": "b"}\n',
    }
    for name, text in contents.items():
        path = tmp_path / (name + packed)
        path.write_bytes(PACK[packed](text.encode()))
        assert texts(path) == ["a", "b"] == [row.text for row in Inputs(str(path)).rows()]
        path.write_bytes(path.read_bytes()[:-6])
        with pytest.raises(L2VError, match=r"cannot be unpacked .* damaged or cut off"):
            texts(path)
    (tmp_path / "b.csv.gz").write_bytes(b"same")
    (tmp_path / "b.txt.gz").write_bytes(b"same")
    assert content([tmp_path / "b.csv.gz"]) != content([tmp_path / "b.txt.gz"])


def test_a_folder_of_sets_may_be_compressed(tmp_path: Path) -> None:
    row = json.dumps({"query": "a", "positive": "b", "negative": []})
    (tmp_path / "faq.jsonl.gz").write_bytes(gzip.compress(f"{row}\n".encode()))
    (tmp_path / "faq.summary.json").write_text("{}")
    assert TripletMix(part="train", folder=str(tmp_path)).names == ["faq"]
    (one,) = TripletMix(part="train", folder=str(tmp_path), sets={"faq": SetOptions()}).resolved()
    assert [row.query for row in read_triplets(one, Counts(), show=False)] == ["a"]


def test_a_json_file_is_a_list_or_an_object_a_line(tmp_path: Path) -> None:
    assert texts(written(tmp_path, "t.json", '[\n{"text": "a"},\n{"text": "b"}]')) == ["a", "b"]
    assert texts(written(tmp_path, "t.json", '{"text": "a"}\n{"text": "b"}\n')) == ["a", "b"]
    with pytest.raises(L2VError, match=r"t.json: not JSON"):
        texts(written(tmp_path, "t.json", '[{"text": "a"}'))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("t.xlsx", "found .xlsx; save it as .csv"),
        ("t.csv.zip", "found .zip; unpack it"),
        ("t.jsonl.zst", "found .zst; unpack it"),
        ("t.parquet.gz", "a Parquet file is compressed inside; unpack it"),
        ("t.pkl", "found .pkl; write it as .parquet where it was made; a pickle can run code"),
        ("t.arrow", "found .arrow; write it as .parquet"),
    ],
)
def test_what_is_not_read_is_told_with_the_way_out(tmp_path: Path, name: str, told: str) -> None:
    written(tmp_path, name, "x")
    with pytest.raises(L2VError, match=told):
        find(str(tmp_path / name), "files")


def test_numbers_are_texts_where_that_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, "t.jsonl", '{"text": 7, "id": 3}\n{"text": 1.5, "id": 4}\n{"text": "a", "id": 5}\n')
    with pytest.raises(L2VError, match=r"t.jsonl:1: expected a text under 'text', found int; reading.numbers=true"):
        texts(path)
    numbers = Reading(numbers=True)
    assert texts(path, numbers) == ["7", "1.5", "a"]
    assert [row.kept for row in Inputs(str(path), keep=("id",), reading=numbers).rows()] == [(3,), (4,), (5,)]
    written(tmp_path, "t.jsonl", '{"text": true}\n')
    with pytest.raises(L2VError, match="found bool"):
        texts(path, numbers)
    assert [record.values for record in records(path, ["text"], "column")] == [{"text": True}]
