"""Other libraries, kept silent for a while."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

from l2v.process import level_of


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own progress bars and reports: the entry points have theirs.

    Nor those of DeepSpeed, which transformers imports to save a model wherever it is installed.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as of_transformers

    bars, bars_of_hub = of_transformers.is_progress_bar_enabled(), not are_progress_bars_disabled()
    # huggingface_hub reports every retry
    with level_of("transformers"), level_of("huggingface_hub"), warnings.catch_warnings():
        # it has a new name in newer versions, and works in all that l2v supports
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated.*")
        of_transformers.disable_progress_bar()  # of the hub too
        deepspeed = logging.getLogger("DeepSpeed")
        deepspeed.addFilter(_is_error)  # its level is set when it is imported
        try:
            yield
        finally:
            deepspeed.removeFilter(_is_error)
            if bars:
                of_transformers.enable_progress_bar()
            if bars_of_hub:
                enable_progress_bars()
            elif bars:
                disable_progress_bars()


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
