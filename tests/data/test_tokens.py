"""Token rows: what is in them, and that they are made once."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tiny import SENTENCES, make_tiny_tokenizer

from l2v.data.datamodule import Rows, spread
from l2v.data.order import Pick
from l2v.data.tokens import block_rows, text_rows
from l2v.errors import L2VError


@dataclass
class Counted:
    """Texts that count how often they are read."""

    content: list[str]
    name: str
    reads: int = field(default=0)

    def texts(self) -> Iterator[str]:
        self.reads += 1
        yield from self.content

    def fingerprint(self) -> str:
        return f"counted:{self.name}"


TOKENIZER = make_tiny_tokenizer()
EOS = TOKENIZER.eos_token_id


def test_blocks_are_the_texts_joined_by_end_of_text() -> None:
    data = block_rows(Counted(SENTENCES, "joined"), TOKENIZER, 16, show=False)
    stream = [token for text in SENTENCES for token in [*TOKENIZER(text)["input_ids"], EOS]]
    assert [token for row in data["input_ids"] for token in row] == stream[: len(stream) // 16 * 16]
    assert {len(row) for row in data["input_ids"]} == {16}


def test_blocks_go_across_chunks_of_texts() -> None:
    many = SENTENCES * 400  # more than are tokenized at once
    data = block_rows(Counted(many, "many"), TOKENIZER, 64, show=False)
    tokens = sum(len(TOKENIZER(text)["input_ids"]) + 1 for text in SENTENCES) * 400
    assert len(data) == tokens // 64


def test_texts_are_a_row_each_and_cut() -> None:
    data = text_rows(Counted([*SENTENCES, ""], "texts"), TOKENIZER, 8, show=False)
    assert data["input_ids"][:] == [TOKENIZER(text)["input_ids"][:8] for text in SENTENCES]


def test_texts_are_tokenized_once_and_memory_mapped() -> None:
    source = Counted(SENTENCES, "once")
    first = block_rows(source, TOKENIZER, 8, show=False)
    again = block_rows(Counted(["other texts, same fingerprint"], "once"), TOKENIZER, 8, show=False)
    assert source.reads == 1
    assert first["input_ids"][:] == again["input_ids"][:]
    assert again.cache_files[0]["filename"].endswith(".arrow")


def test_rows_that_were_damaged_are_made_anew(capsys: pytest.CaptureFixture[str]) -> None:
    first = block_rows(Counted(SENTENCES, "damaged"), TOKENIZER, 8, show=False)
    expected, file = first["input_ids"][:], Path(first.cache_files[0]["filename"])
    for damage in (lambda data: data[:-8], lambda data: data[:400] + bytes([data[400] ^ 1]) + data[401:]):
        file.write_bytes(damage(file.read_bytes()))
        source = Counted(SENTENCES, "damaged")
        assert block_rows(source, TOKENIZER, 8, show=False)["input_ids"][:] == expected and source.reads == 1
        assert f"{file}: is not as it was written, and is made anew" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["texts", "length", "tokenizer", "kind"])
def test_whatever_changes_the_rows_makes_new_ones(change: str) -> None:
    block_rows(Counted(SENTENCES, "change"), TOKENIZER, 8, show=False)
    source = Counted(SENTENCES, "changed" if change == "texts" else "change")
    tokenizer = make_tiny_tokenizer(bos=True) if change == "tokenizer" else TOKENIZER
    make = text_rows if change == "kind" else block_rows
    make(source, tokenizer, 9 if change == "length" else 8, show=False)
    assert source.reads == 1


def test_too_little_text_is_told() -> None:
    with pytest.raises(L2VError, match="gives no blocks of 4096 tokens"):
        block_rows(Counted(SENTENCES, "little"), TOKENIZER, 4096, show=False)
    # and nothing half-made is left in the cache
    with pytest.raises(L2VError, match="gives no blocks"):
        block_rows(Counted(SENTENCES, "little"), TOKENIZER, 4096, show=False)


def test_a_lone_surrogate_does_not_stop_the_tokenizer() -> None:
    assert len(text_rows(Counted(["bad \ud800 text"], "surrogate"), TOKENIZER, 64, show=False)) == 1


def test_rows_are_read_a_batch_at_a_time_in_the_order_asked_for() -> None:
    data = text_rows(Counted(SENTENCES, "batch"), TOKENIZER, 64, show=False)
    rows = Rows(data).__getitems__([Pick(3, 30), Pick(0, 31), Pick(3, 32)])
    assert rows == [(data[3], 30), (data[0], 31), (data[3], 32)]


def test_spread_takes_rows_from_the_whole_data() -> None:
    data = text_rows(Counted([str(number) for number in range(100)], "spread"), TOKENIZER, 8, show=False)
    assert spread(data, 4)["input_ids"][:] == [data[row]["input_ids"] for row in (0, 33, 66, 99)]
    assert len(spread(data, 1000)) == 100
    chosen = Rows(data).spread(4)
    assert chosen.__getitems__([Pick(n, n) for n in range(4)]) == [
        (data[row], n) for n, row in enumerate((0, 33, 66, 99))
    ]
    assert [row for row, _ in chosen.spread(2).__getitems__([Pick(1, 0)])] == [data[99]]
    assert len(Rows(data).spread(1000)) == 100


@pytest.mark.parametrize("make", [block_rows, text_rows])
def test_memory_does_not_grow_with_the_texts(make) -> None:
    """Texts are read, tokenized and written some at a time."""

    @dataclass
    class Many:
        count: int

        def texts(self) -> Iterator[str]:
            return (f"{SENTENCES[number % 6]} ({number})" for number in range(self.count))

        def fingerprint(self) -> str:
            return f"many:{self.count}"

    def peak(count: int) -> int:
        tracemalloc.start()
        make(Many(count), TOKENIZER, 16, show=False)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)  # what is made once
    assert peak(10_000) < 1.2 * peak(3_000)
