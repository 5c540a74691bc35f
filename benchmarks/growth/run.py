"""How cost grows: with the length of texts, the batch, LoRA's rank, the corpus, and processes. l2v alone, on a CPU.

    python benchmarks/growth/run.py                      everything; about 25 minutes on 2 idle cores
    python benchmarks/growth/run.py --only corpus bulk   some of the curves
    python benchmarks/growth/run.py --resume             what an interrupted run of the same settings did not measure
    python benchmarks/growth/run.py --small              tiny inputs, to see that everything runs

Every measurement is a process of its own, so its peak of memory is the measured thing's: weights and libraries
included. Writes JSON after each of them, and at the end a Markdown table and a picture.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(ROOT)]
import torch  # noqa: E402
from growth.measure import Found, Spec, corpus  # noqa: E402
from growth.picture import draw  # noqa: E402
from speed.run import MODEL, processor  # noqa: E402

from l2v.process import set_up_process  # noqa: E402
from l2v.progress import say  # noqa: E402
from l2v.runs.files import cache_folder, read_json, write_json, write_text  # noqa: E402


@dataclass(frozen=True)
class Size:
    """Points of the curves."""

    encode_tokens: int = 8192
    encode_lengths: tuple[int, ...] = (8, 32, 128, 512, 2048)
    """Tokens a text."""
    encode_batches: tuple[int, ...] = (1, 8, 32, 128)
    mixed_texts: int = 112
    longest: int = 350
    """Words of a text of mixed lengths."""
    mntp_tokens: int = 2048
    """A step's, at each length."""
    simcse_tokens: int = 4096
    """A step's, both views counted."""
    train_lengths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    rows: tuple[int, ...] = (1, 4, 16)
    row_length: int = 128
    micro_batch_tokens: int = 2048
    """``stage.micro_batch_tokens`` of simcse."""
    ranks: tuple[int, ...] = (1, 4, 16, 64, 256)
    rank_rows: int = 4
    rank_length: int = 256
    steps: int = 1
    """Measured, after one that is not."""
    lines: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    block_length: int = 512
    loaded_rows: int = 32
    """A batch of the loader."""
    batches: int = 200
    bulk_batch: int = 256
    processes: tuple[int, ...] = (1, 2)
    process_rows: int = 8
    """A global batch."""
    process_steps: int = 3
    process_texts: int = 256


SMALL = Size(
    encode_tokens=64,
    encode_lengths=(8, 16),
    encode_batches=(1, 4),
    mixed_texts=6,
    longest=20,
    mntp_tokens=64,
    simcse_tokens=64,
    train_lengths=(8, 16),
    rows=(1, 2),
    row_length=16,
    micro_batch_tokens=32,
    ranks=(1, 16),
    rank_rows=2,
    rank_length=16,
    lines=(100, 1000),
    block_length=32,
    loaded_rows=4,
    batches=8,
    process_rows=2,
    process_steps=2,
    process_texts=8,
)
_STAGES = ("mntp", "simcse")
_LINES = ("data", "bulk", "train_processes")
"""Kinds that read ``corpus.txt``."""


