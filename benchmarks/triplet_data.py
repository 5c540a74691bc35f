"""What it takes to read triplets, and to start training on them again: seconds, and the peak of resident memory.

    python benchmarks/triplet_data.py --tokenizer <folder or hub id> --rows 1500000

Makes synthetic triplets of short texts in four JSONL files (some queries twice, every positive about twice), then runs
each phase in a process of its own. ``first`` reads and tokenizes into an empty cache; ``second`` finds the rows there,
up to a batch; ``resumed`` is the same in the middle of the third pass. Memory counts the pages of mapped files that
were touched, which the system takes back when it needs them; ``of its own`` leaves them out.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETS = 4
BATCH = 512


def make(folder: Path, rows: int) -> None:
    """Write the files: texts of 4 to 24 words."""
    import numpy as np

    draw = np.random.default_rng(0)
    words = np.array(
        ["".join(draw.choice(list("abcdefghijklmnopqrstuvwxyz"), draw.integers(2, 9))) for _ in range(20000)]
    )

    def texts(count: int, longest: int) -> list[str]:
        lengths = draw.integers(4, longest, count)
        drawn = words[draw.zipf(1.3, lengths.sum()) % len(words)]
        return [" ".join(text) for text in np.split(drawn, np.cumsum(lengths)[:-1])]

    for number in range(SETS):
        with (folder / f"set{number}.jsonl").open("w") as file:
            for _ in range(0, rows // SETS, 25_000):
                queries = texts(24_500, 12)
                queries += queries[:500]
                positives, negatives = texts(12_500, 24) * 2, texts(25_000, 24)
                draw.shuffle(positives)
                for query, positive, negative in zip(queries, positives, negatives, strict=True):
                    file.write(json.dumps({"query": query, "positive": positive, "negative": negative}) + "\n")


def memory() -> dict[str, int]:
    """MiB: the peak, and what of the present is no mapped file."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    status = Path("/proc/self/status")
    own = (
        [line.split()[1] for line in status.read_text().splitlines() if line.startswith("RssAnon")]
        if status.exists()
        else []
    )
    return {"peak MiB": peak, **({"of its own at the end MiB": int(own[0]) // 1024} if own else {})}


def phase(name: str, folder: str, tokenizer_name: str) -> None:
    """One phase, in this process; prints a JSON line."""
    began = time.perf_counter()
    from transformers import AutoTokenizer

    from l2v.data.collate import TripletBatch
    from l2v.data.mixed_order import MixedOrder
    from l2v.data.triplets.options import TripletMix
    from l2v.data.triplets.rows import triplet_rows

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    found: dict[str, float | int] = {"imports s": time.perf_counter() - began, "imports MiB": memory()["peak MiB"]}
    began, worked = time.perf_counter(), time.process_time()
    train, held_out = (
        TripletMix(part=part, folder=folder, query_instructions="Find what it says") for part in ("train", "held_out")
    )
    train.fingerprint(), held_out.fingerprint()
    found["hashing the files s"] = time.perf_counter() - began
    rows = triplet_rows(train, tokenizer, max_length=512)
    triplet_rows(held_out, tokenizer, max_length=512)
    found["rows s"] = time.perf_counter() - began
    if name != "first":
        batches = len(rows) // BATCH * 3
        order = MixedOrder(
            rows.texts(),
            names=rows.names,
            batch_size=BATCH,
            batches=batches,
            first=batches * 5 // 6 if name == "resumed" else 0,
        )
        TripletBatch(0, "right", negatives=1)(rows.__getitems__(next(iter(order))))
        found["to the first batch s"] = time.perf_counter() - began
    found["all of it, processor s"] = time.process_time() - worked
    print(json.dumps({"phase": name, "rows": len(rows), **{k: round(v, 2) for k, v in found.items()}, **memory()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_500_000)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--phase", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.phase:
        phase(*chosen.phase, chosen.tokenizer)
        return
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        make(data, chosen.rows)
        print(f"{sum(file.stat().st_size for file in data.iterdir()) / 2**20:.0f} MiB of JSONL", flush=True)
        environment = os.environ | {"L2V_CACHE": str(Path(folder) / "cache"), "TOKENIZERS_PARALLELISM": "false"}
        for name in ("first", "second", "resumed"):
            arguments = [__file__, "--phase", name, str(data), "--tokenizer", chosen.tokenizer]
            subprocess.run([sys.executable, *arguments], env=environment, check=True)
        kept = sum(file.stat().st_size for file in (Path(folder) / "cache").rglob("*") if file.is_file())
        print(f"{kept / 2**20:.0f} MiB of token rows")


if __name__ == "__main__":
    main()
