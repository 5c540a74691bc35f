"""How fast training data are searched for evaluation texts, and in how much memory.

    python benchmarks/contamination.py --words 10000000 --looked-for 1000000

Makes files of synthetic texts of 70 words (Zipf's law over a vocabulary of 500,000; a tenth of the texts are not in
ASCII); one evaluation text in ten is from the training data. Every size runs in a process of its own. ``preparing`` is
what the evaluation side takes alone; the rates are those of the rest, which grows with the training data.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

WORDS_A_TEXT = 70
VOCABULARY = 500_000


def texts(words: int, seed: int) -> Iterator[str]:
    """Texts of so many words in all."""
    import numpy as np

    draw = np.random.default_rng(seed)
    letters = np.random.default_rng(0)
    known = ["".join(letters.choice(list("etaoinshrdlu"), letters.integers(2, 10))) for _ in range(50_000)]
    known = [
        f"{word}{ending}" for ending in ("", "s", "ed", "ing", "ly", "er", "or", "al", "ic", "y") for word in known
    ]
    share = 1 / np.arange(1, VOCABULARY + 1)
    share = np.cumsum(share / share.sum())
    for number in range(0, words, WORDS_A_TEXT):
        chosen = np.searchsorted(share, draw.random(WORDS_A_TEXT)).clip(max=VOCABULARY - 1)
        text = " ".join([known[place] for place in chosen.tolist()])
        yield text + (" \u2013 caf\u00e9." if number // WORDS_A_TEXT % 10 == 0 else " , and .")


def phase(file: str, looked_for: str) -> None:
    """One search, in this process; prints a JSON line."""
    from l2v.contamination.ngrams import contamination
    from l2v.data.texts import FileTexts

    wanted = list(FileTexts(looked_for).texts())
    contamination([], {"task": wanted[:1000]})  # the first call compiles patterns
    began, worked = time.perf_counter(), time.process_time()
    contamination([], {"task": wanted})
    preparing, prepared = time.perf_counter() - began, time.process_time() - worked
    before = peak()
    began, worked = time.perf_counter(), time.process_time()
    found = contamination(FileTexts(file).texts(), {"task": wanted})
    seconds, processor = time.perf_counter() - began, time.process_time() - worked
    task, words = found["tasks"]["task"], found["training"]["words"]
    assert 0.09 < task["share"] < 0.11, task["share"]
    told = {
        "words": words,
        "texts": found["training"]["texts"],
        "preparing s": round(preparing, 1),
        "all of it s": round(seconds, 1),
        "words/s": round(words / (seconds - preparing)),
        "words/s of processor time": round(words / (processor - prepared)),
        "100M words, processor s": round(1e8 * (processor - prepared) / words + prepared),
        "peak after preparing MiB": before,
        "peak MiB": peak(),
    }
    print(json.dumps(told), flush=True)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--words", type=int, nargs="+", default=[5_000_000, 10_000_000, 20_000_000])
    parser.add_argument("--looked-for", type=int, default=1_000_000, help="words of the evaluation texts")
    parser.add_argument("--phase", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.phase:
        phase(*chosen.phase)
        return
    with tempfile.TemporaryDirectory() as folder:
        train, wanted = Path(folder) / "train.txt", Path(folder) / "wanted.txt"
        copied = chosen.looked_for // WORDS_A_TEXT // 10
        for words in chosen.words:
            known = list(itertools.islice(texts(words, seed=1), copied))
            new = texts(chosen.looked_for - len(known) * WORDS_A_TEXT, seed=2)
            wanted.write_text("".join(f"{text}\n" for text in itertools.chain(known, new)), encoding="utf-8")
            with train.open("w", encoding="utf-8") as file:
                file.writelines(f"{text}\n" for text in texts(words, seed=1))
            subprocess.run([sys.executable, __file__, "--phase", str(train), str(wanted)], check=True)


if __name__ == "__main__":
    main()