def curves(size: Size) -> dict[str, list[Spec]]:
    """What is measured, by curve: the points of each, as ``measure.py`` takes them."""

    def training(stage: str, rows: int, length: int, rank: int = 16) -> Spec:
        spec = {"kind": "train", "stage": stage, "rows": rows, "length": length, "rank": rank, "steps": size.steps}
        return spec if stage == "mntp" else {**spec, "micro_batch_tokens": size.micro_batch_tokens}

    processes = [(count, threads) for count in size.processes for threads in _threads(count)]
    tokens = {"mntp": size.mntp_tokens, "simcse": size.simcse_tokens // 2}
    return {
        "encode_length": [
            {"kind": "encode", "length": length, "texts": size.encode_tokens // length, "batch_size": 32}
            for length in size.encode_lengths
        ],
        "encode_batch": [
            {"kind": "encode", "length": None, "texts": size.mixed_texts, "longest": size.longest, "batch_size": batch}
            for batch in size.encode_batches
        ],
        "train_length": [
            training(stage, tokens[stage] // length, length) for stage in _STAGES for length in size.train_lengths
        ],
        "train_rows": [
            training(stage, rows, size.row_length)
            for stage in _STAGES
            for rows in size.rows
            if stage == "mntp" or rows > 1  # the other rows are simcse's negatives
        ],
        "lora_rank": [training("mntp", size.rank_rows, size.rank_length, rank=rank) for rank in size.ranks],
        "corpus": [
            {
                "kind": "data",
                "lines": lines,
                "stage": stage,
                "length": size.block_length if stage == "mntp" else 128,
                "rows": size.loaded_rows,
                "batches": size.batches,
            }
            for lines in size.lines
            for stage in _STAGES
        ],
        "bulk": [{"kind": "bulk", "lines": lines, "batch_size": size.bulk_batch} for lines in size.lines],
        "train_processes": [
            {
                "kind": "train_processes",
                "processes": count,
                "threads": threads,
                "rows": size.process_rows,
                "length": size.row_length,
                "steps": size.process_steps,
                "lines": 1000,
            }
            for count, threads in processes
        ],
        "encode_processes": [
            {
                "kind": "encode_processes",
                "processes": count,
                "threads": threads,
                "texts": size.process_texts,
                "length": size.row_length,
            }
            for count, threads in processes
        ],
    }


def _threads(processes: int) -> tuple[int, ...]:
    """Of each process; one process is measured with two as well, which is what two processes compete with."""
    return (1, 2) if processes == 1 else (1,)


def measure(spec: Spec, work: Path, threads: int) -> Found:
    """Measure a point, in one new process or, for a corpus, in three."""
    if spec["kind"] not in _LINES:
        return _call(spec, work, threads)
    with corpus(work, spec["lines"]):
        if spec["kind"] != "data":
            return _call(spec, work, threads)
        shutil.rmtree(work / "cache", ignore_errors=True)
        first = _call({**spec, "batches": 0, "workers": 0}, work, threads)
        own, workers = (_call({**spec, "workers": workers}, work, threads) for workers in (0, 2))
        shutil.rmtree(work / "cache", ignore_errors=True)
    return {"first_start": first, "later_start": own, "two_workers": workers}


def _call(spec: Spec, work: Path, threads: int) -> Found:
    result = work / "result.json"
    kept = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(spec.get("threads", threads)),
    }
    if spec["kind"] != "prepare":  # what is made of these texts is of no use to anyone else
        kept["L2V_CACHE"] = str(work / "cache")
    command = [sys.executable, "-W", "ignore", HERE / "measure.py", json.dumps(spec), work, result]
    subprocess.run(command, check=True, env=kept)
    return read_json(result)


def points(specs: dict[str, list[Spec]], known: Sequence[dict[str, Any]], work: Path, threads: int) -> Iterator[Any]:
    """A row for each point: its curve, what was given, and what was found, now or in ``known`` rows."""
    for curve, of_curve in specs.items():
        for number, spec in enumerate(of_curve):
            row = next((row for row in known if (row["curve"], row["spec"]) == (curve, spec)), None)
            if row is None:
                say(f"{curve} {number + 1} of {len(of_curve)}: {_told(spec)}")
                row = {"curve": curve, "spec": spec, "found": measure(spec, work, threads)}
            yield row


def _told(spec: Spec) -> str:
    return ", ".join(f"{name} {value}" for name, value in spec.items() if name != "kind" and value is not None)


def markdown(results: dict[str, Any]) -> str:
    """A table a curve: what differs between its points, and what was found."""
    machine = results["machine"]
    head = f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}. {results['note']}".rstrip()
    parts = [head]
    for curve in dict.fromkeys(row["curve"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["curve"] == curve]
        specs, found = [row["spec"] for row in rows], [_flat(row["found"]) for row in rows]
        varying = [name for name in specs[0] if any(spec[name] != specs[0][name] for spec in specs)]
        columns = [*varying, *found[0]]
        lines = [f"| {' | '.join(name.replace('_', ' ') for name in columns)} |", "|" + "--:|" * len(columns)]
        for spec, values in zip(specs, found, strict=True):
            lines.append("| " + " | ".join(_number({**values, **spec}[name]) for name in columns) + " |")
        parts.append("\n".join([f"### {curve}", "", *lines]))
    return "\n\n".join(parts) + "\n"


def _flat(found: Found) -> Found:
    flat: Found = {}
    for name, value in found.items():
        nested = {f"{name}: {inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
        flat.update(nested)
    return flat


def _number(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.2f}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"


def main() -> None:
    set_up_process(models=False)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(curves(Size())), help="curves to measure; default: all")
    parser.add_argument("--small", action="store_true", help="tiny inputs, to see that everything runs")
    parser.add_argument("--resume", action="store_true", help="keep what the output has of the same settings")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--note", default="", help="goes into the results, e.g. what else the machine was doing")
    parser.add_argument("--work", type=Path, default=cache_folder("growth"), help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=HERE / "results.json", help="default: %(default)s")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "growth.png", help="default: %(default)s")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    size = SMALL if arguments.small else Size()
    machine = {"processor": processor(), "threads": arguments.threads, "torch": torch.__version__}
    settings = {"machine": machine, "model": arguments.model, "size": json.loads(json.dumps(asdict(size)))}
    known: list[dict[str, Any]] = []
    if arguments.resume and arguments.output.exists():
        before = read_json(arguments.output)
        if {name: before[name] for name in settings} != settings:
            parser.error(f"--resume: {arguments.output} is of other settings; leave --resume out, or set --output")
        known = before["rows"]
    prepare(arguments.model, work, arguments.threads)
    specs = curves(size)
    chosen = {curve: specs[curve] for curve in arguments.only or specs}
    # with --only, the curves that are there stay
    rows = [row for row in known if row["curve"] not in chosen]
    results = {**settings, "note": arguments.note, "command": " ".join(sys.argv), "rows": rows}
    for row in points(chosen, known, work, arguments.threads):
        rows.append(row)
        # an interruption must not lose what comes later in the order
        write_json(arguments.output, {**results, "rows": [*rows, *(row for row in known if row not in rows)]})
    write_text(arguments.output.with_suffix(".md"), markdown(results))
    draw(results, arguments.picture)
    say(f"{arguments.output}, {arguments.output.with_suffix('.md')}, {arguments.picture}")


def prepare(model: str, work: Path, threads: int) -> None:
    """Weights and texts that every measurement reads, where they are not there yet."""
    done = work / "prepared.json"
    if not done.exists() or read_json(done) != {"model": model}:
        done.unlink(missing_ok=True)
        _call({"kind": "prepare", "model": model}, work, threads)
        write_json(done, {"model": model})


if __name__ == "__main__":
    main()
