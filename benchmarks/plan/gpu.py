"""What ``l2v plan`` predicts beside the peaks that benchmarks/gpu/run.py measured on a GPU, of the same batches.

python benchmarks/plan/gpu.py                 two minutes; gpu.json and gpu.md
"""

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent / "gpu"), str(ROOT), *(str(HERE.parent / name) for name in ("speed", "gpu"))]
import run as gpu_benchmark  # noqa: E402
from l2v_tasks import stage_and_batch  # noqa: E402
from transformers import AutoConfig  # noqa: E402

from l2v.models.adapters import Lora  # noqa: E402
from l2v.planning.backbone import new_backbone  # noqa: E402
from l2v.planning.layers import quick_needs  # noqa: E402
from l2v.planning.room import GIB  # noqa: E402
from l2v.planning.setup import Setup  # noqa: E402
from l2v.process import set_up_process  # noqa: E402
from l2v.runs.files import cache_folder, read_json, write_json, write_text  # noqa: E402
from l2v.stages.mntp import MNTP  # noqa: E402
from l2v.training.settings import Model  # noqa: E402


def setup_of(row: dict[str, Any], inputs: dict[str, Any], folder: Path) -> Setup:
    """A measurement of l2v as a setup to plan, with its batch."""
    options, config = row["options"], AutoConfig.from_pretrained(folder)
    any_stage = MNTP(name="mntp", batch_size=1, max_steps=1, learning_rate=1e-4)
    model = Model("random", dtype="bfloat16", gradient_checkpointing=options.get("checkpointing", False))
    plain = Setup(any_stage, model, Lora(), config, trainer={"precision": "bf16-mixed", "gradient_clip_val": 1.0})
    tokenizer_of: Any = new_backbone(plain)
    tokenizer_of.tokenizer = gpu_benchmark.AutoTokenizer.from_pretrained(folder)
    stage: Any
    stage, batch = stage_and_batch(row["task"], inputs, tokenizer_of, 2)
    if row["task"] == "mntp":
        stage.micro_batch_tokens = options["rows"] * batch["input_ids"].shape[1]
    else:
        stage.micro_batch_tokens, stage.grad_cache = options["pass_tokens"], options["grad_cache"]
    stage.attention_dropout = 0.3 if row["task"] == "simcse" else 0.0
    return Setup(stage, model, Lora(), config, trainer=plain.trainer, batch=batch)


def main() -> None:
    set_up_process()
    work = cache_folder("gpu") / "full"
    work.mkdir(parents=True, exist_ok=True)
    inputs = gpu_benchmark.prepare(work, small=False)
    results = read_json(HERE.parent / "gpu" / "results.json")
    lines = [
        f"{results['machine']['device']}, torch {results['machine']['torch']}, Llama 3 8B, LoRA, one GPU:",
        "",
        "| stage | variant | planned GiB | measured GiB | planned / measured |",
        "|---|---|---|---|---|",
    ]
    found = []
    for row in results["measurements"]:
        if row["side"] != gpu_benchmark.OURS or "error" in row or row["task"] == "encode_mixed":
            continue
        needs = quick_needs(setup_of(row, inputs, work / "model"))
        planned, measured = needs.training / GIB, row["peak_gib"]
        name = f"{row['task'].partition('_')[0]} | {row['variant']}"
        lines.append(f"| {name} | {planned:.1f} | {measured:.1f} | {planned / measured:.2f} |")
        kinds = {kind: round(size / GIB, 2) for kind, size in needs.memory.items()}
        found.append(
            {"task": row["task"], "variant": row["variant"], "planned_gib": kinds, "measured_gib": round(measured, 2)}
        )
        print(lines[-1], kinds, flush=True)
    write_json(HERE / "gpu.json", found)
    write_text(HERE / "gpu.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
