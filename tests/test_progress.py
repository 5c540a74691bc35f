"""What l2v says and how far its work is: numbers that are whole at any width, and lines where there is no terminal."""

import io
import logging
import re

import pytest
from rich.console import Console

from l2v import progress
from l2v.progress import Bars, Lines, say, track

NOTES = ["loss 2.310", "tokens/s 12480", "validation loss 10.412", "accuracy 0.412"]


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def bars(width: int, title: str = "supervised") -> list[str]:
    """A stage at step 437 of 10,000 and its validation, as a terminal of this width shows them."""
    console = Console(file=io.StringIO(), width=width, height=24, force_terminal=True, color_system=None)
    shown = Bars(console)
    stage, validation = shown.add(title, 10_000, 400), shown.add("validation", 32)
    shown.update(stage, 437, NOTES)
    shown.update(validation, 12)
    shown._table.refresh()
    shown.stop()
    text = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", console.file.getvalue())  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()][-2:]


@pytest.mark.parametrize(
    "width, notes, elapsed", [(40, 0, False), (60, 1, False), (80, 2, False), (100, 3, False), (160, 4, True)]
)
def test_a_narrow_terminal_leaves_out_columns_and_cuts_no_number(width: int, notes: int, elapsed: bool) -> None:
    stage, validation = bars(width)
    assert len(stage) <= width and stage.startswith("supervised") and "437/10000" in stage
    assert [note in stage for note in NOTES] == [number < notes for number in range(4)]
    assert "12/32" in validation and "…" not in stage + validation
    assert len(re.findall(r"[\d-]+:[\d-]+:[\d-]+", stage)) == 1 + elapsed


def test_a_long_title_is_cut_where_nothing_else_can_be_left_out() -> None:
    for width in (30, 60, 80):
        stage, _ = bars(width, "reading a-file-with-a-name-of-more-than-sixty-characters-in-it.jsonl")
        assert len(stage) <= width and "…" in stage and "437/10000" in stage


@pytest.fixture
def pipe() -> Console:
    return Console(file=io.StringIO(), width=80)


def told(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_pipe_gets_a_line_at_the_start_every_30_seconds_and_at_the_end(pipe: Console) -> None:
    clock = Clock()
    lines = Lines(pipe, clock)
    work = lines.add("mntp", 100, announce=True)
    for step in range(1, 101):
        clock.now += 1
        lines.update(work, step, [f"loss {5 - step / 50:.3f}", "tokens/s 480"])
    lines.finish(work)
    assert told(pipe) == [
        "mntp 0/100",
        "mntp 30/100, loss 4.400, tokens/s 480, 1:10 left",
        "mntp 60/100, loss 3.800, tokens/s 480, 0:40 left",
        "mntp 90/100, loss 3.200, tokens/s 480, 0:10 left",
        "mntp 100/100, loss 3.000, tokens/s 480, 1:40 in all",
    ]


def test_time_left_is_that_of_the_steps_of_this_process(pipe: Console) -> None:
    """Not of those before a resume."""
    clock = Clock()
    lines = Lines(pipe, clock)
    work = lines.add("mntp", 2000, 1000)
    clock.now += 100
    lines.update(work, 1010)
    assert told(pipe) == ["mntp 1010/2000, 2:45:00 left"]


def test_short_work_gets_no_line_in_a_pipe_and_work_of_unknown_length_its_count(pipe: Console) -> None:
    clock = Clock()
    lines = Lines(pipe, clock)
    short, long = lines.add("tokenizing", 5), lines.add("reading", None)
    clock.now += 1
    lines.update(short, 5)
    lines.finish(short)
    clock.now += 59
    lines.update(long, 123_456)
    lines.finish(long)
    assert told(pipe) == ["reading 123456", "reading 123456, 1:00 in all"]


def test_track_writes_lines_into_a_pipe_and_yields_what_it_got(monkeypatch: pytest.MonkeyPatch, pipe: Console) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "console", pipe)
    monkeypatch.setattr(progress.time, "monotonic", clock)
    monkeypatch.setattr(progress, "Lines", lambda console: Lines(console, clock))
    found = []
    for item in track("abcd", "encoding"):
        found.append(item)
        clock.now += 20
    assert found == list("abcd")
    assert told(pipe) == [
        "encoding 1/4, 1:00 left",
        "encoding 3/4, 0:20 left",
        "encoding 4/4, 1:20 in all",
    ]


def test_track_is_silent_where_it_is_told_to_be(monkeypatch: pytest.MonkeyPatch, pipe: Console) -> None:
    monkeypatch.setattr(progress, "console", pipe)
    assert list(track(range(3), "encoding", show=False)) == [0, 1, 2] and not told(pipe)


def test_a_terminal_gets_a_bar_that_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "console", terminal)
    for _ in track(range(3), "encoding"):
        assert isinstance(progress.display(), Bars)
    text = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "encoding" in text and text.rstrip().endswith("\x1b[2K")  # the line is cleared


@pytest.mark.parametrize("style, level", [(None, logging.INFO), ("yellow", logging.WARNING), ("red", logging.ERROR)])
def test_what_is_said_is_a_log_record(style: str | None, level: int) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("l2v").addHandler(handler)
    try:
        say("100 % of [them]", style)
    finally:
        logging.getLogger("l2v").removeHandler(handler)
    assert [(record.levelno, record.getMessage()) for record in records] == [(level, "100 % of [them]")]


def test_the_programs_print_a_line_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    line = "[bold]not markup[/bold] " + "word " * 60
    say(line)
    assert capsys.readouterr().err == line + "\n"
