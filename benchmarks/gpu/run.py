"""Speed and memory at the shapes of Llama 3 8B on one GPU, beside llm2vec: random weights, the same inputs, one run.

    python benchmarks/gpu/run.py                             everything that fits in 9.5 minutes, the most telling first
    python benchmarks/gpu/run.py --tasks mntp --no-reference
    python benchmarks/gpu/run.py --missing                   what an earlier run had no time for
    python benchmarks/gpu/run.py --reference-path site/      llm2vec's packages in a folder (pip install --target)
    python benchmarks/gpu/run.py --small                     the same code in seconds, without a GPU

Every measurement is a process of its own, so that its peak of memory is its own and one that runs out of memory ends
alone; it is then repeated with half of what it takes at once. The results are written after each, and what the file
holds of measurements that are not made again stays in it. Nothing is downloaded but llm2vec's environment, where
neither --reference-python nor --reference-path names one.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "speed"), str(HERE)]
import environments  # noqa: E402
import inputs as given  # noqa: E402
import numpy as np  # noqa: E402
import shapes  # noqa: E402
import torch  # noqa: E402
from steps import OUT_OF_MEMORY  # noqa: E402
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase  # noqa: E402

from l2v.process import set_up_process  # noqa: E402
from l2v.progress import say  # noqa: E402
from l2v.runs.files import cache_folder, read_json, write_json, write_text  # noqa: E402

OURS, REFERENCE = "l2v", "llm2vec"
TASKS = ("mntp", "encode_mixed", "simcse", "supervised_16x")
TITLES = {"mntp": "MNTP", "encode_mixed": "encode", "simcse": "SimCSE", "supervised_16x": "supervised"}
SENTENCE_LENGTHS = (7, 12, 14, 16, 18, 20, 21, 23, 24, 26, 28, 29, 31, 33, 35, 38, 41, 45, 50, 58, 128)
"""Quantiles in steps of 5%: tokens of 9,740 sentences of Wikipedia by SmolLM2's tokenizer, cut at 128."""
FULL = given.Size(
    short=1, mixed=2048, long=1, longest=512, blocks=32, block_length=512, sentences=128, triplets=32, passage=115
)
SMALL = given.Size(short=1, mixed=6, long=1, longest=20, blocks=4, block_length=16, sentences=4, triplets=1, passage=10)


@dataclass(frozen=True)
class Measurement:
    """What one process measures."""

    task: str
    side: str
    variant: str = ""
    """How it differs from the side's first measurement of the task."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the task, see the sides' scripts."""
    halves: str = ""
    """The option to halve where memory does not suffice."""

    @property
    def title(self) -> str:
        return ", ".join(filter(None, [TITLES[self.task], self.side, self.variant]))

    def is_same(self, row: dict[str, Any]) -> bool:
        return (row["task"], row["side"], row["variant"]) == (self.task, self.side, self.variant)


