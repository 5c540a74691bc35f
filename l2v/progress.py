"""Progress bars in one style, on Rich."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
console = Console(stderr=True)
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)
"""Title, bar, count, time spent, time left."""


def say(line: str, style: str | None = None) -> None:
    """Print a line to the terminal as it is: not wrapped, without markup."""
    console.print(line, style=style, soft_wrap=True, highlight=False, markup=False)


def track(items: Sequence[T] | Iterable[T], title: str, *, total: int | None = None, show: bool = True) -> Iterator[T]:
    """Iterate with a bar that shows count, time spent and time left; silent where ``show`` is false."""
    if not show:
        yield from items
        return
    with Progress(*COLUMNS, console=console, transient=True) as progress:
        yield from progress.track(items, total=len(items) if isinstance(items, Sequence) else total, description=title)
