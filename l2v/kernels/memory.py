"""How the C library and torch keep freed memory, and how the system keeps files that are mapped."""

import contextlib
import ctypes
import functools
import mmap
import platform
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEEPING = {_M_MMAP_THRESHOLD: 32 * 2**20, _M_TRIM_THRESHOLD: -1}
"""Bytes: the most that glibc takes, and no limit, since a contrastive step frees more than that at its end."""
_GIVING_BACK = {_M_MMAP_THRESHOLD: 2**16, _M_TRIM_THRESHOLD: 2**17}
_keeps = False
_MAPS = Path("/proc/self/maps")


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep what tensors free for the next ones; of the whole process.

    It gives large blocks back to the system at once, which has to clear them, page by page, when the next tensor takes
    them: a tenth of the time of a training step. Elsewhere than with glibc this does nothing.
    """
    global _keeps
    if platform.libc_ver()[0] == "glibc":
        _keeps = True
        _set(_KEEPING)


@contextlib.contextmanager
def giving_memory_back() -> Iterator[None]:
    """Meanwhile large blocks do go back to the system, whatever :func:`keep_freed_memory` has set.

    For weights that are loaded, merged, cast or split one after the other: what is kept of each lies in what was freed
    of the one before, which then fits no other. A process that splits a model in eight held 1.5 times the whole of it.
    """
    if not _keeps:
        yield
        return
    _set(_GIVING_BACK)
    try:
        yield
    finally:
        _set(_KEEPING)
        ctypes.CDLL(None).malloc_trim(0)


def _set(thresholds: dict[int, int]) -> None:
    for name, size in thresholds.items():
        ctypes.CDLL(None).mallopt(name, size)


def give_back_what_is_free() -> None:
    """Leave to other processes what torch and glibc keep for the next tensors of this one.

    For a process that had a model and now waits for another that trains one: torch keeps all the memory of a GPU that
    it ever took, a model of 8B in bfloat16 some 16 GiB.
    """
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if _keeps:
        ctypes.CDLL(None).malloc_trim(0)


def release_pages(tensor: Tensor) -> None:
    """Give the memory of a tensor that lies in a mapped file back, once nothing reads it any more.

    The file stays mapped as long as another tensor lies in it, and with it all pages that were ever read. Elsewhere
    than on Linux, and for any other tensor, this does nothing.
    """
    # one of a subclass (DTensor, FakeTensor) has no memory of its own
    if type(tensor) is not Tensor or tensor.device.type != "cpu" or not _MAPS.exists():
        return
    begin = tensor.data_ptr()
    if not _is_in_a_file(begin):
        return
    size = mmap.PAGESIZE
    # pages at its ends hold other tensors too
    first, last = -(-begin // size) * size, (begin + tensor.nbytes) // size * size
    if first < last:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _is_in_a_file(address: int) -> bool:
    for line in _MAPS.read_text().splitlines():
        fields = line.split(maxsplit=5)
        begin, end = (int(number, 16) for number in fields[0].split("-"))
        if begin <= address < end:
            return fields[4] != "0"  # the number of the file
    return False