def plan(tasks: Sequence[str], *, reference: bool, installed: Sequence[str], small: bool) -> list[Measurement]:
    """All measurements, the most telling ones first: an interrupted run has those.

    Args:
        tasks: of ``TASKS``.
        reference: whether llm2vec is measured.
        installed: of liger_kernel and flash_attn.
        small: of a tiny model.
    """
    rows = SMALL.blocks // 2 if small else 16  # 32 do not fit beside the weights without checkpointing
    passes = 64 if small else 8192
    short = 32 if small else 2048  # of sentences: a sixth of it is padding, of 8,192 tokens almost half
    triplets = 16 * (SMALL if small else FULL).triplets
    checkpointing = {"checkpointing": True}
    mntp = Measurement("mntp", OURS, options={"rows": rows}, halves="rows")
    encode = Measurement("encode_mixed", OURS, options={"batch": 32})
    simcse = Measurement("simcse", OURS, options={"pass_tokens": short, "grad_cache": False})
    supervised = Measurement(
        "supervised_16x", OURS, options={"pass_tokens": passes, "grad_cache": True}, halves="pass_tokens"
    )
    # one pass a column of texts: its batch is what fits
    contrastive = {
        task: Measurement(task, REFERENCE, "checkpointing", {"rows": count, **checkpointing}, halves="rows")
        for task, count in (("simcse", (SMALL if small else FULL).sentences), ("supervised_16x", triplets))
    }
    reference_mntp = replace(mntp, side=REFERENCE)
    with_liger, with_flash = ("liger_kernel" in installed), ("flash_attn" in installed)
    compiled = {"compile": "aot_eager" if small else "inductor"}  # the first needs no C compiler
    wanted = [
        mntp,
        reference_mntp,
        encode,
        replace(encode, side=REFERENCE),
        simcse,
        contrastive["simcse"],
        supervised,
        contrastive["supervised_16x"],
        _variant(mntp, "compiled layers", **compiled),
        *([_variant(mntp, "loss by torch, not Liger", liger=False)] if with_liger else []),
        _variant(mntp, "checkpointing", rows=2 * rows, **checkpointing),
        _variant(mntp, "selective checkpointing", rows=2 * rows, checkpointing="selective"),
        _variant(reference_mntp, "checkpointing", rows=2 * rows, **checkpointing),
        *([_variant(mntp, "flash_attention_2", attention="flash_attention_2")] if with_flash else []),
        _variant(encode, "batches of 256", batch=256),
        _variant(encode, "compiled layers", **compiled),
        _variant(reference_mntp, "autocast", autocast=True),
        _variant(simcse, "checkpointing", **checkpointing),
        _variant(simcse, "selective checkpointing", checkpointing="selective"),
        _variant(contrastive["simcse"], "no checkpointing", checkpointing=False),
    ]
    counts = {"warmup": 1, "steps": 1} if small else {"warmup": 2, "steps": 5}
    fewer = {} if small else {"encode_mixed": {"warmup": 1, "steps": 2}, "supervised_16x": {"warmup": 1, "steps": 1}}
    common = {"attention": "sdpa", "small": small, **counts}
    return [
        replace(one, options=common | fewer.get(one.task, {}) | one.options)
        for one in wanted
        if one.task in tasks and (reference or one.side == OURS)
    ]


def _variant(measurement: Measurement, name: str, **options: Any) -> Measurement:
    return replace(measurement, variant=name, options=measurement.options | options)


def prepare(work: Path, *, small: bool) -> dict[str, Any]:
    """The model's config, a tokenizer and the inputs, in a folder that every side reads."""
    settings, size = (shapes.TINY, SMALL) if small else (shapes.LLAMA_3_8B, FULL)
    rope = {"rope_type": "default", "rope_theta": shapes.ROPE_THETA}
    LlamaConfig(**settings, rope_parameters=rope).save_pretrained(work / "model")
    shapes.make_tokenizer(settings["vocab_size"]).save_pretrained(work / "model")
    draw = np.random.default_rng(0)
    words = np.array(shapes.words(settings["vocab_size"]))
    count = size.sentences + 16 * size.triplets
    steps = np.linspace(0, 1, len(SENTENCE_LENGTHS))
    lengths = np.interp(draw.random(count), steps, SENTENCE_LENGTHS).round().astype(int)
    sentences = [" ".join(draw.choice(words, length)) for length in lengths]
    text = " ".join(draw.choice(words, max(20_000, size.blocks * size.block_length)))
    return given.make(work, [text], sentences, size)


def lengths(task: str, inputs: dict[str, Any], tokenizer: PreTrainedTokenizerBase, rows: int | None) -> list[int]:
    """Tokens of each text that a step reads, padding left out; ``rows``: the first of a contrastive batch."""
    if task == "mntp":
        return [len(row) for row in inputs["mntp"]["ids"]]
    if task == "supervised_16x":
        texts = [
            text
            for row in inputs[task][:rows]
            for text in (f"{inputs['instruction']}: {row['query']}", row["positive"], row["negative"])
        ]
    else:
        texts = inputs[task][:rows] * (2 if task == "simcse" else 1)  # two views
    return [len(ids) for ids in tokenizer(texts).input_ids]


