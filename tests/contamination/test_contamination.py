"""Evaluation texts in training data: what counts as found, and the command around it."""

import itertools
import json
import random
from pathlib import Path

import pytest
import yaml
from launch import ROOT, composed
from taught_folder import write_taught_folder

from l2v import config as configs
from l2v.cli.contamination import main
from l2v.contamination import ngrams as module
from l2v.contamination.ngrams import Grams, contamination
from l2v.contamination.texts import training_texts
from l2v.contamination.words import words
from l2v.data.texts import FileTexts
from l2v.data.triplets.options import TripletMix
from l2v.errors import L2VError
from l2v.evaluation.tasks.masked import MaskedAccuracy
from l2v.evaluation.tasks.sts import StsPairs
from l2v.probing.words import ColumnWords
from l2v.report import write_report
from l2v.runs.files import write_json

COUNT = [f"w{number}" for number in range(40)]


def text(first: int, last: int) -> str:
    return " ".join(COUNT[first:last])


def look(training: list[str], texts: list[str], n: int = 13, shortest: int = 8) -> dict:
    return contamination(training, {"task": texts}, Grams(n, shortest))["tasks"]["task"]


def test_thirteen_words_in_a_row_are_found_and_twelve_are_not() -> None:
    evaluated = text(0, 20)
    assert look([f"before {text(3, 16)} after"], [evaluated])["texts_found"] == 1
    assert look([f"before {text(3, 15)} after"], [evaluated])["texts_found"] == 0
    assert look([f"{text(3, 9)} other {text(9, 16)}"], [evaluated])["texts_found"] == 0


def test_counts_shares_and_examples() -> None:
    texts = ["something else " * 10, text(0, 20), text(20, 33), "too short to say"]
    found = look(["nothing", f"{text(2, 16)}."], texts)
    assert found == {
        "texts": 4,
        "too_short": 1,
        "texts_found": 1,
        "share": 1 / 3,
        "grams": 8 + 8 + 1,
        "grams_found": 2,
        "grams_share": 2 / 17,
        "examples": [{"text": texts[1], "words": text(2, 15), "training_text": 2}],
    }


def test_no_n_gram_crosses_the_border_of_two_texts() -> None:
    assert look([text(0, 7), text(7, 14)], [text(0, 14)])["texts_found"] == 0
    assert look([text(0, 14)], [text(0, 7) + " x", text(7, 14) + " x"], n=9)["texts_found"] == 0
    assert look([text(0, 14)], [text(0, 14)])["texts_found"] == 1


def test_order_counts() -> None:
    turned = " ".join(reversed(COUNT[:13]))
    swapped = " ".join([COUNT[1], COUNT[0], *COUNT[2:13]])
    assert look([turned, swapped, text(0, 12) + " w0"], [text(0, 13)])["texts_found"] == 0


def test_a_short_text_is_looked_for_as_a_whole() -> None:
    training = [f"before {text(0, 9)} after"]
    found = look(training, [text(0, 9), text(0, 9) + " more", text(0, 8), text(0, 7)])
    assert (found["texts"], found["too_short"], found["texts_found"], found["share"]) == (4, 1, 2, 2 / 3)
    assert [example["words"] for example in found["examples"]] == [text(0, 9), text(0, 8)]


def test_nothing_to_look_for_has_no_share() -> None:
    for texts in ([], ["", "too short"]):
        found = look([text(0, 20)], texts)
        assert found["share"] is found["grams_share"] is None and found["texts_found"] == found["grams"] == 0
    assert contamination([text(0, 20)], {})["training"] == {"texts": 1, "words": 20}


def test_the_first_training_text_that_has_it_is_named() -> None:
    training = ["nothing", "", text(5, 25), text(0, 20), text(0, 20)]
    assert [e["training_text"] for e in look(training, [text(0, 13), text(5, 18)])["examples"]] == [4, 3]


def test_tasks_are_counted_on_their_own() -> None:
    tasks = {"a": [text(0, 13), text(13, 26)], "b": [text(0, 13)], "none": []}
    found = contamination(iter([text(0, 15)]), tasks)["tasks"]
    assert {name: task["texts_found"] for name, task in found.items()} == {"a": 1, "b": 1, "none": 0}


