import json
import os
import re

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from l2v.data.readers import Reading
from l2v.data.texts import FileTexts, HubTexts
from l2v.data.wikipedia import Wikipedia, WikipediaExcerpt, names, split_sentences
from l2v.embedding.inputs import Inputs
from l2v.errors import L2VError

TEXTS = ["A cat sat.", 'Zwölf Boxkämpfer, "quoted"\tand a tab', "🐈 on 1, 2 and 3 mats", "naïve\x85next"]


def write_txt(path, texts, column):
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")


def write_jsonl(path, texts, column):
    path.write_text("".join(json.dumps({"id": 1, column: text}) + "\n" for text in texts), encoding="utf-8")


def write_csv(path, texts, column):
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    separator = "\t" if path.suffix == ".tsv" else ","
    rows = [separator.join(row) + "\n" for row in [("id", column), *(("1", text) for text in quoted)]]
    path.write_text("".join(rows), encoding="utf-8")


def write_parquet(path, texts, column):
    table = pyarrow.table({"id": [1] * len(texts), column: pyarrow.array(texts, pyarrow.string())})
    pyarrow.parquet.write_table(table, path)


WRITERS = {".txt": write_txt, ".jsonl": write_jsonl, ".csv": write_csv, ".tsv": write_csv, ".parquet": write_parquet}
endings = pytest.mark.parametrize("ending", WRITERS)


def written(folder, ending, texts=TEXTS, name="texts", column="text"):
    path = folder / (name + ending)
    WRITERS[ending.lower()](path, texts, column)
    return path


def read(files, **settings):
    return list(FileTexts([str(f) for f in files] if isinstance(files, list) else str(files), **settings).texts())


def one_line(error):
    return "\n" not in str(error.value)


@endings
def test_texts_are_read_as_they_were_written(tmp_path, ending):
    assert read(written(tmp_path, ending)) == TEXTS


@endings
def test_another_column_is_read_when_named(tmp_path, ending):
    assert read(written(tmp_path, ending, column="body"), column="body") == TEXTS


@endings
def test_empty_texts_are_left_out(tmp_path, ending):
    assert read(written(tmp_path, ending, ["", "a cat", "", "a dog", ""])) == ["a cat", "a dog"]