def attention_flops(task: str, lengths: Sequence[int], config: LlamaConfig) -> float:
    """Products of queries with keys and of weights with values, every token with every token of its text; their
    gradients are twice as many."""
    width = config.num_attention_heads * config.head_dim
    passes = 1 if task in given.ENCODE else 3
    return 4.0 * passes * config.num_hidden_layers * width * sum(length**2 for length in lengths)


def call(
    side: str, task: str, options: dict[str, Any], work: Path, how: dict[str, Any], limit: float
) -> dict[str, Any]:
    """What a process measured, or ``{"error": ...}``."""
    result = work / "result.json"
    result.unlink(missing_ok=True)
    script = HERE / ("ours.py" if side == OURS else "reference_llm2vec.py")
    try:
        environments.call(
            how[side]["python"],
            script,
            [task, work, result, json.dumps(options)],
            timeout=limit,
            **how[side]["variables"],
        )
        return read_json(result)
    except subprocess.CalledProcessError as error:
        return {"error": f"exit code {error.returncode}"}
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {limit:.0f} s"}


def measure(
    one: Measurement, inputs: dict[str, Any], work: Path, how: dict[str, Any], rate: float, until: float
) -> dict[str, Any]:
    """The row of a measurement, repeated with half of an option where memory did not suffice."""
    options = dict(one.options)
    while True:
        say(f"{one.title}: {json.dumps(options)}")
        found = call(one.side, one.task, options, work, how, max(1.0, until - time.monotonic()))
        half = options[one.halves] // 2 if one.halves else 0
        if found.get("error") != OUT_OF_MEMORY or half < 1 or time.monotonic() > until:
            break
        options[one.halves] = half
    row = {"task": one.task, "side": one.side, "variant": one.variant, "options": options, **found}
    if "error" in row:
        return row
    rows = options.get("rows") if one.task != "mntp" else None
    config = LlamaConfig.from_pretrained(work / "model")
    of_texts = lengths(one.task, inputs, AutoTokenizer.from_pretrained(work / "model"), rows)
    tokens = sum(of_texts)
    flops = given.floor_flops(one.task, {**inputs, "tokens": {one.task: tokens}}, work / "model")
    seconds = statistics.median(step["seconds"] for step in row["steps"])
    return row | {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "flops": flops,
        "matrix_rate": rate,
        "utilisation": flops / seconds / rate,
        "utilisation_with_attention": (flops + attention_flops(one.task, of_texts, config)) / seconds / rate,
    }