@pytest.mark.parametrize("chunk", [1, 7, 50, 2**17])
@pytest.mark.parametrize(("n", "shortest"), [(1, 1), (2, 1), (3, 2), (5, 5)])
def test_it_equals_a_naive_search(monkeypatch: pytest.MonkeyPatch, chunk: int, n: int, shortest: int) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    draw = random.Random(chunk + n)

    def drawn(count: int, letters: str) -> list[list[str]]:
        return [[draw.choice(letters) for _ in range(draw.randint(0, 9))] for _ in range(count)]

    training, texts = drawn(15, "aabbx"), drawn(75, "aabby")

    def windows(row: list[str], length: int) -> list[tuple[str, ...]]:
        return [tuple(row[at : at + length]) for at in range(len(row) - length + 1)]

    known = {window for row in training for length in range(1, n + 1) for window in windows(row, length)}
    wanted = [windows(row, min(n, len(row))) for row in texts if len(row) >= shortest]
    found = look([" ".join(row) for row in training], [" ".join(row) for row in texts], n, shortest)
    assert found["too_short"] == len(texts) - len(wanted)
    assert found["texts_found"] == sum(any(window in known for window in row) for row in wanted)
    assert found["grams"] == sum(map(len, wanted))
    assert 0 < found["grams_found"] == sum(window in known for window in itertools.chain(*wanted)) < found["grams"]
    first = [row for row in texts if len(row) >= shortest and any(w in known for w in windows(row, min(n, len(row))))]
    assert [example["text"] for example in found["examples"]] == [" ".join(row) for row in first[:3]]
    for example in found["examples"]:
        assert example["words"] in " ".join(training[example["training_text"] - 1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Well-known: 2,000 dogs don't bark!", "well @-@ known : 2 @,@ 000 dogs don 't bark"),
        ("snake_case (here)", "Snake case here"),
        ("CAFÉ NAÏVE", "cafe\u0301 nai\u0308ve"),
        ("Straße", "STRASSE"),
        ("\uff26\uff55\uff4c\uff4c width", "full width"),
        ("“Quoted” – it\u2019s", '"quoted" -- it\'s'),
        ("I \u2764\ufe0f dogs", "I dogs"),
        ("東京・大阪。", "東 京 大 阪"),
    ],
)
def test_the_same_words(one: str, other: str) -> None:
    assert words(one) == words(other) != []


def test_words_of_other_scripts_are_whole() -> None:
    assert words("हिन्दी भाषा, 2024") == ["हिन्दी", "भाषा", "2024"]
    assert words("Жёлтый ДЯДЯ №5") == ["жёлтый", "дядя", "no5"]
    assert words("我爱 Tokyo タワー") == ["我", "爱", "tokyo", "タ", "ワ", "ー"]
    assert words("... — !") == []


def test_ascii_is_split_as_the_rest_is() -> None:
    every = "".join(map(chr, range(128)))
    assert [*words(every), "é"] == words(f"{every} é")


def test_training_data_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a text\nanother\n")
    row = {"query": "q", "positive": "p", "negative": ["n", "m"]}
    (tmp_path / "triplets.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "words.conll").write_text("A X I-NP O\nword X I-NP O\n\nThen X I-NP O\n")
    mix = TripletMix(part="train", files=str(tmp_path / "triplets.jsonl"))
    labelled = ColumnWords(str(tmp_path / "words.conll"), {"word": 0, "ner": 3}, override="data.train")
    sources = [FileTexts(str(tmp_path / "texts.txt")), mix, labelled]
    read = [list(training_texts(source)) for source in sources]
    assert read == [["a text", "another"], ["q", "p", "n", "m"], ["A word", "Then"]]
    with pytest.raises(L2VError, match="data.train: expected texts, triplets or labelled words, found int"):
        training_texts(3)


def test_tasks_say_their_texts(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("4\ta dog\tthe dog\n1\ta cat\ta car\n")
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    pairs = StsPairs(str(tmp_path / "pairs.tsv"), first=1, second=2, score=0)
    assert sorted(pairs.evaluated_texts()) == ["a car", "a cat", "a dog", "the dog"]
    assert list(MaskedAccuracy(FileTexts(str(tmp_path / "texts.txt"))).evaluated_texts()) == ["one", "two"]


@pytest.mark.slow
def test_tasks_of_the_demo_say_their_texts() -> None:
    pytest.importorskip("gensim", reason="the package gensim, which holds the texts, is not installed")
    suite = configs.plain(composed("evaluate", ["evaluation=demo", "encoder=none"]))["evaluation"]
    tasks = configs.build(suite["tasks"], "evaluation.tasks")
    assert all(task.evaluated_texts() is not None for task in tasks.values())
    assert len(tasks["lee"].evaluated_texts()) == 50
    assert len(tasks["wikipedia"].evaluated_texts()) == 43 + 129


# the command


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text(f"{text(0, 20)}\n{text(20, 40)}\n")
    (tmp_path / "copied.txt").write_text(f"{text(3, 17)}\nnothing of this is anywhere else at all\n")
    (tmp_path / "clean.jsonl").write_text(json.dumps({"text": "quite another text of eight words or more"}) + "\n")
    return tmp_path


def command(*overrides: str) -> None:
    main(composed("contamination", list(overrides)))


def test_the_command_writes_what_it_found(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("data=files", "data.train.files=train.txt", "texts.files=[copied.txt,clean.jsonl]")
    result = json.loads((files / "runs/data-files/contamination/texts.json").read_text())
    assert result["data"] == "files" and result["n"] == 13 and result["training"]["words"] == 40
    assert {name: task["share"] for name, task in result["tasks"].items()} == {"copied": 0.5, "clean": 0}
    out = capsys.readouterr().out
    assert "copied.txt" in out and "1 (50.00%)" in out and text(3, 16) in out


def test_the_data_of_a_run_and_its_report(files: Path) -> None:
    run = files / "runs" / "mine"
    write_json(run / "run.json", {"stage": "mntp", "status": "finished"})
    source = {"_target_": "l2v.data.texts.FileTexts", "files": "train.txt"}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"train": source}, "init_from": None}))
    command("run=runs/mine", "texts.files=copied.txt", "n=10")
    assert json.loads((run / "contamination/texts.json").read_text())["tasks"]["copied"]["texts_found"] == 1
    page = write_report([run], files / "report.html").read_text()
    assert "<h2>Contamination</h2>" in page and "50.00%" in page and "copied.txt" in page
    runs = json.loads((files / "runs.json").read_text())["runs"]
    assert runs[0]["contamination"]["texts"]["n"] == 10


