"""What lies in a device's memory, by kind, and the most that ever did."""

import weakref
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["weights", "gradients", "optimizer", "activations", "scores", "gathers"]
KINDS: tuple[Kind, ...] = ("weights", "gradients", "optimizer", "activations", "scores", "gathers")


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
        self._entries: dict[int, tuple[weakref.ref[torch.UntypedStorage], int, Kind]] = {}

    def note(self, tensor: Tensor, kind: Kind) -> None:
        """A tensor that may be new; a view of a known one changes nothing."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._entries:
            self._entries[key] = (weakref.ref(storage, self._forget(key)), 0, kind)
            self.resize(storage)

    def resize(self, storage: torch.UntypedStorage) -> None:
        """A known storage may have another size now."""
        key = storage._cdata
        if key in self._entries:
            reference, before, kind = self._entries[key]
            size = -(-storage.nbytes() // self.block) * self.block
            self._entries[key] = (reference, size, kind)
            self._add(kind, size - before)

    def move(self, tensors: Iterable[Tensor], kind: Kind) -> None:
        """These are of another kind than it seemed, at the peak too where they were alive."""
        for tensor in tensors:
            self.note(tensor, kind)
            key = tensor.untyped_storage()._cdata
            reference, size, before = self._entries[key]
            if before != kind:
                self._entries[key] = (reference, size, kind)
                self.now[before] -= size
                self.now[kind] += size

    def start_anew(self) -> None:
        """The peak is what there is now."""
        self.peak = dict(self.now)

    def _add(self, kind: Kind, size: int) -> None:
        self.now[kind] += size
        if size > 0 and sum(self.now.values()) > sum(self.peak.values()):
            self.peak = dict(self.now)

    def _forget(self, key: int) -> Callable[[object], None]:
        def gone(_: object) -> None:
            _, size, kind = self._entries.pop(key)
            self._add(kind, -size)

        return gone
