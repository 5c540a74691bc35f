"""Other libraries, kept silent for a while."""

import contextlib
import warnings
from collections.abc import Iterator
from logging import ERROR, getLogger


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own progress bars and reports: the entry points have theirs."""
    from transformers.utils import logging

    getLogger("huggingface_hub").setLevel(ERROR)  # it reports every retry
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # it has a new name in newer versions, and works in all that l2v supports
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated.*")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
