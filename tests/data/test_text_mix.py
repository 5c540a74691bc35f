"""Several sets of texts as one: their shares, the order of their rows, and what is held out of them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import SENTENCES, make_tiny_tokenizer

from l2v.data.datamodule import TokenData
from l2v.data.languages import language_texts
from l2v.data.text_mix import TextMix, TextMixOrder, TextMixRows
from l2v.data.texts import FileTexts
from l2v.data.tokens import text_rows
from l2v.errors import L2VError

SIZES = {"de": 100, "en": 30, "sw": 10}
SHARES = {"de": 0.5, "en": 0.3, "sw": 0.2}
OF = np.repeat(np.arange(3), list(SIZES.values()))
"""The set of each row."""
kinds = pytest.mark.parametrize("one_set_a_batch", [False, True], ids=["mixed", "one set"])


@dataclass(frozen=True)
class Listed:
    content: tuple[str, ...]

    def texts(self) -> Iterator[str]:
        yield from self.content

    def fingerprint(self) -> str:
        return f"listed:{self.content}"


def order(one_set_a_batch: bool = False, **settings: Any) -> TextMixOrder:
    given: dict[str, Any] = {"batch_size": 8, "batches": 50} | settings
    return TextMixOrder(SIZES, SHARES, one_set_a_batch=one_set_a_batch, **given)


def rows_of(batches: Any) -> list[int]:
    return [pick.row for batch in batches for pick in batch]


@kinds
def test_each_set_is_read_as_often_as_its_share_says_at_any_time(one_set_a_batch: bool) -> None:
    for batches in (1, 7, 50, 400):
        read = np.bincount(OF[rows_of(order(one_set_a_batch, batches=batches))], minlength=3)
        unit = 8 if one_set_a_batch else 1
        assert np.abs(read / unit - 8 / unit * batches * np.array([0.5, 0.3, 0.2])).max() < 2.5


def test_every_mixed_batch_has_its_shares_rounded_down_or_up() -> None:
    for batch in order(batches=200):
        counts = np.bincount([OF[pick.row] for pick in batch], minlength=3).tolist()
        assert counts[0] == 4 and counts[1] in (2, 3) and counts[2] in (1, 2)


def test_a_batch_of_one_set_has_rows_of_no_other() -> None:
    sets = [{OF[pick.row] for pick in batch} for batch in order(one_set_a_batch=True)]
    assert all(len(found) == 1 for found in sets) and set().union(*sets) == {0, 1, 2}


@kinds
def test_no_batch_has_a_row_twice_and_a_set_is_passed_over_evenly(one_set_a_batch: bool) -> None:
    batches = list(order(one_set_a_batch, batches=300))
    assert all(len({pick.row for pick in batch}) == 8 for batch in batches)
    counts = Counter(rows_of(batches))
    for number, size in enumerate(SIZES.values()):
        times = [counts[row] for row in np.flatnonzero(number == OF)]
        mean = sum(times) / size
        assert min(times) > 0.6 * mean and max(times) < 1.4 * mean + 1, (number, mean)


@kinds
def test_a_first_pass_over_a_set_reads_each_row_once(one_set_a_batch: bool) -> None:
    read = [row for row in rows_of(order(one_set_a_batch)) if OF[row] == 0]
    assert len(set(read[:96])) == 96


@kinds
@pytest.mark.parametrize(("batch_size", "world_size"), [(4, 2), (2, 4), (1, 8)])
def test_the_ranks_together_read_what_one_process_would(
    one_set_a_batch: bool, batch_size: int, world_size: int
) -> None:
    share = {"batch_size": batch_size, "world_size": world_size}
    ranks = [list(order(one_set_a_batch, rank=rank, **share)) for rank in range(world_size)]
    assert [list(chain(*batches)) for batches in zip(*ranks, strict=True)] == list(order(one_set_a_batch))


@kinds
@pytest.mark.parametrize("first", [0, 1, 13, 49])
def test_resuming_reads_the_tail_and_longer_training_begins_alike(one_set_a_batch: bool, first: int) -> None:
    whole = list(order(one_set_a_batch))
    assert list(order(one_set_a_batch, first=first)) == whole[first:]
    assert list(order(one_set_a_batch, batches=80))[:50] == whole
    assert list(order(one_set_a_batch, seed=1)) != whole


def test_ranks_get_rows_of_all_sets() -> None:
    second = order(batch_size=4, world_size=2, rank=1)
    assert {OF[row] for row in rows_of(second)} == {0, 1, 2}


def test_what_is_read_of_each_set_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    order()
    order(rank=1, world_size=2, batch_size=4)
    told = capsys.readouterr().err
    assert told.count("shares of each batch") == 1
    assert "de 50% (100 rows, read 2 times), en 30% (30 rows, read 4 times), sw 20% (10 rows, read 7.9 times)" in told


@pytest.mark.parametrize(
    ("one_set_a_batch", "message"),
    [
        (False, r"^stage.batch_size=60 on 1 process\(es\) needs 60 rows, 12 of them of sw, but .* has 10; lower it"),
        (True, r"^stage.batch_size=60 on 1 process\(es\) needs 60 rows, 60 of them of en, but .* has 30; lower it"),
    ],
)
def test_a_set_with_too_few_rows_is_told_by_its_name(one_set_a_batch: bool, message: str) -> None:
    with pytest.raises(L2VError, match=message):
        order(one_set_a_batch, batch_size=60)


SETS = {"a": Listed(("one", "two", "three")), "b": Listed(("four",))}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.75, 0.25]),
        ({"alpha": 0}, [0.5, 0.5]),
        ({"alpha": 0.5}, [3**0.5 / (1 + 3**0.5), 1 / (1 + 3**0.5)]),
        ({"shares": {"a": 1, "b": 4}}, [0.2, 0.8]),
    ],
)
def test_shares_are_given_or_go_as_a_power_of_the_sizes(settings: dict[str, Any], expected: list[float]) -> None:
    assert list(TextMix(SETS, **settings).shares_of({"a": 3, "b": 1}).values()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shares": {"a": 1}}, "data.train.shares: expected a number for each of a, b; found a"),
        ({"shares": {"a": 1, "b": 0}}, "data.train.shares.b=0: expected a number above 0"),
        ({"shares": {"a": 1, "b": 1}, "alpha": 0.3}, "data.train.shares and data.train.alpha exclude each other"),
        ({"sets": {}}, "data.train.sets: expected at least one set"),
        ({"sets": {"a": "text"}}, "data.train.sets.a: expected texts, found str"),
    ],
)
def test_a_wrong_share_or_set_is_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(L2VError, match=f"^{message}"):
        TextMix(**{"sets": SETS} | settings)


def test_a_mix_has_the_texts_of_all_sets_and_a_fingerprint_of_all_that_it_says() -> None:
    assert list(TextMix(SETS).texts()) == ["one", "two", "three", "four"]
    mixes = [TextMix(SETS), TextMix(SETS, alpha=0.5), TextMix(SETS, {"a": 1, "b": 1}), TextMix({"a": SETS["b"]})]
    assert len({mix.fingerprint() for mix in mixes}) == 4


def test_validating_on_a_set_that_trains_is_refused() -> None:
    with pytest.raises(L2VError, match="data.train: b trains and validates on the same texts"):
        TextMix(SETS).check_validation(TextMix({"b": SETS["b"]}))
    TextMix(SETS).check_validation(TextMix({"b": Listed(("five",))}))


def test_rows_are_those_of_each_set_and_as_many_of_each_validate() -> None:
    tokenizer = make_tiny_tokenizer()
    mix = TextMix({"a": Listed(tuple(SENTENCES * 10)), "b": Listed(tuple(SENTENCES[:2]))})
    rows = mix.joined_rows(lambda source: text_rows(source, tokenizer, 16, show=False))
    assert rows.sizes == {"a": 60, "b": 2} and len(rows) == 62
    assert rows.sets.tolist() == [0] * 60 + [1] * 2
    fewer = rows.spread(8)
    assert fewer.sizes == {"a": 4, "b": 2} and fewer.index is not None
    assert fewer.index.tolist() == [0, 20, 39, 59, 60, 61]


def test_a_set_is_tokenized_by_itself_and_kept_when_shares_change() -> None:
    made: list[Any] = []

    class Stage:
        validation_rows = 4

        def rows(self, source: Any, *, show: bool) -> Any:
            made.append(source)
            return text_rows(source, make_tiny_tokenizer(), 16, show=show)

    data = TokenData(Stage(), TextMix(SETS), TextMix({"a": Listed(("five",))}))  # type: ignore[arg-type]
    data.prepare_data()
    data.setup("fit")
    assert made == [*SETS.values(), Listed(("five",))] * 2
    assert isinstance(data.train_rows, TextMixRows) and len(data.train_rows) == 4


def write(file: Path, count: int) -> Path:
    file.write_text("".join(f"{file.stem} {number}\n" for number in range(count)), encoding="utf-8")
    return file


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    return {name: str(write(tmp_path / f"{name}.txt", 20)) for name in ("de", "en")}


def test_held_out_texts_of_each_set_validate_and_do_not_train(files: dict[str, Any]) -> None:
    train, held_out = (language_texts(part=part, files=files, held_out=3) for part in ("train", "held_out"))  # type: ignore[arg-type]
    validated = [f"{name} {number}" for name in ("de", "en") for number in (0, 10, 19)]
    assert list(held_out.texts()) == validated
    assert sorted([*train.texts(), *validated]) == sorted(f"{n} {k}" for n in ("de", "en") for k in range(20))
    train.check_validation(held_out)


def test_files_to_validate_on_leave_all_texts_to_train(files: dict[str, Any], tmp_path: Path) -> None:
    more: dict[str, Any] = {"files": files, "validation_files": {"de": str(write(tmp_path / "dev.txt", 2))}}
    train, held_out = (language_texts(part=part, **more) for part in ("train", "held_out"))  # type: ignore[arg-type]
    column = "data.train.column"
    assert list(train.sets.values()) == [
        FileTexts(files[name], override=f"data.files.{name}", column_override=column) for name in files
    ]
    assert list(held_out.texts()) == ["dev 0", "dev 1"]


def test_files_and_wikipedias_are_mixed(files: dict[str, Any]) -> None:
    mix = language_texts(part="train", files={"own": files["de"]}, languages=["de"], held_out=2)
    assert list(mix.sets) == ["own", "de"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"data.files=.* or data.languages=\[de,en\]: give one or both"),
        ({"files": {"de": "none.txt"}}, "data.files.de=none.txt: no such file"),
        ({"files": "here", "held_out": 20}, r"data.files.de: 20 text\(s\), and data.held_out=20 of them validate"),
        ({"files": "here", "held_out": 1, "languages": ["de"]}, "data.languages: de is named twice"),
        ({"languages": ["de", "de"]}, "data.languages: de is named twice"),
        ({"languages": ["German"]}, "data.languages: 'German' is no language of Wikipedia's"),
        ({"languages": ["de"], "articles": 100}, "data.held_out=100 leaves none of data.train.articles=100"),
    ],
)
def test_a_mistake_about_languages_is_told(files: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    given = settings | ({"files": files} if settings.get("files") == "here" else {})
    with pytest.raises(L2VError, match=f"^{message}") as error:
        language_texts(part="train", **given)
    assert "\n" not in str(error.value)


def test_a_column_that_a_file_has_not_is_told_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "de.csv").write_text("body\na\nb\n", encoding="utf-8")
    files = {"de": str(tmp_path / "de.csv")}
    with pytest.raises(L2VError, match="no column 'text'; it has body; name the column with data.train.column"):
        language_texts(part="train", files=files, held_out=1)
    held_out = language_texts(part="held_out", files=files, validation_files=files)
    with pytest.raises(L2VError, match="no column 'text'; it has body; name the column with data.train.column"):
        list(held_out.texts())