def markdown(results: dict[str, Any]) -> str:
    """A table of the measurements by task, each beside the fastest of llm2vec's."""
    lines = [
        f"{results['machine']['device']}, torch {results['machine']['torch']}; matrix products at the model's shapes: "
        f"{results['matrix_rate'] / 1e12:.3g} TFLOP/s. {results['note']}".rstrip(),
        "",
        "| task | side | at once | tokens | seconds | tokens/s | utilisation | with attention | peak GiB | / llm2vec |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = sorted(results["measurements"], key=lambda row: TASKS.index(row["task"]))
    for row in rows:
        side = ", ".join(filter(None, [row["side"], row["variant"]]))
        at_once = next(
            (f"{row['options'][k]} {k}" for k in ("rows", "batch", "pass_tokens") if k in row["options"]), ""
        )
        if "error" in row:
            lines.append(f"| {TITLES[row['task']]} | {side} | {at_once} | {row['error']} | | | | | | |")
            continue
        peers = [
            r["tokens_per_second"]
            for r in rows
            if (r["task"], r["side"]) == (row["task"], REFERENCE) and "error" not in r
        ]
        ratio = f"{row['tokens_per_second'] / max(peers):.2f}" if peers and row["side"] == OURS else ""
        lines.append(
            f"| {TITLES[row['task']]} | {side} | {at_once} | {row['tokens']:,} | {row['seconds']:.3f} | "
            f"{row['tokens_per_second']:,.0f} | {row['utilisation']:.1%} | {row['utilisation_with_attention']:.1%} | "
            f"{row['peak_gib']:.1f} | {ratio} |"
        )
    return "\n".join(lines) + "\n"


def sides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of each side: its Python and the variables that it runs with."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {OURS: {"python": sys.executable, "variables": {"PYTHONPATH": os.pathsep.join(paths)}}}
    if not arguments.no_reference:
        python, folder = arguments.reference_python, arguments.reference_path
        if python is None:
            python = environments.environment(REFERENCE, arguments) if folder is None else sys.executable
        found[REFERENCE] = {
            "python": python,
            "variables": {} if folder is None else {"PYTHONPATH": str(folder.resolve())},
        }
    # llm2vec encodes on all GPUs that it sees
    one_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    for side in found.values():
        side["variables"] |= {"CUDA_VISIBLE_DEVICES": one_gpu, "TOKENIZERS_PARALLELISM": "true"}
    return found


def main(given_arguments: Sequence[str] | None = None) -> None:
    set_up_process(models=False)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--small", action="store_true", help="a tiny model in float32, a step each: runs without a GPU")
    parser.add_argument("--minutes", type=float, default=9.5, help="measurements that begin later are left out")
    parser.add_argument("--missing", action="store_true", help="only what the results do not hold yet, or as a failure")
    parser.add_argument("--note", default="", help="goes into the results")
    parser.add_argument("--no-reference", action="store_true", help="l2v alone")
    parser.add_argument("--reference-python", type=Path, help="the Python of an environment with llm2vec 0.2.3")
    parser.add_argument("--reference-path", type=Path, help="a folder with its packages, for this Python or that one")
    parser.add_argument("--work", type=Path, default=cache_folder("gpu"), help="default: %(default)s")
    parser.add_argument(
        "--output", type=Path, help=f"default: {HERE / 'results.json'}; with --small, in the work folder"
    )
    environments.add_arguments(parser)
    arguments = parser.parse_args(given_arguments)
    if not (arguments.small or torch.cuda.is_available()):
        parser.error("no CUDA device on this machine; --small runs without one")
    until = time.monotonic() + 60 * arguments.minutes
    work: Path = arguments.work.resolve() / ("small" if arguments.small else "full")
    work.mkdir(parents=True, exist_ok=True)
    output: Path = arguments.output or (work if arguments.small else HERE) / "results.json"
    how = sides(arguments)
    inputs = prepare(work, small=arguments.small)
    say("the rate of matrix products")
    products = call(OURS, "matrix_rate", {}, work, how, until - time.monotonic())
    if "error" in products:
        sys.exit(f"the rate of matrix products: {products['error']}")
    rate = sum(row["flops"] for row in products["steps"]) / sum(row["seconds"] for row in products["steps"])
    results = {
        "machine": {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "torch": torch.__version__,
        },
        "note": arguments.note,
        "command": " ".join(sys.argv),
        "matrix_rate": rate,
        "measurements": read_json(output)["measurements"] if output.exists() else [],
    }
    installed = [name for name in ("liger_kernel", "flash_attn") if importlib.util.find_spec(name)]
    for one in plan(arguments.tasks, reference=REFERENCE in how, installed=installed, small=arguments.small):
        if arguments.missing and any(one.is_same(row) and "error" not in row for row in results["measurements"]):
            continue
        if time.monotonic() > until:
            say(f"{one.title}: left out, the {arguments.minutes:g} minutes are over", style="yellow")
            continue
        row = measure(one, inputs, work, how, rate, until)
        results["measurements"] = [*(kept for kept in results["measurements"] if not one.is_same(kept)), row]
        write_json(output, results)
        write_text(output.with_suffix(".md"), markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