@endings
def test_endings_may_be_in_capitals(tmp_path, ending):
    path = written(tmp_path, ending)
    assert read(path.rename(path.with_suffix(ending.upper()))) == TEXTS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("texts.txt", "a cat\n"),
        ("texts.jsonl", '{"text": "a cat"}\n'),
        ("texts.csv", "text,id\na cat,1\n"),
        ("texts.tsv", "text\tid\na cat\t1\n"),
    ],
)
def test_a_byte_order_mark_is_no_part_of_the_text_or_the_column(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert read(tmp_path / name) == ["a cat"]


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv", ".tsv"])
def test_windows_line_ends_are_no_part_of_the_text(tmp_path, ending):
    path = written(tmp_path, ending, ["a cat", "a dog"])
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read(path) == ["a cat", "a dog"]


@endings
def test_a_text_may_be_as_long_as_a_book(tmp_path, ending):
    book = "the cat and the dog " * 20_000
    assert read(written(tmp_path, ending, [book])) == [book]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_line_breaks_inside_a_text_are_kept(tmp_path, ending):
    assert read(written(tmp_path, ending, ["a cat\n\na dog", "a mat"])) == ["a cat\n\na dog", "a mat"]


def test_a_glob_reads_its_files_in_the_order_of_their_names(tmp_path):
    for name in ("b", "a", "c"):
        written(tmp_path, ".txt", [name], name)
    written(tmp_path, ".jsonl", ["json"], "d")
    assert read(tmp_path / "*.txt") == ["a", "b", "c"]
    assert read(tmp_path / "**" / "*") == ["a", "b", "c", "json"]


def test_a_relative_glob_is_read_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    written(tmp_path / "below", ".txt", ["a cat"])
    monkeypatch.chdir(tmp_path)
    assert read("below/*.txt") == read("*/texts.txt") == read("below/../below/texts.txt") == ["a cat"]


def test_a_list_of_files_keeps_its_order(tmp_path):
    files = [written(tmp_path, ".jsonl", ["second"], "a"), written(tmp_path, ".txt", ["first"], "b")]
    assert read(files[::-1]) == ["first", "second"]


def test_a_file_whose_name_looks_like_a_pattern_is_read(tmp_path):
    assert read(written(tmp_path, ".txt", ["a cat"], "texts[1]")) == ["a cat"]


@pytest.mark.parametrize("name", ["missing.txt", "*.csv", "folder", ""])
def test_a_missing_file_is_told_with_the_override_that_names_it(tmp_path, name, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(L2VError, match=r"^data.validation.files=.*: no such file") as error:
        read(name, override="data.validation.files")
    assert one_line(error)


@endings
def test_an_empty_file_is_refused(tmp_path, ending):
    with pytest.raises(L2VError, match=r"texts\..*: the file is empty; expected at least one text"):
        read(written(tmp_path, ending, []))


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv", ".tsv"])
def test_a_file_of_no_bytes_is_refused(tmp_path, ending):
    (tmp_path / f"texts{ending}").touch()
    with pytest.raises(L2VError, match="the file is empty"):
        read(tmp_path / f"texts{ending}")


@pytest.mark.parametrize("name", ["texts.pdf", "texts"])
def test_an_unknown_ending_is_refused(tmp_path, name):
    (tmp_path / name).write_text("a cat")
    with pytest.raises(L2VError, match=r"expected .txt, .jsonl, .csv, .tsv, .parquet, found (.pdf|no ending)"):
        read(tmp_path / name)


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv", ".tsv"])
def test_a_file_that_is_not_utf_8_is_refused(tmp_path, ending):
    path = written(tmp_path, ending, ["a cat", "a café"])
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xe9").replace(b"\\u00e9", b"\xe9"))
    with pytest.raises(L2VError, match=rf"texts{ending}(:2)?: not UTF-8 \(byte 0xe9\)") as error:
        read(path)
    assert one_line(error)


def test_a_broken_line_of_json_is_told_with_its_number(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "a cat"}\n\n{"text": "a d\n')
    with pytest.raises(L2VError, match=r"texts.jsonl:3: not JSON") as error:
        read(tmp_path / "texts.jsonl")
    assert one_line(error)


@pytest.mark.parametrize("line", ['["a cat"]', '"a cat"', "7", "null"])
def test_a_line_that_is_no_object_is_told_with_its_number(tmp_path, line):
    (tmp_path / "texts.jsonl").write_text(f'{{"text": "a cat"}}\n{line}\n')
    with pytest.raises(L2VError, match=r"texts.jsonl:2: expected an object with a text under 'text', found"):
        read(tmp_path / "texts.jsonl")


@pytest.mark.parametrize("value", ["null", "7", '["a cat"]'])
def test_a_value_that_is_no_text_is_told_with_its_line(tmp_path, value):
    (tmp_path / "texts.jsonl").write_text(f'{{"text": "a cat"}}\n{{"text": {value}}}\n')
    with pytest.raises(L2VError, match=r"texts.jsonl:2: expected a text under 'text', found (NoneType|int|list)"):
        read(tmp_path / "texts.jsonl")


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_a_wrong_column_is_told_with_those_that_are_there_and_the_override(tmp_path, ending):
    path = written(tmp_path, ending, column="body")
    expected = r"texts.*: no column 'text'; it has id, body; name the column with data.validation.column"
    with pytest.raises(L2VError, match=expected) as error:
        read(path, override="data.validation.files")
    assert one_line(error)


def test_a_csv_row_that_is_too_short_is_told_with_its_line(tmp_path):
    (tmp_path / "texts.csv").write_text("id,text\n1,a cat\n2\n")
    with pytest.raises(L2VError, match=r"texts.csv:3: 1 field, and the header has 2"):
        read(tmp_path / "texts.csv")


def test_a_column_of_numbers_is_refused(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "texts.parquet")
    with pytest.raises(L2VError, match=r"texts.parquet:1: expected a text under 'text', found int"):
        read(tmp_path / "texts.parquet")


def test_a_number_that_is_none_is_no_text(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": 5}\n{"text": NaN}\n')
    with pytest.raises(L2VError, match=r"t.jsonl:2: expected a text under 'text', found float"):
        list(FileTexts(str(tmp_path / "t.jsonl"), reading=Reading(numbers=True)).texts())


@pytest.mark.parametrize("line", ['{"text": ' + "9" * 5000 + "}", "[" * 100_000])
def test_json_that_python_refuses_is_told_with_its_line(tmp_path, line):
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(L2VError, match=r"t.jsonl:2: not JSON \("):
        list(FileTexts(str(tmp_path / "t.jsonl")).texts())
    (tmp_path / "t.json").write_text("[" + line + "]")
    with pytest.raises(L2VError, match=r"t.json: not JSON \("):
        list(FileTexts(str(tmp_path / "t.json")).texts())


def test_a_damaged_page_of_parquet_is_told_with_its_file(tmp_path):
    file = tmp_path / "t.parquet"
    table = pyarrow.table({"text": [f"text {number} of many" for number in range(3000)]})
    pyarrow.parquet.write_table(table, file, use_dictionary=False)
    raw = bytearray(file.read_bytes())
    raw[200:4000] = bytes(range(256)) * 14 + bytes(216)
    file.write_bytes(raw)
    with pytest.raises(L2VError, match=r"t.parquet: damaged after row 0 \("):
        list(FileTexts(str(file)).texts())


def test_a_file_that_two_patterns_match_is_read_once(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    given = [str(tmp_path / "b.txt"), str(tmp_path / "*.txt")]
    assert list(FileTexts(given).texts()) == ["b", "a"]


def test_a_line_ends_where_encoding_says_it_does(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"one\rtwo\nthree\r\n")
    file = str(tmp_path / "t.txt")
    assert list(FileTexts(file).texts()) == [row.text for row in Inputs(file).rows()] == ["one\rtwo", "three"]


def test_local_files_that_datasets_reads_count_by_their_bytes(tmp_path):
    file = tmp_path / "t.jsonl"
    found = []
    for text in ("a", "b"):
        file.write_text(json.dumps({"text": text}) + "\n")
        os.utime(file, ns=(len(found), len(found)))
        found += [
            HubTexts("json", "train", data_files=str(path)).fingerprint() for path in (file, tmp_path / "*.jsonl")
        ]
        found += [HubTexts(str(tmp_path), "train").fingerprint()]
    assert len(set(found)) == 6


def test_what_is_no_parquet_is_told_in_one_line(tmp_path):
    (tmp_path / "texts.parquet").write_text("a cat")
    with pytest.raises(L2VError, match=r"texts.parquet: not Parquet") as error:
        read(tmp_path / "texts.parquet")
    assert one_line(error)


@endings
def test_the_fingerprint_changes_with_the_bytes_and_the_column_but_not_the_place(tmp_path, ending):
    path = written(tmp_path, ending)
    before = FileTexts(str(path)).fingerprint()
    moved = FileTexts(str(path.rename(tmp_path / f"moved{ending}"))).fingerprint()
    other_column = FileTexts(str(tmp_path / f"moved{ending}"), column="body").fingerprint()
    changed = FileTexts(str(written(tmp_path, ending, [*TEXTS, "more"]))).fingerprint()
    assert before == moved and len({before, other_column, changed}) == 3


def test_the_fingerprint_tells_the_same_bytes_read_in_two_ways(tmp_path):
    path = written(tmp_path, ".csv")
    as_csv = FileTexts(str(path)).fingerprint()
    assert FileTexts(str(path.rename(tmp_path / "texts.txt"))).fingerprint() != as_csv


def test_hub_texts_come_from_a_column(tmp_path):
    path = written(tmp_path, ".parquet", [*TEXTS, "", None], column="body")
    assert list(HubTexts("parquet", split="train", column="body", data_files=str(path)).texts()) == TEXTS


def test_a_column_that_a_hub_data_set_has_not_is_told_with_those_that_are_there(tmp_path):
    path = written(tmp_path, ".parquet", column="body")
    with pytest.raises(L2VError, match="data=parquet: no column 'text'; it has id, body"):
        list(HubTexts("parquet", split="train", data_files=str(path)).texts())


def test_a_hub_data_set_without_a_network_is_told_in_one_line():
    with pytest.raises(L2VError, match=r"^data=no-such-owner/texts: cannot be loaded .*data=files") as error:
        list(HubTexts("no-such-owner/texts", split="train").texts())
    assert one_line(error)


def test_an_error_of_the_hub_without_a_message_is_named(monkeypatch):
    def fail(*arguments, **settings):
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(L2VError, match=r"\(ConnectionError\)"):
        list(HubTexts("owner/texts", split="train").texts())


def test_the_fingerprint_of_hub_texts_changes_with_every_setting():
    settings = [{}, {"name": "a"}, {"column": "body"}, {"revision": "v1"}, {"data_files": "a.txt"}, {"split": "test"}]
    prints = {HubTexts("owner/texts", **{"split": "train"} | setting).fingerprint() for setting in settings}
    assert len(prints) == len(settings)


@pytest.fixture(scope="module")
def held_out():
    pytest.importorskip("gensim", reason="the package gensim, which holds the Wikipedia excerpt, is not installed")
    return list(WikipediaExcerpt("held_out").articles())


@pytest.fixture(scope="module")
def train(held_out):
    return list(WikipediaExcerpt("train").articles())


@pytest.mark.slow
def test_no_article_is_for_training_and_held_out(train, held_out):
    assert len(train) == len(held_out) == 43
    assert not {article.title for article in train} & {article.title for article in held_out}
    seen, unseen = ({p for article in part for p in article.paragraphs} for part in (train, held_out))
    assert not seen & unseen


def test_articles_are_prose_without_markup(train, held_out):
    for article in train + held_out:
        assert sum(map(len, article.paragraphs)) >= 3000 and 0 <= article.opening < len(article.paragraphs)
        for paragraph in article.paragraphs:
            assert len(paragraph) >= 80 and not re.search(r"'''|\[\[|\]\]|\{\{|<ref|\n", paragraph)


def test_the_opening_paragraph_names_the_subject_and_is_no_caption(held_out):
    openings = {article.title: article.paragraphs[article.opening] for article in held_out}
    assert openings["Atomic number"].startswith("In chemistry and physics, the atomic number of a chemical element")
    assert openings["Abacus"].startswith("The abacus (plural abaci or abacuses), also called a counting frame, is")
    assert openings["Alberta"].startswith("Alberta is a western province of Canada.")
    assert all(names(title, opening) for title, opening in openings.items())


def test_the_excerpt_gives_articles_or_sentences(held_out, monkeypatch):
    monkeypatch.setattr(WikipediaExcerpt, "articles", lambda self: iter(held_out))  # parsed once is enough
    articles = list(WikipediaExcerpt("held_out").texts())
    sentences = list(WikipediaExcerpt("held_out", "sentence").texts())
    assert articles == ["\n".join(article.paragraphs) for article in held_out]
    assert len(sentences) > 5000 and all(6 <= len(sentence.split()) <= 60 for sentence in sentences)
    assert sentences[0].startswith("Autism is a neurodevelopmental disorder")


def test_the_fingerprint_of_the_excerpt_tells_parts_and_units(held_out):
    sources = [WikipediaExcerpt(part, unit) for part in ("train", "held_out") for unit in ("article", "sentence")]
    assert len({source.fingerprint() for source in sources}) == 4


@pytest.mark.parametrize(
    "sentences",
    [
        ["It rained.", "The cat slept!", "Did it?", "Yes."],
        ["Gen. Lee met Brig. Gen. Albert S. Johnston at No. 5 St. James St. in Washington, D.C. in 1861.", "He left."],
        ["Dr. Smith et al. (2010) write, e.g. Fig. 3, approx. Vol. 2.", "In White v. Crook they lost."],
        ['She said "No."', "Then she left (in 1910.)", '"Why?" he asked.'],
        ["It costs 3.50 dollars.", "(It was 2.5 before.)", "Good"],
        ["One."],
        ["without an end"],
    ],
)
def test_sentences_end_where_they_do_and_not_after_abbreviations(sentences):
    assert split_sentences(" ".join(sentences)) == sentences


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [
        ("Amphibian", "Amphibians are ectothermic vertebrates.", True),
        ("Atomic number", "the ATOMIC number of an element", True),
        ("Atomic number", "The Rutherford-Bohr model", False),
    ],
)
def test_a_text_names_a_title_in_any_case_and_number(title, text, expected):
    assert names(title, text) is expected


ARTICLE = """Berlin

Berlin ist die Hauptstadt und ein Land der Bundesrepublik Deutschland. Dr. Müller wohnt seit 1990 z. B. in Mitte.
Siehe auch
Liste der Orte"""


@pytest.fixture
def hub(tmp_path):
    """The data set of the hub as a folder: 20 German articles and 3 Chinese ones."""
    texts = {
        "de": [f"{ARTICLE}\n{number}" for number in range(20)],
        "zh": ["北京是中华人民共和国的首都。上海是中国人口最多的城市之一。"] * 3,
    }
    configs = ""
    for language, content in texts.items():
        (tmp_path / f"20231101.{language}").mkdir()
        table = pyarrow.table({"id": ["1"] * len(content), "title": ["t"] * len(content), "text": content})
        pyarrow.parquet.write_table(table, tmp_path / f"20231101.{language}" / "train-00000-of-00001.parquet")
        configs += f"- config_name: 20231101.{language}\n  data_files: 20231101.{language}/*.parquet\n"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return str(tmp_path)


def test_so_many_articles_of_a_wikipedia_are_read_and_some_held_out(hub):
    train, held_out = (
        list(Wikipedia("de", part, articles=11, held_out=3, hub=hub).texts()) for part in ("train", "held_out")
    )
    assert held_out == [f"{ARTICLE}\n{number}" for number in (0, 5, 10)]
    assert train == [f"{ARTICLE}\n{number}" for number in (1, 2, 3, 4, 6, 7, 8, 9)]
    assert len(list(Wikipedia("de", "train", articles=1000, held_out=1, hub=hub).texts())) == 19


def test_no_more_of_a_wikipedia_is_read_than_asked_for(monkeypatch):
    def rows():
        yield from ({"text": "an article"} for _ in range(5))
        pytest.fail("more was read")

    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **settings: rows())
    assert len(list(Wikipedia("de", "train", articles=5, held_out=2).texts())) == 3


def test_sentences_of_a_wikipedia_end_where_the_language_ends_them(hub):
    pytest.importorskip("sentencex", reason="sentencex is not installed: pip install 'l2v[languages]'")
    german, chinese = (
        list(Wikipedia(language, "held_out", "sentence", articles=3, held_out=1, hub=hub).texts())
        for language in ("de", "zh")
    )
    assert german == [
        "Berlin ist die Hauptstadt und ein Land der Bundesrepublik Deutschland.",
        "Dr. Müller wohnt seit 1990 z. B. in Mitte.",
    ]
    assert chinese == ["北京是中华人民共和国的首都。", "上海是中国人口最多的城市之一。"]


def test_without_what_splits_sentences_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None)
    with pytest.raises(L2VError, match=r"data.languages: sentencex is not installed; `pip install 'l2v\[languages\]'`"):
        Wikipedia("de", "train", "sentence")
    Wikipedia("de", "train", "article")


def test_a_wikipedia_that_the_hub_has_not_is_told_in_one_line(hub):
    with pytest.raises(L2VError, match=r"^data.languages: xx: cannot be loaded from the hub .*20231101.xx") as error:
        list(Wikipedia("xx", "train", hub=hub).texts())
    assert one_line(error)


def test_a_connection_that_breaks_while_articles_are_read_is_told(monkeypatch):
    def rows():
        yield {"text": "an article"}
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **settings: rows())
    with pytest.raises(L2VError, match=r"data.languages: de: cannot be loaded .*reset by peer"):
        list(Wikipedia("de", "train").texts())


def test_the_fingerprint_of_a_wikipedia_changes_with_every_setting():
    settings = [{}, {"unit": "sentence"}, {"articles": 200}, {"held_out": 7}, {"dump": "1"}, {"revision": "v"}]
    pytest.importorskip("sentencex", reason="sentencex is not installed: pip install 'l2v[languages]'")
    prints = {Wikipedia("de", "train", **setting).fingerprint() for setting in settings}
    assert len(prints | {Wikipedia("fr", "train").fingerprint(), Wikipedia("de", "held_out").fingerprint()}) == 8
