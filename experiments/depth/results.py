"""Score encoders of several depths, and their vectors in fewer bytes, and draw what each costs.

    python experiments/depth/results.py <folder of data> <folder of the runs> [--speed]

Each text is encoded once a depth: shortened and rounded vectors are made of the whole ones. ``--speed`` measures tokens
a second instead, in rounds over all depths; nothing else should run meanwhile. Both go into results.json.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from l2v import Encoder
from l2v import config as configs
from l2v.data.wikipedia import WikipediaExcerpt
from l2v.embedding.compression import Ranges, restored, stored
from l2v.evaluation.results import ResultStore

matplotlib.use("agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
DEPTHS = {"1.0": 1.0, "0.8": 0.8, "0.6": 0.6, "0.4": 0.4}
SHORTER = (288, 144, 72)
ROUNDS, TEXTS = 3, 64


class Compressed:
    """An encoder whose vectors are shortened, and stored in fewer bytes and read back; each text is encoded once.

    The ranges of int8 are those of all texts that were encoded before.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.known: dict[tuple[str | None, str], np.ndarray] = {}
        self.size, self.kind, self.ranges = encoder.dimension, "float32", None
        self.max_length, self.similarity = encoder.max_length, encoder.similarity

    def store_as(self, size: int, kind: str) -> None:
        vectors = np.stack(list(self.known.values()))[:, :size]
        self.size, self.kind = size, kind
        self.ranges = Ranges.of(vectors) if kind == "int8" else None

    @property
    def dimension(self) -> int:
        return self.size

    def encode(self, texts: Any, *, instruction: str | None = None, normalize: bool = False, **more: Any) -> np.ndarray:
        new = list(dict.fromkeys(text for text in texts if (instruction, text) not in self.known))
        if new:
            vectors = self.encoder.encode(new, instruction=instruction, **more)
            self.known |= {(instruction, text): vector for text, vector in zip(new, vectors, strict=True)}
        whole = np.stack([self.known[instruction, text] for text in texts])[:, : self.size]
        if self.kind != "float32":
            whole = restored(stored(whole, self.kind, self.ranges), self.kind, self.ranges, self.size)
        return whole / np.linalg.norm(whole, axis=1, keepdims=True) if normalize else whole

    def describe(self) -> dict[str, Any]:
        return self.encoder.describe()


def tasks(data: Path) -> dict[str, Any]:
    """Those of evaluation=quick, STSBenchmark whole and smaller samples of the others."""
    smaller = {"sickr.sample": 500, "banking77.sample": 500, "stackoverflow.sample": 500}
    smaller |= {"scifact.sample": 100, "scifact.sample_queries": 50}
    overrides = ["encoder=none", "evaluation=quick", f"evaluation.folder={data}"]
    overrides += [f"evaluation.tasks.{key}={value}" for key, value in smaller.items()]
    with initialize_config_dir(str(HERE.parents[1] / "conf"), version_base="1.3"):
        composed = compose("evaluate", overrides)
    return configs.build_tasks(OmegaConf.to_container(composed.evaluation, resolve=True))


def scores(encoder: Compressed, suite: dict[str, Any], folder: Path, name: str) -> dict[str, float]:
    found = {}
    for key, task in suite.items():
        store = ResultStore(folder / "evaluation" / "mteb", "l2v/depth", name)
        entries = task.evaluate(key, encoder, store)
        found |= {one: entry["value"] for one, entry in task.table(key, store, entries).items()}
    return {**found, "mean": statistics.mean(found.values())}


def score(data: Path, runs: Path) -> dict[str, Any]:
    suite, results = tasks(data), {}
    for name in DEPTHS:
        run = runs / name / "simcse"
        encoder = Encoder.from_pretrained(run, device="cpu")
        compressed = Compressed(encoder)
        parameters = sum(weight.numel() for weight in encoder.backbone.parameters())
        layers = encoder.backbone.config.num_hidden_layers
        variants = [(encoder.dimension, "float32"), (encoder.dimension, "int8"), (encoder.dimension, "binary")]
        variants += [(size, "float32") for size in SHORTER]
        results[name] = {"layers": layers, "parameters": parameters, "vectors": {}}
        for size, kind in variants:
            if compressed.known:
                compressed.store_as(size, kind)
            found = scores(compressed, suite, run, f"{size}-{kind}")
            width = size // 8 if kind == "binary" else size * np.dtype(kind).itemsize
            results[name]["vectors"][f"{size} {kind}"] = {"bytes": width, "scores": found}
            print(f"{layers} layers, {size} {kind}: {found['mean']:.3f}", flush=True)
    return results


def speeds(runs: Path) -> dict[str, list[float]]:
    """Tokens a second of each depth, a number a round."""
    texts = [text for text, _ in zip(WikipediaExcerpt("held_out", "sentence").texts(), range(TEXTS), strict=False)]
    encoders = {name: Encoder.from_pretrained(runs / name / "simcse", device="cpu") for name in DEPTHS}
    found: dict[str, list[float]] = {name: [] for name in DEPTHS}
    for number in range(ROUNDS + 1):
        for name, encoder in encoders.items():
            tokens = sum(map(len, encoder.backbone.tokenizer(texts)["input_ids"]))
            begin = time.perf_counter()
            encoder.encode(texts)
            if number:  # the first warms up
                found[name].append(tokens / (time.perf_counter() - begin))
    return found


def draw(results: dict[str, Any]) -> None:
    """Quality against what a text costs to encode, and against what its vector costs to keep."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for number, one in enumerate(results.values()):
        colour, kept = f"C{number}", one["vectors"]
        mean = kept["576 float32"]["scores"]["mean"]
        if "tokens_per_second" in one:
            speed = statistics.median(one["tokens_per_second"])
            left.plot(speed, mean, "o", color=colour)
            label = f"{one['layers']} layers\n{one['parameters'] / 1e6:.0f}M"
            left.annotate(label, (speed, mean), textcoords="offset points", xytext=(7, -4), fontsize=8)
        shorter = [kept[f"{size} float32"] for size in (576, *SHORTER)]
        bytes_of, means = zip(*((point["bytes"], point["scores"]["mean"]) for point in shorter), strict=True)
        right.plot(bytes_of, means, "o-", color=colour, label=f"{one['layers']} layers")
        for kind, mark in (("int8", "s"), ("binary", "^")):
            point = kept[f"576 {kind}"]
            right.plot(point["bytes"], point["scores"]["mean"], mark, color=colour, markersize=8)
    for mark, told in (("o", "first 576, 288, 144, 72 numbers"), ("s", "int8"), ("^", "binary")):
        right.plot([], [], mark, color="gray", label=told)
    left.set_xlabel("tokens a second, one encoder on a CPU")
    left.set_ylabel("mean of five tasks")
    right.set_xscale("log")
    right.set_xticks([72, 288, 576, 1152, 2304], ["72", "288", "576", "1152", "2304"], minor=False)
    right.minorticks_off()
    right.set_xlabel("bytes a vector")
    left.legend(*right.get_legend_handles_labels(), fontsize=7, loc="upper right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.margins(0.2)
    figure.tight_layout()
    figure.savefig(HERE / "cost.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--speed", action="store_true")
    given = parser.parse_args()
    file = HERE / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    if given.speed:
        for name, found in speeds(given.runs).items():
            results[name]["tokens_per_second"] = [round(one, 1) for one in found]
    else:
        for name, found in score(given.data, given.runs).items():
            results[name] = {**results.get(name, {}), **found}
    file.write_text(json.dumps(results, indent=2) + "\n")
    draw(results)


if __name__ == "__main__":
    main()
