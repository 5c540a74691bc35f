"""What l2v's programs set for their whole process; l2v as a library leaves a process as it is."""

import contextlib
import logging
from collections.abc import Iterator

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
