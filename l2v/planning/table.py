"""A plan as a table on the terminal."""

from rich.console import Console
from rich.table import Table

from l2v.planning.ledger import KINDS
from l2v.planning.plan import Plan
from l2v.planning.room import GIB
from l2v.planning.setup import Setup

_MEANINGS = {
    "weights": "of the model, or the share of them that stays",
    "gradients": "of what is trained",
    "optimizer": "AdamW's moments, and what its step computes with",
    "activations": "kept for the backward pass, and what is being computed",
    "scores": "of hidden tokens, or of queries and documents",
    "gathers": "weights and gradients that are whole for a moment",
}


def print_plan(setup: Setup, plan: Plan) -> None:
    """Print what a plan found."""
    needs, room = plan.needs, plan.room
    what = "LoRA" if setup.adapter is not None else "all weights"
    made = Table(
        "memory of a device",
        title=f"{setup.model.source}: stage={setup.stage.name}, {what}, {setup.sharing}, {setup.processes} device(s)",
        title_justify="left",
    )
    made.add_column("GiB", justify="right")
    made.add_column("")
    for kind in KINDS:
        made.add_row(kind, _gib(needs.memory[kind]), f"[dim]{_MEANINGS[kind]}")
    made.add_section()
    made.add_row("while training", _gib(needs.training), "[dim]all of them at the moment when most is alive")
    made.add_row("while loading", _gib(needs.loading), "[dim]before the first step")
    made.add_row("[bold]peak", f"[bold]{plan.peak_gib:,.2f}", f"[dim]with what is kept free, of {room.memory_gib:.1f}")
    made.add_section()
    made.add_row("host, a machine", _gib(plan.host), f"[dim]{setup.devices} process(es), while they load")
    made.add_row("disk, checkpoints", _gib(plan.checkpoints), "[dim]last and best: what is trained, and its moments")
    made.add_row("disk, encoder", _gib(plan.encoder), "[dim]merged weights")
    Console().print(made)
    for line in _lines(setup, plan):
        Console().print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(setup: Setup, plan: Plan) -> list[str]:
    needs, room = plan.needs, plan.room
    sizes = f"{needs.parameters / 1e9:.3g}B parameters, {needs.trained / 1e6:,.1f}M trained"
    lines = [f"{sizes}; {needs.tokens:,} tokens and {needs.flops / 1e12:,.0f} TFLOP a device in an optimizer step"]
    if plan.steps_per_hour is not None:
        lines.append(
            f"{plan.steps_per_hour:,.0f} steps an hour at {room.utilisation:.0%} of {room.tflops:g} TFLOP/s "
            "(utilisation=), which nobody has measured here"
        )
    if needs.sent:
        lines.append(f"{needs.sent / GIB:,.2f} GiB gathered or reduced by each device in a step")
    if plan.largest is not None:
        whole = ": the whole batch in one pass" if plan.largest.whole else ""
        lines.append(f"the most that fits: {plan.largest.overrides}{whole}")
    if setup.is_zero:
        lines.append("weights, gradients and optimizer by DeepSpeed's layout; the rest as the stage runs on shapes")
    return lines


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"
