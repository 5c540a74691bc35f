"""How the C library keeps freed memory, and how the system keeps files that are mapped."""

import ctypes
import functools
import mmap
import platform
from pathlib import Path

from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MAPS = Path("/proc/self/maps")


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep what tensors free for the next ones; of the whole process.

    It gives large blocks back to the system at once, which has to clear them, page by page, when the next tensor takes
    them: a tenth of the time of a training step. Elsewhere than with glibc this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        glibc = ctypes.CDLL(None)
        glibc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most that it takes
        glibc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


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
