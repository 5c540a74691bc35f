"""How the C library keeps freed memory."""

import ctypes
import functools
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


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