def test_a_page_without_it_has_no_section(tmp_path: Path) -> None:
    write_json(tmp_path / "mine" / "run.json", {"stage": "mntp"})
    assert "Contamination" not in write_report([tmp_path / "mine"], tmp_path / "report.html").read_text()


SILENT = """
from dataclasses import dataclass

from l2v.evaluation import Task


@dataclass
class Silent(Task):
    label = "Silent"
    metric = "size"

    def run(self, encoder, *, show=False):
        return {"size": float(encoder.dimension)}
"""


def test_tasks_that_do_not_say_their_texts_are_named(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "silent_task.py").write_text(SILENT)
    monkeypatch.syspath_prepend(files)
    silent = ["+evaluation.suite=own", "+evaluation.tasks.odd._target_=silent_task.Silent"]
    data = ["data=files", "data.train.files=train.txt"]
    command(*data, "texts.files=clean.jsonl", *silent)
    assert "do not say their texts: odd" in capsys.readouterr().err
    assert json.loads((files / "runs/data-files/contamination/own.json").read_text())["not_looked_at"] == ["odd"]
    with pytest.raises(L2VError, match="evaluation: no texts to look for"):
        command(*data, *silent)


MISTAKES = [
    (["texts.files=clean.jsonl"], "expected either run=<run> or data="),
    (["run=runs/mine", "data=wikipedia"], "expected either run=<run> or data="),
    (["run=runs/none"], "run=runs/none: no such folder"),
    (["run=empty"], "run=empty: its config.yaml does not say its training data; name data= instead"),
    (["data=files"], "data.train.files: must be given"),
    (["data=files", "data.train.files=no.txt"], "data.train.files=no.txt: no such file"),
    (["data=files", "data.train.files=train.txt"], "evaluation: no texts to look for; choose a suite"),
    (["data=files", "data.train.files=train.txt", "texts.files=no.txt"], "texts.files=no.txt: no such file"),
    (
        ["data=files", "data.train.files=train.txt", "texts.files=clean.jsonl", "texts.column=body"],
        "no column 'body'; it has text; name the column with texts.column",
    ),
    (["n=0", "data=wikipedia"], "n=0: .*greater than or equal to 1"),
    (["n=5", "data=wikipedia"], "shortest=8: expected n=5 or fewer words"),
    (["data=files", "data.train.files=train.txt", "texts.files=clean.jsonl", "output=train.txt"], "cannot be written"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=[" ".join(o) for o, _ in MISTAKES])
def test_a_mistake_is_told_in_one_line(files: Path, overrides: list[str], message: str) -> None:
    (files / "empty").mkdir()
    (files / "empty" / "run.json").write_text("{}")
    with pytest.raises(L2VError, match=message) as error:
        command(*overrides)
    assert "\n" not in str(error.value)


def test_every_kind_of_training_data_composes(files: Path) -> None:
    (files / "words.conll").write_text("a X I-NP O\n")
    given = {
        "files": "train.txt",
        "triplets": "clean.jsonl",
        "conll": "words.conll",
        "conllu": "words.conll",
    }
    (files / "e5").mkdir()
    for name in yaml.safe_load((ROOT / "conf/data/e5.yaml").read_text())["sets"]:
        (files / "e5" / f"{name}.jsonl").write_text("{}\n")
    for option in sorted(file.stem for file in (ROOT / "conf" / "data").glob("*.yaml")):
        more = [f"data.train.files={given[option]}"] if option in given else []
        more += [f"data.folder={files / 'e5'}"] if option == "e5" else []
        more += [f"data.files={{de: {files / 'train.txt'}}}", "data.held_out=1"] if option == "languages" else []
        more += write_taught_folder(files / "vectors", files / "train.txt") if option == "taught" else []
        config = composed("contamination", [f"data={option}", *more])
        plain = configs.plain(config, without=("data.validation", "data.test"))
        assert configs.build(plain["data"]["train"], "data.train").fingerprint()
