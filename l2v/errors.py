"""The one exception a user is meant to read."""


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


def first_line(error: BaseException) -> str:
    """An error's message in one line; its type where it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class Stopped(Exception):
    """A signal ended the work after everything was saved.

    Attributes:
        signal: its number; the exit code is 128 + signal.
    """

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal
