"""A checkpoint whose tensors stay where they are split: a file a process, beside the file with all the rest.

``last.ckpt`` names the folder of the parts, ``last-<step>-<number>``, and is replaced when all of them are written: it
stands for the older checkpoint or for the newer one, and never for half of one.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from l2v.errors import L2VError, first_line

PARTS = "parts"
"""In a checkpoint: the folder's name, the weights' names in the order of the optimizer, and AdamW's steps."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of a weight beside the number of its steps."""


def free_folder(checkpoint: Path, step: int) -> str:
    """A name beside a checkpoint for the parts of a new one."""
    names = (f"{checkpoint.stem}-{step}-{number}" for number in range(10_000))
    return next(name for name in names if not (checkpoint.parent / name).exists())


def write_part(folder: Path, number: int, tensors: Mapping[str, tuple[Tensor, int, int]]) -> None:
    """Write a process's part.

    Args:
        folder: of all parts.
        number: of the process.
        tensors: by name: its rows, the number of the first of them, and the number of all processes' rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = {name: [begin, rows] for name, (_, begin, rows) in tensors.items()}
    held = {name: value.contiguous() for name, (value, _, _) in tensors.items()}
    try:
        save_file(held, folder / f"part-{number:05d}.safetensors", {"places": json.dumps(places)})
    except (OSError, SafetensorError) as error:
        raise L2VError(f"{folder}: cannot be saved ({first_line(error)}); the checkpoint before is kept") from error


def remove_others(checkpoint: Path, kept: str | None) -> None:
    """Remove the parts of older checkpoints of that name, and those that a killed process left."""
    for folder in checkpoint.parent.glob(f"{checkpoint.stem}-*-*"):
        if folder.is_dir() and folder.name != kept:
            shutil.rmtree(folder)


def name_of(weight: str, moment: str | None) -> str:
    """Of a weight, or of its moment, in a part."""
    return weight if moment is None else f"{moment} {weight}"


def join(checkpoint: dict[str, Any], beside: Path) -> dict[str, Any]:
    """A checkpoint with its tensors, which are not read yet, where those of an undivided one are."""
    if PARTS not in checkpoint:
        return checkpoint
    about = checkpoint.pop(PARTS)
    parts = Parts(beside / about["folder"])
    checkpoint["state_dict"] = {name: parts[name] for name in about["weights"]}
    if about["step"] is not None:
        checkpoint["optimizer_states"][0]["state"] = {
            number: {
                "step": torch.tensor(about["step"]),
                **{moment: parts[name_of(name, moment)] for moment in MOMENTS},
            }
            for number, name in enumerate(about["weights"])
        }
    return checkpoint


def read_all(value: Any) -> Any:
    """A checkpoint, or a piece of one, with the tensors read."""
    if isinstance(value, Rows):
        return value[:]
    if isinstance(value, dict):
        return {key: read_all(one) for key, one in value.items()}
    return [read_all(one) for one in value] if isinstance(value, list) else value


class Parts(Mapping[str, "Rows"]):
    """The tensors of a folder of parts, by name; none is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._found: dict[str, list[tuple[Path, int]]] = {}
        self._rows: dict[str, int] = {}
        for file in sorted(folder.glob("part-*.safetensors")):
            with safe_open(file, "pt") as part:
                places = json.loads(part.metadata()["places"])
            for name, (begin, rows) in places.items():
                self._found.setdefault(name, []).append((file, begin))
                self._rows[name] = rows
        if not self._found:
            raise L2VError(f"{folder}: the parts of the checkpoint are missing")

    def __getitem__(self, name: str) -> "Rows":
        return Rows(name, self._found[name], self._rows[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class Rows:
    """A tensor that lies in several files, split over its first dimension."""

    def __init__(self, name: str, places: list[tuple[Path, int]], rows: int) -> None:
        self.name, self.places, self.rows = name, places, rows

    def __getitem__(self, wanted: slice | tuple[slice, ...]) -> Tensor:
        """Rows of it; further dimensions are whole."""
        first = wanted[0] if isinstance(wanted, tuple) else wanted
        begin, end, _ = first.indices(self.rows)
        found: list[Tensor] = []
        for file, offset in sorted(self.places, key=lambda place: place[1]):
            with safe_open(file, "pt") as part:
                rows = part.get_slice(self.name)
                low, high = max(begin - offset, 0), min(end - offset, rows.get_shape()[0])
                if low < high or not found:
                    found.append(rows[low : max(low, high)])
        whole = torch.cat(found)
        if len(whole) != max(end - begin, 0):
            raise L2VError(f"{self.places[0][0].parent}: rows of {self.name} are missing")
        return whole
