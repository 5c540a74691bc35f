"""What l2v's programs set for their whole process; l2v as a library leaves a process as it is."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_REPORTING = ("bitsandbytes", "huggingface_hub", "mteb")
"""Loggers of other libraries that report what a user of the programs cannot mend: missing CPU kernels, retries."""

_is_set_up = False


def set_up_process(*, models: bool = True) -> None:
    """Print what l2v has to say, keep the reports of other libraries out of it, and make a CPU fast.

    Args:
        models: whether models run here; false spares a program without one the import of torch.
    """
    global _is_set_up
    from l2v.progress import print_lines

    print_lines()
    for name in _REPORTING:
        logging.getLogger(name).setLevel(logging.ERROR)
    if models:
        from l2v import kernels

        kernels.enable()
    _is_set_up = True


def find_home() -> str | None:
    """See that what is kept between programs has a place, also for a user without a home (``--user`` in a container).

    Returns:
        what to tell the user; None where there is a home.
    """
    try:
        home = Path.home()
    except RuntimeError:
        home = None
    if home is not None and any(os.access(folder, os.W_OK) for folder in (home, home / ".cache")):
        return None
    if home is not None and os.environ.get("L2V_CACHE"):
        return None
    folder = Path(tempfile.gettempdir()) / f"l2v-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700)
    if not folder.is_dir() or folder.stat().st_uid != os.getuid():  # somebody else's
        folder = Path(tempfile.mkdtemp(prefix="l2v-"))
    if home is None:
        os.environ["HOME"] = str(folder)  # of all libraries
    else:
        os.environ["L2V_CACHE"] = str(folder)
    why = "this user has no home folder" if home is None else f"the home folder {home} cannot be written to"
    return f"{why}, so what is kept goes to {folder}; set HOME, or L2V_CACHE and HF_HOME, to folders that stay"


def is_set_up() -> bool:
    """Whether this process is one of l2v's programs, and so are those that it starts."""
    return _is_set_up


@contextlib.contextmanager
def level_of(name: str, level: int = logging.ERROR) -> Iterator[None]:
    """Meanwhile another library's logger has this level."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
