"""Plans of Llama 3 8B and 70B for docs/scale.md: every stage on 1, 8, 16 and 64 H100 GPUs.

python benchmarks/plan/scale.py               every row, 10 minutes on 2 idle cores; scale.json and scale.md
python benchmarks/plan/scale.py --rows 0 4    some of them; what the file holds of the others stays in it
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))
from hydra import compose, initialize_config_dir  # noqa: E402

from l2v import config as configs  # noqa: E402
from l2v.planning.plan import first_change, plan  # noqa: E402
from l2v.planning.room import GIB  # noqa: E402
from l2v.process import set_up_process  # noqa: E402
from l2v.runs.files import read_json, write_json, write_text  # noqa: E402

STAGES = ("mntp", "simcse", "supervised")
FSDP = {8: (8, 1), 16: (8, 2), 64: (8, 8)}
ROWS = [
    *(("llama3-8b", stage, "lora", "gpu", 1) for stage in STAGES),
    *(("llama3-8b", stage, "lora", "ddp", 8) for stage in STAGES),
    *(("llama3-8b", stage, "lora", "fsdp", gpus) for stage in STAGES for gpus in FSDP),
    *(("llama3-8b", stage, "none", "fsdp", gpus) for stage in STAGES for gpus in FSDP),
    *(("llama3-70b", stage, "lora", "gpu", 1) for stage in STAGES),
    *(("llama3-70b", stage, "lora", "fsdp", gpus) for stage in STAGES for gpus in FSDP),
    *(("llama3-70b", stage, "none", "fsdp", 64) for stage in STAGES),
]


def row(model: str, stage: str, adapter: str, trainer: str, gpus: int) -> dict[str, Any]:
    """A plan of the stage's own batch (MNTP on 64 GPUs: 64 rows), and the first change that makes it fit."""
    devices, nodes = FSDP.get(gpus, (gpus, 1))
    given = [f"model={model}", f"stage={stage}", f"adapter={adapter}", f"trainer={trainer}"]
    sizes = [f"trainer.devices={devices}", f"trainer.num_nodes={nodes}"]
    if stage == "mntp" and gpus > 32:  # rows a step, of which each process has one at least
        sizes.append(f"stage.global_batch_size={gpus}")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("plan", [*given, *sizes])
    setup, room = configs.build_plan(configs.plain(composed, without=("data", "logger")))
    made = plan(setup, room, search=False)
    change = None if made.fits else first_change(setup, made)
    return {
        **dict(
            zip(("model", "stage", "adapter", "trainer", "gpus"), (model, stage, adapter, trainer, gpus), strict=True)
        ),
        "gib": {kind: round(size / GIB, 2) for kind, size in made.needs.memory.items()},
        "training_gib": round(made.needs.training / GIB, 1),
        "loading_gib": round(made.needs.loading / GIB, 1),
        "peak_gib": round(made.peak_gib, 1),
        "fits": made.fits,
        "change": change,
        "steps_per_hour": round(made.steps_per_hour or 0),
        "sent_gib": round(made.needs.sent / GIB, 2),
        "tokens": made.needs.tokens,
        "host_gib": round(made.host / GIB, 1),
        "disk_gib": round((made.checkpoints + made.encoder) / GIB, 1),
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| model | stage | trained | trainer | GPUs | weights | gradients, optimizer | activations, scores | gathers | "
        "loading | peak | fits 80 GB | steps/h | sent a step |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        gib = one["gib"]
        fits = "yes" if one["fits"] else f"no; `{one['change']}`" if one["change"] else "no"
        lines.append(
            f"| {one['model']} | {one['stage']} | {'LoRA' if one['adapter'] == 'lora' else 'all'} | {one['trainer']} | "
            f"{one['gpus']} | {gib['weights']:.1f} | {gib['gradients'] + gib['optimizer']:.1f} | "
            f"{gib['activations'] + gib['scores']:.1f} | {gib['gathers']:.1f} | {one['loading_gib']:.1f} | "
            f"{one['peak_gib']:.1f} | {fits} | {one['steps_per_hour']:,} | {one['sent_gib']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    set_up_process()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=range(len(ROWS)), help="numbers, from 0")
    parser.add_argument("--output", type=Path, default=HERE / "scale.json")
    arguments = parser.parse_args()
    found = {_key(one): one for one in (read_json(arguments.output) if arguments.output.exists() else [])}
    for number in arguments.rows:
        made = row(*ROWS[number])
        found[_key(made)] = made
        rows = [found[key] for key in ROWS if key in found]
        write_json(arguments.output, rows)
        write_text(arguments.output.with_suffix(".md"), markdown(rows))
        print(markdown([made]).splitlines()[-1], flush=True)


def _key(one: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(one[name] for name in ("model", "stage", "adapter", "trainer", "gpus"))


if __name__ == "__main__":
    main()
