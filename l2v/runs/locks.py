"""Who works in a folder: one process at a time, whatever is killed, also where several machines share the files."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from l2v.errors import L2VError

_PATIENCE = 10.0
"""Seconds: loaders of a command that was killed end within that time."""
_PULSE = 15.0
"""Seconds between two signs of life."""
SILENCE = 120.0
"""Seconds without one after which a process of another machine is taken for gone."""


@contextlib.contextmanager
def alone(lock_file: Path, taken: str) -> Iterator[None]:
    """Meanwhile no other process has the same lock; it ends with the process.

    Args:
        lock_file: made where it is not there.
        taken: what to tell where another process has it.

    Raises:
        L2VError: one has it.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise L2VError(taken) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def pulse(file: Path) -> Iterator[None]:
    """Meanwhile a file is touched now and then: a sign of life where locks do not reach other machines."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_PULSE):
            with contextlib.suppress(OSError):
                os.utime(file)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def silence(file: Path, now: Path) -> float:
    """Seconds since a file was touched, by the clock of the file system, which has just written ``now``."""
    return now.stat().st_mtime - file.stat().st_mtime
