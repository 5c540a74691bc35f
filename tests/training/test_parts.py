"""A checkpoint in parts: read as a whole, by rows, and whole or not at all."""

from pathlib import Path

import pytest
import torch

from l2v.errors import L2VError
from l2v.training.checkpoints import AtomicCheckpointIO, read_checkpoint
from l2v.training.parts import PARTS, free_folder, name_of, remove_others, write_part

ROWS = {"a": 5, "b": 2}
CUTS = {"a": [0, 3, 5, 5], "b": [0, 1, 2, 2]}
"""Of three processes, the last without rows."""


def whole(name: str, step: int) -> torch.Tensor:
    return torch.arange(ROWS[name] * 4, dtype=torch.float32).reshape(-1, 4) + step


def write(checkpoint: Path, step: int, processes: int = 3) -> str:
    """Parts as a training leaves them before the file that names them."""
    folder = free_folder(checkpoint, step)
    for process in range(processes):
        tensors = {}
        for name, cuts in CUTS.items():
            begin, end = cuts[process], cuts[process + 1]
            for moment in (None, "exp_avg", "exp_avg_sq"):
                tensors[name_of(name, moment)] = (whole(name, step)[begin:end], begin, ROWS[name])
        write_part(checkpoint.parent / folder, process, tensors)
    return folder


def save(checkpoint: Path, step: int, folder: str) -> None:
    about = {"folder": folder, "weights": ["b", "a"], "step": 3.0}
    optimizer = {"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    AtomicCheckpointIO().save_checkpoint(
        {"global_step": step, "state_dict": {}, "optimizer_states": [optimizer], PARTS: about}, checkpoint
    )
    remove_others(checkpoint, folder)


def test_parts_are_read_as_one_and_by_rows(tmp_path: Path) -> None:
    checkpoint = tmp_path / "last.ckpt"
    save(checkpoint, 7, write(checkpoint, 7))
    found = AtomicCheckpointIO().load_checkpoint(checkpoint)
    assert list(found["state_dict"]) == ["b", "a"]
    for name, value in found["state_dict"].items():
        assert torch.equal(value, whole(name, 7))
    state = found["optimizer_states"][0]["state"]
    assert state[1]["step"] == 3 and torch.equal(state[1]["exp_avg_sq"], whole("a", 7))
    rows = read_checkpoint(checkpoint)["state_dict"]["a"]
    for begin in range(6):
        for end in range(begin, 6):
            assert torch.equal(rows[begin:end], whole("a", 7)[begin:end])
    assert torch.equal(rows[slice(2, 4), slice(0, 4)], whole("a", 7)[2:4])


def test_a_save_that_was_killed_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    checkpoint = tmp_path / "last.ckpt"
    save(checkpoint, 7, write(checkpoint, 7))
    write(checkpoint, 9, processes=1)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(checkpoint)["state_dict"]["a"], whole("a", 7))
    again = write(checkpoint, 9)  # the same step, in a folder of its own
    assert again == "last-9-1"
    save(checkpoint, 9, again)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last-9-1", "last.ckpt"]
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(checkpoint)["state_dict"]["a"], whole("a", 9))


def test_a_missing_part_is_noticed(tmp_path: Path) -> None:
    checkpoint = tmp_path / "last.ckpt"
    folder = tmp_path / write(checkpoint, 7)
    save(checkpoint, 7, folder.name)
    (folder / "part-00001.safetensors").unlink()
    with pytest.raises(L2VError, match="last-7-0: rows of b are missing"):
        AtomicCheckpointIO().load_checkpoint(checkpoint)
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(L2VError, match="last-7-0: the parts of the checkpoint are missing"):
        AtomicCheckpointIO().load_checkpoint(checkpoint)


def test_a_folder_of_deepspeed_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").mkdir()
    with pytest.raises(L2VError, match="a checkpoint of DeepSpeed's own, which is not read"):
        read_checkpoint(tmp_path / "last.ckpt")
