"""How fast training data are searched for evaluation texts, and in how much memory.

    python benchmarks/contamination.py --words 10000000 --looked-for 1000000

Makes synthetic texts of about 70 words (Zipf's law over a vocabulary of 500,000, a tenth of the texts not in ASCII) as
they are read, so that they are never in memory as a whole, and takes one evaluation text in ten from the training data.
Every size runs in a process of its own; the time that making the texts takes is measured alone and subtracted.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

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


def measure(words: int, looked_for: int) -> dict[str, float | int]:
    from l2v.contamination import contamination

    begin = time.perf_counter()
    for _ in texts(words, seed=1):
        pass
    making = time.perf_counter() - begin
    copied = itertools.islice(texts(words, seed=1), 0, None, 10)
    known = list(itertools.islice(copied, looked_for // WORDS_A_TEXT // 10))
    wanted = [*known, *texts(looked_for - len(known) * WORDS_A_TEXT, seed=2)]
    begin = time.perf_counter()
    contamination([], {"task": wanted})
    preparing = time.perf_counter() - begin
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    begin = time.perf_counter()
    found = contamination(texts(words, seed=1), {"task": wanted})
    seconds = time.perf_counter() - begin - making - preparing
    task, read = found["tasks"]["task"], found["training"]["words"]
    assert len(known) <= task["texts_found"] <= len(known) * 1.01 + 1, task
    return {
        "words": read,
        "words looked for": looked_for,
        "preparing s": round(preparing, 1),
        "reading s": round(seconds, 1),
        "words/s": round(read / seconds),
        "100M words s": round(1e8 * seconds / read + preparing),
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "after preparing MiB": before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--words", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--looked-for", type=int, default=1_000_000, help="words of the evaluation texts")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.words[0], chosen.looked_for)))
        return
    for words in chosen.words:
        arguments = ["--one", "--words", str(words), "--looked-for", str(chosen.looked_for)]
        subprocess.run([sys.executable, __file__, *arguments], check=True)


if __name__ == "__main__":
    main()
