from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from tiny import SENTENCES

from l2v import Encoder
from l2v.errors import L2VError
from l2v.evaluation.tasks.sts import StsPairs

STS_B = Path(__file__).parents[3] / "shared" / "data" / "stsbenchmark" / "sts-dev.csv"


def test_the_correlation_is_that_of_the_cosines(tiny_model, tmp_path):
    file = tmp_path / "pairs.tsv"
    others = SENTENCES[2:] + SENTENCES[:2]
    lines = [f"{n}\t{a}\t{b}\n" for n, (a, b) in enumerate(zip(SENTENCES, others, strict=True))]
    file.write_text("score\tone\ttwo\n" + "".join(lines))
    encoder = Encoder.from_pretrained(tiny_model)
    found = StsPairs(str(file), first="one", second="two", score="score").run(encoder)
    vectors = encoder.encode(SENTENCES, normalize=True)
    expected = spearmanr((vectors * np.roll(vectors, -2, axis=0)).sum(axis=1), np.arange(len(SENTENCES))).statistic
    assert found["Spearman"] == pytest.approx(expected)
    instructed = StsPairs(str(file), first="one", second="two", score="score", instruction="Find").run(encoder)
    vectors = encoder.encode(SENTENCES, normalize=True, instruction="Find")
    cosines = (vectors * np.roll(vectors, -2, axis=0)).sum(axis=1)
    assert instructed["Spearman"] == pytest.approx(spearmanr(cosines, np.arange(len(SENTENCES))).statistic)


def test_sts_b_is_read_as_it_is():
    if not STS_B.exists():
        pytest.skip(f"{STS_B} is not there")
    first, second, scores = StsPairs(str(STS_B)).pairs()
    assert len(first) == len(second) == len(scores) == 1500
    assert (first[0], second[0]) == ("A man with a hard hat is dancing.", "A man wearing a hard hat is dancing.")
    assert scores.min() == 0 and scores.max() == 5 and scores[1] == 4.75


def test_quotes_are_text(tmp_path):
    (tmp_path / "pairs.tsv").write_text('1\t"A cat" sat\ta "b\n2\tc\td\n')
    pairs = StsPairs(str(tmp_path / "pairs.tsv"), first=1, second=2, score=0)
    assert pairs.pairs()[0][0] == '"A cat" sat'


MISTAKES = [
    ("1\ta\tb\n", {}, r"1 row\(s\) in .*pairs\.tsv; expected at least 2"),
    ("1\ta\tb\nx\ta\tb\n", {}, r"pairs\.tsv:2: expected a number, found 'x'"),
    ("1\ta\tb\n2\ta\n", {}, r"pairs\.tsv:2: 2 columns; expected one with number 2"),
    ("score\ta\tb\n", {"first": "c"}, "no column 'c'; it has score, a, b"),
    ("", {"first": "c"}, "no column 'c'"),
]


@pytest.mark.parametrize(("text", "settings", "message"), MISTAKES)
def test_a_broken_file_is_told_in_one_line(tmp_path, text, settings, message):
    (tmp_path / "pairs.tsv").write_text(text)
    with pytest.raises(L2VError, match=message) as error:
        StsPairs(**{"file": str(tmp_path / "pairs.tsv"), "first": 1, "second": 2, "score": 0, **settings}).pairs()
    assert "\n" not in str(error.value)


def test_a_missing_file_is_told_before_anything_is_loaded(tmp_path):
    with pytest.raises(L2VError, match="no such file of scored sentence pairs"):
        StsPairs(str(tmp_path / "no.tsv"))
    with pytest.raises(L2VError, match="file: must be given"):
        StsPairs(None).pairs()


def test_an_encoder_that_has_collapsed_correlates_with_nothing(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("".join(f"a\tb\tc\td\t{score}\tone\ttwo\n" for score in (1, 2, 3)))
    task = StsPairs(str(tmp_path / "pairs.tsv"))
    _, _, scores = task.pairs()
    same = np.ones((3, 4), dtype=np.float32)
    assert task.rate(same, same, scores) == {"Spearman": 0.0}
    (tmp_path / "equal.tsv").write_text("a\tb\tc\td\t2\tone\ttwo\n" * 3)
    with pytest.raises(L2VError, match=r"equal\.tsv: every pair has the score 2; nothing correlates with it"):
        StsPairs(str(tmp_path / "equal.tsv")).pairs()
    (tmp_path / "nan.tsv").write_text("a\tb\tc\td\t2\tone\ttwo\na\tb\tc\td\tnan\tone\ttwo\n")
    with pytest.raises(L2VError, match=r"nan\.tsv:2: expected a number, found 'nan'"):
        StsPairs(str(tmp_path / "nan.tsv")).pairs()
