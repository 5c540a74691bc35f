"""What l2v says, and how far its work is: bars on a terminal, a line now and then in a file or a pipe."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

T = TypeVar("T")
console = Console(stderr=True)
_logger = logging.getLogger("l2v")
_LEVELS = {None: logging.INFO, "yellow": logging.WARNING, "red": logging.ERROR}
_STYLES = {level: style for style, level in _LEVELS.items()}


def say(line: str, style: str | None = None) -> None:
    """Log a line, by the logger ``l2v``: yellow ones are warnings, red ones errors. The programs print it."""
    _logger.log(_LEVELS[style], "%s", line)


def print_lines() -> None:
    """Have what l2v logs printed to the terminal, as the programs do; of the whole process."""
    _logger.setLevel(logging.INFO)
    _logger.propagate = False
    _logger.handlers = [_Printer()]


class _Printer(logging.Handler):
    """A line as it is: not wrapped, without markup."""

    def emit(self, record: logging.LogRecord) -> None:
        style = _STYLES.get(record.levelno)
        console.print(record.getMessage(), style=style, soft_wrap=True, highlight=False, markup=False)


def track(items: Sequence[T] | Iterable[T], title: str, *, total: int | None = None, show: bool = True) -> Iterator[T]:
    """Iterate and show how far that is, see :func:`display`; silent where ``show`` is false."""
    if not show:
        yield from items
        return
    shown = display(transient=True)
    work = shown.add(title, len(items) if isinstance(items, Sequence) else total)
    done, due = 0, 0.0
    try:
        for done, item in enumerate(items, 1):
            yield item
            if (now := time.monotonic()) >= due:  # an update takes longer than some items do
                shown.update(work, done)
                due = now + _UPDATES
        shown.update(work, done)
        shown.finish(work)
    finally:
        shown.stop()


_UPDATES = 0.1
"""Seconds between them."""


class Display(Protocol):
    """Shows how far pieces of work are."""

    def add(self, title: str, total: int | None, done: int = 0, *, announce: bool = False) -> TaskID:
        """Begin a piece of work.

        Args:
            title: of it.
            total: steps; None where it is not known.
            done: steps done before, in another process.
            announce: tell at once that it begins, also in a file or a pipe.
        """

    def update(self, work: TaskID, done: int, notes: Sequence[str] = ()) -> None:
        """So many steps are done; the notes ("loss 2.310") stand beside them, those that matter most first."""

    def finish(self, work: TaskID, *, keep: bool = True) -> None:
        """A piece of work is at its end; its bar may stay."""

    def stop(self) -> None:
        """All work is at its end."""


def display(*, transient: bool = False) -> Display:
    """Bars on a terminal, with the columns that its width has room for; elsewhere a line now and then.

    Args:
        transient: bars leave nothing behind.
    """
    bars = (console.is_terminal and not console.is_dumb_terminal) or console.is_jupyter
    return Bars(console, transient=transient) if bars else Lines(console)


# bars


@dataclass(frozen=True)
class _Layout:
    elapsed: bool = True
    bar: int = 40
    """Characters; 0: none."""
    notes: int = 99
    """The most of them."""


_LAYOUTS = (
    _Layout(),
    _Layout(elapsed=False),
    _Layout(elapsed=False, bar=20),
    _Layout(elapsed=False, bar=20, notes=3),
    _Layout(elapsed=False, bar=10, notes=3),
    _Layout(elapsed=False, bar=10, notes=2),
    _Layout(elapsed=False, bar=10, notes=1),
    _Layout(elapsed=False, bar=0, notes=1),
    _Layout(elapsed=False, bar=0, notes=0),
)
"""From wide to narrow."""
_SHORT_TITLE = 24
"""Characters of a title that are kept as long as there is something else to leave out."""


class Bars:
    """A line for each piece of work: title, bar, count, time spent, time left, notes."""

    def __init__(self, console: Console, *, transient: bool = False) -> None:
        self._table = _Table(console=console, transient=transient)

    def add(self, title: str, total: int | None, done: int = 0, *, announce: bool = False) -> TaskID:
        self._table.start()
        return self._table.add_task(title, total=total, completed=done, notes=())

    def update(self, work: TaskID, done: int, notes: Sequence[str] = ()) -> None:
        self._table.update(work, completed=done, notes=notes)

    def finish(self, work: TaskID, *, keep: bool = True) -> None:
        if not keep:
            self._table.remove_task(work)

    def stop(self) -> None:
        self._table.stop()


class _Table(Progress):
    """The columns that the terminal has room for. Numbers are never cut: first some columns go, then a title's end."""

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        tasks = list(tasks)
        if not tasks:
            return Table.grid()
        titles = [Text(task.description) for task in tasks]
        longest = max(title.cell_len for title in titles)
        for layout in _LAYOUTS:
            cells = [_cells(task, layout) for task in tasks]
            columns = list(zip(*cells, strict=True))
            taken = sum(1 + max(_width(cell) for cell in column) for column in columns)
            room = self.console.width - taken
            if room >= min(longest, _SHORT_TITLE):
                break
        table = Table.grid(*(Column(no_wrap=True) for _ in range(1 + len(columns))), padding=(0, 1))
        for title, row in zip(titles, cells, strict=True):
            title.truncate(max(1, room), overflow="ellipsis")
            table.add_row(title, *row)
        return table


