"""What the processes of torchrun tell each other."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
from launch import composed, script
from torch.distributed import TCPStore

from l2v.cli.processes import tell_others, told_by_first
from l2v.errors import L2VError


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """As torchrun keeps one for the processes that it starts."""
    store = TCPStore("localhost", 0, is_master=True, timeout=timedelta(seconds=30), wait_for_workers=False)
    settings = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in {**settings, "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0"}.items():
        monkeypatch.setenv(name, value)
    return store


def test_what_the_first_says_others_hear(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    tell_others("key", "a name, ümlauts")
    assert told_by_first("key") == "a name, ümlauts"
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    assert told_by_first("key") is None


def test_processes_of_torchrun_share_a_folder_without_a_name(
    store: TCPStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed("train", [])
    monkeypatch.delenv("L2V_RUN_DIR", raising=False)
    names = set()
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        names.add(script("train")._free_name(tmp_path))
    assert len(names) == 1 and os.listdir(tmp_path) == list(names)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    with pytest.raises(L2VError, match="name: must be given when the processes are started from outside"):
        script("train")._free_name(tmp_path)
