"""The sentences of STS-B's training and development parts in German and in English, a sentence a line.

python experiments/languages/texts.py <folder of data> <folder of texts>

The folder of data holds ``stsbenchmark`` (sts-train.csv, ...) and ``stsb-multi-mt`` (stsb-de-train.csv, ...), its
translation row by row: line n of ``de-train.txt`` is that of ``en-train.txt`` in German. Scores are left out, and so is
a sentence that was there before or, in training, is in the development or test part, in either language.
"""

import csv
import sys
from pathlib import Path

from l2v.errors import L2VError


def pairs(data: Path, part: str) -> list[tuple[str, str]]:
    """Each sentence of a part in German and in English; the English file is unquoted.

    Raises:
        L2VError: the files are no translations of each other.
    """
    with (data / "stsb-multi-mt" / f"stsb-de-{part}.csv").open(encoding="utf-8", newline="") as file:
        german = [text for row in csv.reader(file) for text in row[:2]]
    with (data / "stsbenchmark" / f"sts-{part}.csv").open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        english = [text for row in rows for text in row[5:7]]
    if len(german) != len(english):
        raise L2VError(f"{data}: {len(german)} German and {len(english)} English sentences in the {part} part")
    return [(" ".join(one.split()), " ".join(other.split())) for one, other in zip(german, english, strict=True)]


def main(data: Path, texts: Path) -> None:
    """Write ``<language>-train.txt`` and ``<language>-dev.txt``, and say how many sentences there are."""
    texts.mkdir(parents=True, exist_ok=True)
    held_out = {text for part in ("dev", "test") for pair in pairs(data, part) for text in pair}
    for part, unwanted in (("train", held_out), ("dev", set())):
        seen: set[str] = set(unwanted)
        kept = []
        for pair in pairs(data, part):
            if all(pair) and seen.isdisjoint(pair):
                kept.append(pair)
                seen.update(pair)
        for language, sentences in zip(("de", "en"), zip(*kept, strict=True), strict=True):
            (texts / f"{language}-{part}.txt").write_text("".join(f"{text}\n" for text in sentences), encoding="utf-8")
            print(f"{language}-{part}: {len(sentences):,} sentences, {sum(map(len, sentences)):,} characters")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except L2VError as error:
        sys.exit(f"error: {error}")
