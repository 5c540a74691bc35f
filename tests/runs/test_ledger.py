"""Damage to what was written is found, and nothing is made of it."""

from pathlib import Path

import pytest

from l2v.errors import L2VError
from l2v.runs.files import draft_folder
from l2v.runs.hashes import file_hash
from l2v.runs.ledger import Ledger, check_hash, is_kept, seal


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with Ledger(tmp_path).draft(tmp_path / "a.bin") as draft:
        draft.write_bytes(b"abcdef")
    return tmp_path / "a.bin"


def test_a_file_is_there_as_it_was_written_whichever_process_wrote_it(file: Path) -> None:
    other = file.with_name("b.bin")
    with Ledger(file.parent, process=3).draft(other) as draft:
        draft.write_bytes(b"ghi")
    ledger = Ledger(file.parent)
    assert ledger.sealed([file, other, file.with_name("c.bin")]) == [file, other]
    assert ledger.noted([file]) == {file: file_hash(file)} and set(ledger.names()) == {"a.bin", "b.bin"}


@pytest.mark.parametrize("damaged", [b"abcdeg", b"abc", b""])
def test_a_file_that_was_damaged_is_not_there(file: Path, damaged: bytes) -> None:
    file.write_bytes(damaged)
    assert not Ledger(file.parent).sealed([file])


def test_a_file_that_was_written_again_is_the_newer_one(file: Path) -> None:
    with Ledger(file.parent, process=1).draft(file) as draft:
        draft.write_bytes(b"fedcba")
    assert Ledger(file.parent).sealed([file]) == [file] and Ledger(file.parent).noted([file]) == {file: file_hash(file)}


def test_a_file_that_is_there_and_was_not_noted_is_not_there(file: Path) -> None:
    file.with_name("theirs.bin").write_bytes(b"abcdef")
    assert not Ledger(file.parent).sealed([file.with_name("theirs.bin")])


def test_a_note_that_was_cut_off_loses_its_file_only(file: Path) -> None:
    notes = next(file.parent.glob(".written-*"))
    notes.write_bytes(b'\xff\n{"file": "b.bin"}\n[]\n' + notes.read_bytes() + b'{"file": "c.b')
    assert Ledger(file.parent).sealed([file]) == [file]


def test_a_folder_that_is_kept_is_made_anew_once_it_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "rows"
    assert not is_kept(folder)
    with draft_folder(folder) as draft:
        (draft / "rows.arrow").write_bytes(b"rows")
        (draft / "counts.json").write_text("{}")
        seal(draft)
    assert is_kept(folder) and capsys.readouterr().err == ""
    (folder / "counts.json").write_text("[]")
    assert not is_kept(folder)
    assert capsys.readouterr().err == f"{folder / 'counts.json'}: is not as it was written, and is made anew\n"


def test_damage_is_told_with_its_remedy(file: Path) -> None:
    check_hash(file, file_hash(file), "")
    with pytest.raises(L2VError, match=r"a.bin: is damaged .*; write it anew"):
        check_hash(file, "0" * 64, "write it anew")
    with pytest.raises(L2VError, match=r"b.bin: is damaged .* or gone; write it anew"):
        check_hash(file.with_name("b.bin"), "0" * 64, "write it anew")
