"""The one exception a user is meant to read."""

import contextlib
import signal
from collections.abc import Iterator


class L2VError(Exception):
    """A mistake that the user can mend, told in one line.

    The message says what was expected, what was found and which override or file mends it. Entry points print it
    without a traceback (unless ``debug=true``) and exit with code 1.

    Example:
        >>> from l2v import Encoder, L2VError
        >>> try:
        ...     Encoder.from_pretrained("model", pooling="median")
        ... except L2VError as error:
        ...     print(error)
        pooling must be one of mean, weighted_mean, last_token, bos, got 'median'
    """


class Diverged(L2VError):
    """A training's loss is no number any more: its settings were accepted, and steps were trained with them."""


def first_line(error: BaseException) -> str:
    """An error's message in one line; its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short, of a GPU or of the machine: no fault of the model or of what was asked for.

    torch has a type for its own allocator's complaint alone; those of CUDA's libraries are told by their text.
    """
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(part in text for part in _SHORT_OF_MEMORY)
    )


_SHORT_OF_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory")


@contextlib.contextmanager
def panics_told() -> Iterator[None]:
    """Tell in one line what the tokenizers' library gives up on: a pattern that backtracks without end.

    What it raises is no ``Exception``.

    Raises:
        L2VError: it gave up.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise L2VError(f"the tokenizer cannot read a text: tokenizer.json is broken ({first_line(error)})") from None


class Stopped(Exception):
    """A signal ended the work after everything was saved.

    Attributes:
        signal: its number; the exit code is 128 + signal.
    """

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


class Terminated(SystemExit):
    """SIGTERM in the middle of something, as KeyboardInterrupt is Ctrl-C: what is unfinished is cleaned up."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)
