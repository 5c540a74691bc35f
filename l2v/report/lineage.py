"""The graph of what the runs' weights are made of, as one drawing: base, merged adapters, run."""

import html
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from l2v.report.markup import Html, el, join
from l2v.report.runs import Record, weights_of
from l2v.runs.lineage import AdapterRecord, Lineage

_WIDTH, _GAP_ACROSS, _GAP_DOWN = 232, 46, 16
_PADDING, _LINE = 12, 20
_LETTERS = 22
"""Letters of a node's name that fit into its width."""


@dataclass
class _Node:
    """Weights: a base, or what an adapter or a full fine-tuning makes of those before."""

    kind: str
    name: str
    hash: str
    parent: "_Node | None" = None
    goes_on: bool = False
    """Training went on with the adapter of the parent, where others merge it first."""
    runs: list[str] = field(default_factory=list)
    """Labels of the runs that have these weights."""
    children: list["_Node"] = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0

    @property
    def height(self) -> float:
        return 2 * _PADDING + _LINE * (3 + len(self.runs) if self.runs else 3)


def lineage_section(runs: list[Record]) -> Html | None:
    """The graph and its note; None where no run says what it is made of."""
    roots = _forest(runs)
    if not roots:
        return None
    note = (
        "Each box is a set of weights, with the runs that have them (●). An arrow is what was trained on what: the "
        "adapters before it merged, or (dashed) the last of them trained further."
    )
    return join([_drawing(roots), el("p", note, class_="note")])


def short(full_hash: str) -> str:
    """The first ten digits of a hash, after its scheme where it has one."""
    scheme, colon, digest = full_hash.rpartition(":")
    return scheme + colon + digest[:10]


def _forest(runs: list[Record]) -> list[_Node]:
    """The bases, each with what was made of it; weights with the same ancestors and hash are one node."""
    known: dict[tuple[str, ...], _Node] = {}
    roots: list[_Node] = []
    lineages = [(run, lineage) for run in runs for lineage in _lineages(run)]
    lineages.sort(key=lambda pair: not pair[1].base_hash)  # a base without a hash joins the one of its name
    hashes: dict[str, str] = {}
    for run, lineage in lineages:
        path: tuple[str, ...] = ()
        node: _Node | None = None
        for step in _steps(lineage):
            if node is None:
                step.hash = step.hash or hashes.get(step.name, "")
                hashes.setdefault(step.name, step.hash)
            path = (*path, step.hash or f"{step.kind} {step.name}", "+" if step.goes_on else "")
            if path not in known:
                step.parent = node
                (node.children if node else roots).append(step)
                known[path] = step
            node = known[path]
        if node is not None and run.label not in node.runs:
            node.runs.append(run.label)
    return roots


def _lineages(run: Record) -> list[Lineage]:
    """The run's own, or those of the encoders that it evaluates."""
    if run.lineage is not None:
        return [run.lineage]
    return [lineage for suite in run.suites.values() if (lineage := weights_of(run, suite)) is not None]


def _steps(lineage: Lineage) -> list[_Node]:
    """From the original decoder to the weights that the lineage ends with."""
    steps: list[_Node] = []
    merged: list[_Node] = []
    trained = [record for record in lineage.history if "base_hash" in record]
    for record in lineage.history:
        if "base_hash" not in record:
            merged.append(_Node("adapter", record.get("stage", "?"), record.get("hash", "")))
            continue
        steps += [_Node("base", record.get("base", "?"), record["base_hash"])] if not steps else []
        steps += _cut(record.get("layers"))
        after = trained[trained.index(record) + 1 :]
        product = after[0]["base_hash"] if after else lineage.base_hash
        steps += [*merged, _Node("all weights", record.get("stage", "?"), product)]
        merged = []
    if not steps:
        note = f" at {lineage.revision[:10]}" if lineage.revision else ""
        steps.append(_Node("base", lineage.base + note, lineage.base_hash))
    steps += _cut(lineage.layers)
    steps += merged + [_adapter(record) for record in lineage.merged]
    steps += [_adapter(lineage.initial)] if lineage.initial else []
    if lineage.adapter:
        steps.append(_adapter(lineage.adapter, goes_on=lineage.initial is not None))
    if lineage.others:
        named = ", ".join(str(one.get("run")) for one in lineage.others)
        steps.append(_Node("merged", named, f"others:{'+'.join(str(one.get('hash')) for one in lineage.others)}"))
    if lineage.base_ratio:
        steps.append(_Node("mixed", f"{lineage.base_ratio:.0%} of the base", f"ratio:{lineage.base_ratio}"))
    return steps