_COUNT, _ELAPSED, _LEFT = MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()


def _cells(task: Task, layout: _Layout) -> list[Text | ProgressBar]:
    """What stands after a task's title."""
    bar = [BarColumn(layout.bar).render(task)] if layout.bar else []
    times = [_ELAPSED.render(task)] if layout.elapsed else []
    notes = "  ".join(task.fields["notes"][: layout.notes])
    return [*bar, _COUNT.render(task), *times, _LEFT.render(task), Text(notes)]


def _width(cell: Text | ProgressBar) -> int:
    return cell.cell_len if isinstance(cell, Text) else cast(int, cell.width)


# lines

_FIRST_LINE, _EVERY = 2.0, 30.0
"""Seconds until a piece of work is worth a line, and between two lines of it."""


@dataclass
class _Work:
    title: str
    total: int | None
    before: int
    """Steps of another process."""
    begin: float
    done: int
    notes: Sequence[str] = ()
    due: float = 0.0
    told: bool = False


class Lines:
    """``mntp 40/100, loss 2.310, tokens/s 480, 2:10 left``: after two seconds, then every 30, and at the end.

    Args:
        console: where they are printed.
        clock: seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._works: dict[TaskID, _Work] = {}

    def add(self, title: str, total: int | None, done: int = 0, *, announce: bool = False) -> TaskID:
        name, now = TaskID(len(self._works)), self._clock()
        self._works[name] = work = _Work(title, total, done, now, done, due=now + _FIRST_LINE)
        if announce:
            self._tell(work)
        return name

    def update(self, work: TaskID, done: int, notes: Sequence[str] = ()) -> None:
        one = self._works[work]
        one.done, one.notes = done, notes
        if self._clock() >= one.due:
            self._tell(one, self._left(one))

    def finish(self, work: TaskID, *, keep: bool = True) -> None:
        one = self._works[work]
        now = self._clock()
        if one.told or now - one.begin >= _FIRST_LINE:
            self._tell(one, f"{_duration(now - one.begin)} in all")

    def stop(self) -> None:
        pass

    def _left(self, work: _Work) -> str | None:
        new = work.done - work.before
        if work.total is None or not new:
            return None
        return f"{_duration((self._clock() - work.begin) / new * (work.total - work.done))} left"

    def _tell(self, work: _Work, time: str | None = None) -> None:
        count = str(work.done) if work.total is None else f"{work.done}/{work.total}"
        line = ", ".join([f"{work.title} {count}", *work.notes, *([time] if time else [])])
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)
        work.told, work.due = True, self._clock() + _EVERY


def _duration(seconds: float) -> str:
    """h:mm:ss, without hours where there are none."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
