"""Other libraries, kept silent for a while."""

import contextlib
import warnings
from collections.abc import Iterator

from l2v.process import level_of


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own progress bars and reports: the entry points have theirs."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    bars, bars_of_hub = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    # huggingface_hub reports every retry
    with level_of("transformers"), level_of("huggingface_hub"), warnings.catch_warnings():
        # it has a new name in newer versions, and works in all that l2v supports
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated.*")
        logging.disable_progress_bar()  # of the hub too
        try:
            yield
        finally:
            if bars:
                logging.enable_progress_bar()
            if bars_of_hub:
                enable_progress_bars()
            elif bars:
                disable_progress_bars()