def _cut(layers: int | str | None) -> list[_Node]:
    return [_Node("cut", f"its first {layers} layers", f"layers:{layers}")] if layers else []


def _adapter(record: AdapterRecord, *, goes_on: bool = False) -> _Node:
    return _Node("adapter", record.stage, record.hash, goes_on=goes_on)


def _drawing(roots: list[_Node]) -> Html:
    top = 1.0
    for root in roots:
        top = _place(root, 1.0, top) + 2 * _GAP_DOWN
    nodes = list(_all(roots))
    width, height = max(node.x for node in nodes) + _WIDTH + 1, top - 2 * _GAP_DOWN + 1
    arrow = (
        '<defs><marker id="lineage-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>'
    )
    told = "; ".join(_told(node) for node in nodes)
    opening = (
        f'<svg class="lineage" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{html.escape(told)}">'
    )
    body = join([*(_edge(node) for node in nodes if node.parent), *(_box(node) for node in nodes)])
    drawing = Html(f"{opening}{arrow}{body}</svg>")
    return el("div", drawing, class_="scroll", tabindex="0")


def _all(nodes: Iterable[_Node]) -> Iterable[_Node]:
    for node in nodes:
        yield node
        yield from _all(node.children)


def _place(node: _Node, x: float, top: float) -> float:
    """Put a node beside the middle of its children, which are below one another; returns where it all ends."""
    below = top
    for child in node.children:
        below = _place(child, x + _WIDTH + _GAP_ACROSS, below) + _GAP_DOWN
    bottom = max(below - _GAP_DOWN, top + node.height) if node.children else top + node.height
    node.x, node.y = x, top + (bottom - top - node.height) / 2
    if node.children:
        first, last = node.children[0], node.children[-1]
        middle = (first.y + first.height / 2 + last.y + last.height / 2) / 2
        node.y = min(max(middle - node.height / 2, top), bottom - node.height)
    return bottom


def _edge(node: _Node) -> Html:
    parent = node.parent
    assert parent is not None
    x0, y0 = parent.x + _WIDTH, parent.y + parent.height / 2
    x1, y1 = node.x - 1, node.y + node.height / 2
    middle = (x0 + x1) / 2
    return el(
        "path",
        class_="edge goes-on" if node.goes_on else "edge",
        d=f"M{x0:g} {y0:g}C{middle:g} {y0:g} {middle:g} {y1:g} {x1:g} {y1:g}",
        marker_end="url(#lineage-arrow)",
    )


def _box(node: _Node) -> Html:
    lines: list[tuple[str, str, str]] = [
        (node.kind, "kind", node.kind),
        (_clipped(Path(node.name).name if node.kind == "base" else node.name), "name", node.name),
        (short(node.hash) or "hash not known", "hash", node.hash),
        *((f"● {_clipped(label, _LETTERS - 2)}", "run", label) for label in node.runs),
    ]
    x, y = node.x + _PADDING, node.y + _PADDING - 5
    texts = [
        el("text", text, el("title", whole), class_=name, x=f"{x:g}", y=f"{y + _LINE * place:g}")
        for place, (text, name, whole) in enumerate(lines, start=1)
    ]
    box = el("rect", x=f"{node.x:g}", y=f"{node.y:g}", width=_WIDTH, height=f"{node.height:g}", rx=7)
    kind = f"node {node.kind.split()[0]}{' made' if node.runs else ''}"
    return el("g", el("title", _told(node)), box, join(texts), class_=kind)


def _told(node: _Node) -> str:
    runs = f", runs {', '.join(node.runs)}" if node.runs else ""
    on = f", trained on {node.parent.name}" if node.parent else ""
    return f"{node.kind} {node.name} ({node.hash or 'hash not known'}){on}{runs}"


def _clipped(text: str, length: int = _LETTERS) -> str:
    """A text that fits: the middle of a long one is left out."""
    return text if len(text) <= length else f"{text[: length // 2 - 1]}…{text[len(text) - length // 2 :]}"
