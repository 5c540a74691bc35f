"""The data sets of evaluation=quick and sts_languages in their file formats, a few rows each."""

import json
from pathlib import Path

from tiny import SENTENCES

TOPICS = {"cats": "the cat sat on mat number", "dogs": "a dog jumps over the house number", "rain": "it rained on day"}
"""Label -> the beginning of its texts."""


def texts(count: int) -> list[tuple[str, str]]:
    """Texts with their labels, ``count`` a label."""
    return [(f"{begin} {number}", label) for number in range(count) for label, begin in TOPICS.items()]


def write_quick_folder(folder: Path) -> Path:
    """Write ``folder`` and return it."""

    def write(name: str, lines: list[str]) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    pairs = [(a, b) for a in SENTENCES for b in SENTENCES if a < b]
    sts = [f'main\tgenre\t2012\t{n}\t{n % 6}.0\t{a}\tsome "quoted" {b}' for n, (a, b) in enumerate(pairs)]
    for part in ("test", "dev"):
        write(f"stsbenchmark/sts-{part}.csv", sts)
    for language in ("de", "fr", "zh"):
        write(
            f"stsb-multi-mt/stsb-{language}-test.csv",
            [f'"{a}, in {language}","{b}",{n % 6}.0' for n, (a, b) in enumerate(pairs)],
        )
    sick = [f"{n}\t{a}\t{b}\t{1 + n % 5}\tNEUTRAL" for n, (a, b) in enumerate(pairs)]
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    for part, rows in (("train", sick[:5]), ("trial", sick[5:9]), ("test_annotated", sick[9:])):
        write(f"sick2014/SICK_{part}.txt", [header, *rows])
    documents = texts(4)
    corpus = [json.dumps({"_id": f"d{n}", "title": label, "text": text}) for n, (text, label) in enumerate(documents)]
    write("scifact/corpus.jsonl", corpus)
    queries = [json.dumps({"_id": f"q{n}", "text": begin}) for n, begin in enumerate(TOPICS.values())]
    write("scifact/queries.test.jsonl", [*queries, json.dumps({"_id": "unjudged", "text": "nobody knows"})])
    judged = [f"q{n}\td{n + 3 * number}\t1" for n in range(3) for number in range(2)]
    write("scifact/qrels.test.tsv", ["query-id\tcorpus-id\tscore", *judged])
    write("banking77/train.csv", ["text,category", *(f'"{text}, please",{label}' for text, label in texts(9))])
    write("banking77/test.csv", ["text,category", *(f"{text},{label}" for text, label in texts(4))])
    write("stackoverflow-titles/title_StackOverflow.txt", [text for text, _ in texts(6)])
    write("stackoverflow-titles/label_StackOverflow.txt", [label for _, label in texts(6)])
    return folder
