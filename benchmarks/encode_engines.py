"""Rows a second of encode.py's engines, side by side: local processes and actors of a Ray cluster on this machine.

    python benchmarks/encode_engines.py                  both models, 1 and 2 processes; 5 minutes on 2 idle cores
    python benchmarks/encode_engines.py --models tiny    one of them
    python benchmarks/encode_engines.py --small          few rows, to see that everything runs

Texts are cut from the Wikipedia excerpt in the package gensim (log-normal lengths, median 40 words). The tiny model is
a random Llama of 2 layers and width 64, so that reading, tokenizing, moving and writing are what takes time. A process
computes on one thread. "Seconds" are those of the whole command; rows a second are those between two shards: from when
there are as many as processes to the last, so that starting (Python, Ray, the encoder) does not count.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT)]
from speed.run import MODEL, package_texts, processor  # noqa: E402

from l2v import Encoder, read_vectors  # noqa: E402
from l2v.process import set_up_process  # noqa: E402
from l2v.runs.files import read_json  # noqa: E402

ENGINES = {
    ("local", 1): ["trainer=cpu"],
    ("ray", 1): ["trainer=cpu", "engine=ray", "ray.actors=1"],
    ("local", 2): ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"],
    ("ray", 2): ["trainer=cpu", "engine=ray", "ray.actors=2"],
}


class Work(NamedTuple):
    """A model and the rows that it encodes."""

    model: str
    rows: int
    shard_rows: int


def texts(rows: int, file: Path) -> None:
    """Write texts, one a line."""
    draw = np.random.default_rng(0)
    words = " ".join(package_texts()[0]).split()
    lengths = np.exp(draw.normal(np.log(40), 0.8, rows)).round().clip(3, 350).astype(int)
    begins = draw.integers(0, len(words) - 350, rows)
    lines = (" ".join(words[begin : begin + length]) for begin, length in zip(begins, lengths, strict=True))
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def tiny(folder: Path) -> str:
    """A random model of 3M weights with SmolLM2's tokenizer."""
    tokenizer = Encoder.from_pretrained(MODEL).backbone.tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def measure(work: Work, file: Path, output: Path, engine: list[str], processes: int) -> tuple[float, float]:
    """Seconds of the command, and rows a second once all processes work."""
    given = [f"encoder={work.model}", f"files={file}", f"output={output}", f"shard_rows={work.shard_rows}"]
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, str(ROOT / "encode.py"), *given, "batch_size=16", *engine],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    seconds = time.perf_counter() - begin
    shards = sorted(output.glob("*.parquet"), key=lambda shard: shard.stat().st_mtime)
    counted = shards[processes:]
    rows = {shard["file"]: shard["rows"] for shard in read_json(output / "manifest.json")["shards"]}
    span = shards[-1].stat().st_mtime - shards[processes - 1].stat().st_mtime
    return seconds, sum(rows[shard.name] for shard in counted) / span


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="few rows, to see that everything runs")
    parser.add_argument("--models", nargs="+", choices=("tiny", "SmolLM2-135M"), default=("tiny", "SmolLM2-135M"))
    arguments = parser.parse_args()
    set_up_process()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {
            "tiny": Work(tiny(folder / "tiny"), *((200, 20) if arguments.small else (10_000, 250))),
            "SmolLM2-135M": Work(MODEL, *((20, 2) if arguments.small else (128, 8))),
        }
        print(f"{processor()}, {os.cpu_count()} cores\n")
        print("| model | rows | processes | engine | seconds | rows/s | largest difference |")
        print("|---|--:|--:|---|--:|--:|--:|")
        for model in arguments.models:
            work = models[model]
            file = folder / f"{model}.txt"
            texts(work.rows, file)
            first: np.ndarray | None = None
            for (engine, processes), overrides in ENGINES.items():
                output = folder / f"{model}-{engine}-{processes}"
                seconds, rate = measure(work, file, output, overrides, processes)
                vectors = np.concatenate(list(read_vectors(output)))
                first = vectors if first is None else first
                print(
                    f"| {model} | {work.rows:,} | {processes} | {engine} | {seconds:.1f} | {rate:,.1f} "
                    f"| {np.abs(vectors - first).max():.1e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
