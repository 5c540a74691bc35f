"""HTML elements and table cells, and how numbers and times are written on the page."""

import html
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from l2v.report.tables import shown

NONE = "–"


class Html(str):
    """Text that is markup already; any other string is escaped where it enters the page."""


def el(name: str, *children: object, **attributes: object) -> Html:
    """An element. Children and attributes are escaped unless they are :class:`Html`; None leaves one out.

    ``class_`` is the attribute ``class``, and ``_`` in other names stands for ``-``.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[object], between: Html | None = None) -> Html:
    parts = [child if isinstance(child, Html) else html.escape(str(child)) for child in children if child is not None]
    return Html((between or "").join(parts))


def table(head: Sequence[Html], rows: Sequence[Sequence[Html]], *, sortable: bool = True) -> Html:
    """A table that scrolls in its own box; a click on a header of a ``sortable`` one sorts it where scripts run."""
    body = [el("tr", join(row)) for row in rows]
    name = "sortable" if sortable else None
    content = el("table", el("thead", el("tr", join(head))), el("tbody", join(body)), class_=name)
    return el("div", content, class_="scroll", tabindex="0")


def column_head(text: str, note: str = "", *, number: bool = False) -> Html:
    small = el("small", note) if note else None
    return el("th", breakable(text), small, scope="col", class_="number" if number else None)


def score_head(score: dict[str, Any]) -> Html:
    """The head of a task's column: its name, metric and direction."""
    direction = "" if score["higher_is_better"] else ", lower is better"
    return column_head(score["label"], score["metric"] + direction, number=True)


def row_head(label: str, note: str = "", badge: str | None = None) -> Html:
    mark = el("span", badge, class_="badge") if badge else None
    return el(
        "th",
        el("span", breakable(label), class_="label"),
        mark,
        el("small", note) if note else None,
        scope="row",
        data_value=label,
    )


def breakable(text: str) -> Html:
    """Names and paths, which are long, with places to break them; no place before less than three letters."""
    return join(re.split(r"(?<=[./_])(?=\w{3})|(?<=[a-z])(?=[A-Z][a-z]{2})", text), Html("<wbr>"))


def cell(text: object, value: float | None = None) -> Html:
    return el("td", text, class_="number", data_value="" if value is None else repr(value))


def text_cell(value: Any) -> Html:
    return el("td", shown(value)) if value is not None else el("td", NONE, class_="none", data_value="")


def difference(value: float | None, decimals: int, higher_is_better: bool = True) -> Html:
    """A difference's mark and signed number; empty, but as wide, without one."""
    if value is None:
        return el("small", class_="difference")
    if round(value, decimals) == 0:
        return el("small", "= ", number_text(0.0, decimals), class_="difference")
    better = (value > 0) == higher_is_better
    mark, name = ("▲", "better") if better else ("▼", "worse")
    return el("small", f"{mark} {number_text(value, decimals, '+')}", class_=f"difference {name}", title=name)


def number_text(value: float | None, decimals: int, sign: str = "") -> str:
    """A number with a true minus sign."""
    return NONE if value is None else f"{value:{sign},.{decimals}f}".replace("-", "−")


def decimals_for(values: Iterable[float | None]) -> int:
    """Digits after the point for a column: 4 below 10, 2 below 1,000, else none."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return 4 if largest < 10 else 2 if largest < 1000 else 0


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def moment(value: Any) -> str:
    """An ISO time to the minute; anything else as it is."""
    try:
        return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M %Z").strip()
    except (TypeError, ValueError):
        return str(value)
