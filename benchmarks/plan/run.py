"""What ``l2v plan`` predicts beside what real trainings of random models take on this CPU.

python benchmarks/plan/run.py                 every case, 20 minutes on 2 idle cores; results.json and results.md
python benchmarks/plan/run.py --cases 0 4     some of them; what the file holds of the others stays in it
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
from specification import Specification  # noqa: E402

from l2v.kernels.attention import register_attention  # noqa: E402
from l2v.planning.measure import measure  # noqa: E402
from l2v.progress import print_lines, say  # noqa: E402
from l2v.runs.files import read_json, write_json, write_text  # noqa: E402

SIZES: dict[str, dict[str, int]] = {
    "6M": {"hidden": 256, "layers": 4, "vocabulary": 8000, "rows": 16, "length": 128},
    "27M": {"hidden": 512, "layers": 6, "vocabulary": 8000, "rows": 8, "length": 128},
    "64M": {"hidden": 768, "layers": 8, "vocabulary": 8000, "rows": 8, "length": 128},
}
LARGEST = SIZES["64M"]
CASES = [
    *(
        Specification(**size, lora=lora, checkpointing=checkpointing)
        for size in SIZES.values()
        for lora in (True, False)
        for checkpointing in (False, True)
    ),
    *(Specification(**LARGEST, lora=lora, sharing=sharing) for sharing in ("ddp", "fsdp") for lora in (True, False)),
    *(Specification(**LARGEST, lora=lora, sharing="fsdp", checkpointing=True) for lora in (True, False)),
    Specification(**LARGEST, checkpointing="selective"),
    Specification(**LARGEST, stage="simcse"),
    Specification(**LARGEST | {"rows": 4}, stage="supervised"),
    Specification(**LARGEST, stage="supervised", pass_tokens=512),
    Specification(**LARGEST, lora=False, pass_tokens=256),
    Specification(**LARGEST | {"rows": 4}, stage="supervised", sharing="ddp"),
]


def real_peak(specification: Specification) -> int:
    """Bytes of the process that takes most, of a real training.

    Raises:
        RuntimeError: it failed.
    """
    memory = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "0"}
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **memory, "PYTHONPATH": os.pathsep.join(sys.path)}
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with tempfile.TemporaryDirectory() as folder:
        file, result = Path(folder) / "specification.json", Path(folder) / "result.json"
        file.write_text(json.dumps(asdict(specification)))
        command = [*(start if specification.sharing != "one" else []), str(HERE / "real.py"), str(file), str(result)]
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return max(json.loads(one.read_text())["peak"] for one in Path(folder).glob("result.*.json"))


def row(specification: Specification) -> dict[str, Any]:
    """Both peaks in MiB."""
    planned, real = measure(specification.setup()), real_peak(specification)
    return {
        **asdict(specification),
        "parameters": planned.parameters,
        "planned_mib": round(planned.training / 2**20, 1),
        "real_mib": round(real / 2**20, 1),
        "ratio": round(planned.training / real, 3),
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| parameters | stage | trained | checkpointing | processes | passes | planned MiB | real MiB | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        processes = "1" if one["sharing"] == "one" else f"2, {one['sharing']}"
        checkpointing = {True: "true", False: "", "selective": "selective"}[one["checkpointing"]]
        trained = "LoRA" if one["lora"] else "all"
        lines.append(
            f"| {one['parameters'] / 1e6:.0f}M | {one['stage']} | {trained} | {checkpointing} | "
            f"{processes} | {one['pass_tokens'] or ''} | {one['planned_mib']:,.0f} | {one['real_mib']:,.0f} | "
            f"{one['ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    print_lines()
    register_attention()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", type=int, default=range(len(CASES)), help="numbers, from 0")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    before = read_json(arguments.output) if arguments.output.exists() else []
    found = {json.dumps({k: one[k] for k in asdict(CASES[0])}): one for one in before}
    for number in arguments.cases:
        made = row(CASES[number])
        say(f"{number}: planned {made['planned_mib']:,.0f}, real {made['real_mib']:,.0f} MiB ({made['ratio']:.2f})")
        found[json.dumps(asdict(CASES[number]))] = made
        rows = [found[key] for key in (json.dumps(asdict(case)) for case in CASES) if key in found]
        write_json(arguments.output, rows)
        write_text(arguments.output.with_suffix(".md"), markdown(rows))


if __name__ == "__main__":
    main()
