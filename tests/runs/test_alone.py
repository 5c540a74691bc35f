"""One process at a time trains in a folder, and what killed ones had begun is put right by the next."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from launch import ROOT, Tiny, composed, script

from l2v.errors import L2VError
from l2v.runs.files import draft_file, draft_folder, machine, remove_drafts
from l2v.runs.run import Run

GONE = 2**22 + 1
"""No process has so large a number."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs" / "run")
    run.create("", {"config_hash": ""})
    return run


@pytest.mark.parametrize(
    ("of", "seconds", "free"), [("another", 5, False), ("another", 300, True), (machine(), 5, True)]
)
def test_whether_a_run_is_being_trained_is_known_across_machines_and_reused_numbers(
    run: Run, of: str, seconds: int, free: bool
) -> None:
    run.update(status="running", process={"host": "a", "pid": os.getppid(), "machine": of})  # of a living process
    then = time.time() - seconds
    os.utime(run.record_file, (then, then))
    if free:
        with run.alone():
            pass
    else:
        told = rf"process {os.getppid()} of a is training in it; .* \(it showed life [4-9] s ago"
        with pytest.raises(L2VError, match=told), run.alone():
            pass


def test_training_shows_life(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l2v.runs.locks._PULSE", 0.01)
    os.utime(run.record_file, (0, 0))
    with run.alone():
        for _ in range(500):
            if run.record_file.stat().st_mtime > 0:
                break
            time.sleep(0.01)
    assert run.record_file.stat().st_mtime > 0


def test_of_unnamed_runs_side_by_side_each_has_a_folder(tmp_path: Path) -> None:
    composed("train", [])
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: script("train")._free_name(tmp_path), range(8)))
    assert len(set(names)) == 8 and {path.name for path in tmp_path.iterdir()} == set(names)


def test_a_mistake_leaves_no_folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Tiny(tmp_path, tiny_model, monkeypatch)
    with pytest.raises(L2VError):
        tiny.main([*tiny.overrides("mntp"), "stage.batch_size=0"])
    with pytest.raises(L2VError, match="no such file or folder"):
        tiny.main([*tiny.overrides("mntp"), "init_from=no/such/thing/there"])
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.slow
def test_of_two_that_start_at_once_under_one_name_one_trains(tmp_path: Path, tiny_model: Path, monkeypatch) -> None:
    tiny = Tiny(tmp_path, tiny_model, monkeypatch)
    command = [sys.executable, "-m", "l2v.cli.train", *tiny.overrides("mntp", "stage.max_steps=40", "name=run")]
    settings = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*command, f"seed={seed}"], **settings) for seed in (1, 2)]
    told = [one.communicate(timeout=300)[1] for one in both]
    won = [seed for seed, one in zip((1, 2), both, strict=True) if one.returncode == 0]
    assert len(won) == 1, told
    lost = told[2 - won[0]]
    assert "is training in it" in lost or "is finished; choose another name" in lost, lost
    run = Run(tmp_path / "runs" / "run")
    assert run.is_finished and run.record()["seed"] == won[0]
    assert f"seed: {won[0]}\n" in (run.folder / "config.yaml").read_text()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_that_was_being_replaced_when_its_process_was_killed_is_the_new_one(tmp_path: Path) -> None:
    (tmp_path / f"encoder.tmp-{machine()}-{GONE}").mkdir()
    (tmp_path / f"encoder.tmp-{machine()}-{GONE}" / "new").touch()
    (tmp_path / f"encoder.old-{machine()}-{GONE}").mkdir()
    remove_drafts(tmp_path)
    assert names(tmp_path) == {"encoder"} and names(tmp_path / "encoder") == {"new"}


def test_a_folder_that_was_put_away_comes_back_where_nothing_replaces_it(tmp_path: Path) -> None:
    (tmp_path / f"encoder.old-{machine()}-{GONE}").mkdir()
    (tmp_path / f"encoder.old-{machine()}-{GONE}" / "old").touch()
    remove_drafts(tmp_path)
    assert names(tmp_path) == {"encoder"} and names(tmp_path / "encoder") == {"old"}


def test_drafts_of_processes_that_are_gone_are_removed_and_no_others(tmp_path: Path) -> None:
    (tmp_path / f"last.ckpt.tmp-{machine()}-{GONE}").write_text("half")
    (tmp_path / f"encoder.tmp-{machine()}-{GONE}").mkdir()
    old, new = tmp_path / "encoder.tmp-elsewhere-7", tmp_path / "adapter.tmp-elsewhere-7"
    for folder, age in ((old, 2 * 86_400), (new, 3600)):
        folder.mkdir()
        os.utime(folder, (time.time() - age, time.time() - age))
    (tmp_path / "mine.tmp-1").touch()
    with draft_file(tmp_path / "a.txt") as file, draft_folder(tmp_path / "b") as folder:
        for living in (file, folder):
            os.utime(living, (0, 0))
        remove_drafts(tmp_path)
        assert names(tmp_path) == {new.name, "mine.tmp-1", file.name, folder.name}
    assert names(tmp_path) == {new.name, "mine.tmp-1", "a.txt", "b"}


def _hold(folder: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with draft_folder(folder) as draft:
        (draft / "half").touch()
        os.utime(draft / "half", (0, 0))
        os.utime(draft, (0, 0))
        ready.set()
        time.sleep(60)


@pytest.mark.slow
def test_a_draft_is_its_process_until_that_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "encoder", ready))
    process.start()
    assert ready.wait(60)
    remove_drafts(tmp_path)
    assert len(names(tmp_path)) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    remove_drafts(tmp_path)
    assert not names(tmp_path)


@pytest.mark.parametrize("at", [0, 1])
def test_a_signal_between_two_renames_loses_neither_folder(tmp_path: Path, monkeypatch, at: int) -> None:
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "old").touch()
    rename, calls = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == at + 1:
            if at == 0:
                rename(self, target)  # it comes right after
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), draft_folder(tmp_path / "encoder"):
        pass
    assert names(tmp_path) == {"encoder"} and names(tmp_path / "encoder") == {"old"}


def test_a_run_takes_its_drafts_away_when_it_starts(run: Run) -> None:
    run.checkpoints.mkdir()
    for folder in (run.folder, run.checkpoints):
        (folder / f"thing.tmp-{machine()}-{GONE}").touch()
    with run.alone():
        pass
    assert names(run.folder) == {".lock", "run.json", "config.yaml", "checkpoints"} and not names(run.checkpoints)


def test_bytes_reach_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        assert not (tmp_path / "a.txt").exists() and not (tmp_path / "b").exists()
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    with draft_file(tmp_path / "a.txt") as file:
        file.write_text("a")
    (tmp_path / "a.txt").unlink()
    with draft_folder(tmp_path / "b") as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "c").write_text("c")
    assert done == [file.name, "c"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_of_a_folder_are_as_readable_as_it_is(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with draft_folder(tmp_path / "encoder") as draft:
            os.close(os.open(draft / "model.safetensors", os.O_CREAT, 0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "encoder" / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
