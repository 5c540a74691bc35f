"""What lies in a device's memory, by kind, and the most that ever did."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["weights", "gradients", "optimizer", "activations", "scores", "gathers"]
KINDS: tuple[Kind, ...] = ("weights", "gradients", "optimizer", "activations", "scores", "gathers")


@dataclass
class _Entry:
    storage: "weakref.ref[torch.UntypedStorage]"
    kind: Kind
    born: int
    """The number of the change of the books that it came with."""
    size: int = 0


class Ledger:
    """The bytes of the tensors that are alive, each storage once.

    Args:
        block: bytes that the device's allocator rounds up to.
    """

    def __init__(self, block: int = 1) -> None:
        self.block = block
        self.now: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self.peak: dict[Kind, int] = dict(self.now)
        """The kinds at the moment when most was alive."""
        self._entries: dict[int, _Entry] = {}
        self._changes = self._peak_change = 0

    def note(self, tensor: Tensor, kind: Kind) -> None:
        """A tensor that may be new; a view of a known one changes nothing."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._entries:
            self._entries[key] = _Entry(weakref.ref(storage, self._forget(key)), kind, self._changes + 1)
            self.resize(storage)

    def resize(self, storage: torch.UntypedStorage) -> None:
        """A known storage may have another size now."""
        entry = self._entries.get(storage._cdata)
        if entry is not None:
            before, entry.size = entry.size, -(-storage.nbytes() // self.block) * self.block
            self._add(entry.kind, entry.size - before)

    def move(self, tensors: Iterable[Tensor], kind: Kind) -> None:
        """These are of another kind than it seemed, at the peak too if they were there."""
        for tensor in tensors:
            self.note(tensor, kind)
            entry = self._entries[tensor.untyped_storage()._cdata]
            changed = [self.now, *([self.peak] if entry.born <= self._peak_change else [])]
            for sizes in changed if entry.kind != kind else []:
                sizes[entry.kind] -= entry.size
                sizes[kind] += entry.size
            entry.kind = kind

    def start_anew(self) -> None:
        """The peak is what there is now."""
        self.peak, self._peak_change = dict(self.now), self._changes

    def _add(self, kind: Kind, size: int) -> None:
        self._changes += 1
        self.now[kind] += size
        if size > 0 and sum(self.now.values()) > sum(self.peak.values()):
            self.start_anew()

    def _forget(self, key: int) -> Callable[[object], None]:
        def gone(_: object) -> None:
            entry = self._entries.pop(key)
            self._add(entry.kind, -entry.size)

        return gone
