"""What the first process of a training decides reaches the others, however they were started."""

import os
import subprocess
import sys

import pytest
from pair import elastic_environments

from l2v.cli import agreement
from l2v.errors import L2VError

PROGRAM = """
import sys
from l2v.cli.agreement import agree, forget
from l2v.config import process_rank
def decide(value):
    if value == "fail":
        raise ValueError("no")
    return value
for value in sys.argv[1:]:
    try:
        print(agree("name", lambda: decide(value) if process_rank() == 0 else 1 / 0))
    except ValueError:
        print("failed")
    except SystemExit as end:
        print("ended", end.code)
    forget()
"""


@pytest.mark.slow
def test_processes_of_torchrun_agree_training_after_training() -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, "a", "fail", "b"], env=environment, stdout=subprocess.PIPE)
        for environment in elastic_environments(2)
    ]
    first, second = (process.communicate(timeout=120)[0].decode().split("\n") for process in processes)
    assert first == ["a", "failed", "b", ""]
    assert second == ["a", "ended 1", "b", ""]


def test_processes_that_lightning_starts_inherit_what_was_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    assert agreement.agree("name", lambda: "a") == "a"
    inherited = dict(os.environ)
    agreement.forget()
    assert os.environ.keys() == inherited.keys() - {"L2V_AGREED_name"}
    monkeypatch.setenv("L2V_AGREED_name", inherited["L2V_AGREED_name"])
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert agreement.agree("name", lambda: "b") == "a"


def test_slurm_has_to_say_how_many_processes_a_node_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "l2v"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    agreement._store.cache_clear()
    with pytest.raises(L2VError, match="--ntasks=2 of SLURM .* give --ntasks-per-node, one a GPU, instead"):
        agreement.agree("name", lambda: "a")
    agreement._store.cache_clear()
