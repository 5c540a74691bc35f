"""Against values that llm2vec 0.2.3 itself computed (``python benchmarks/parity/run.py --fixtures``), on a tiny model.

The model is the base of ``reference/llm2vec``, without the BOS token, and the texts are those beside it. The comparison
on a real model, with the cases where llm2vec is wrong, is ``benchmarks/parity/run.py``.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from l2v.encoders.encoder import Encoder
from l2v.runs.files import read_json

REFERENCE = Path(__file__).parents[1] / "reference"
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "parity"))

import cases  # noqa: E402
import ours  # noqa: E402

INPUTS = read_json(REFERENCE / "llm2vec" / "texts.json")


@pytest.fixture(scope="module")
def expected() -> dict[str, NDArray]:
    with np.load(REFERENCE / "parity.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ours.without_bos(REFERENCE / "llm2vec" / "base", tmp_path_factory.mktemp("parity") / "model")


@pytest.mark.parametrize("attention", ours.ATTENTIONS)
@pytest.mark.parametrize("pooling", ours.POOLINGS)
@pytest.mark.parametrize("instruction", [None, INPUTS["instruction"]], ids=["plain", "instruction"])
def test_vectors(
    expected: dict[str, NDArray], model: Path, attention: str, pooling: str, instruction: str | None
) -> None:
    encoder = Encoder.from_pretrained(model, attention=attention, separator=ours.SEPARATOR, device="cpu")
    vectors = ours.encode(encoder, INPUTS["texts"], pooling, instruction)
    wanted = expected[f"{attention}/{pooling}/{'instruction' if instruction else 'plain'}"]
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)


def test_losses(expected: dict[str, NDArray], model: Path) -> None:
    inputs = {name: expected[name] for name in ("ids", "labels", "queries", "positives", "negatives")}
    for name, loss in ours.losses(model, inputs).items():
        assert loss == pytest.approx(expected[f"loss/{name}"].item(), abs=1e-5), name


@pytest.mark.parametrize("name", ours.SCHEDULES)
def test_learning_rates(expected: dict[str, NDArray], name: str) -> None:
    schedule = ours.SCHEDULES[name]
    rates = ours.learning_rates(schedule)[np.array(ours.KEPT_STEPS) - 1]
    np.testing.assert_allclose(rates, expected[f"learning_rate/{name}"], rtol=0, atol=1e-12 * schedule.learning_rate)


def test_the_cases_count_what_l2v_reads(model: Path) -> None:
    encoder = Encoder.from_pretrained(model, separator=ours.SEPARATOR, device="cpu")
    case = {"texts": INPUTS["texts"][:1], "instruction": INPUTS["instruction"]}
    alone = {"texts": case["texts"]}
    for counted in (case, alone):
        figures = cases._pooled(encoder, counted)
        assert figures["fed"] == cases._fed(encoder, counted)["fed"]
        assert figures["pooled"] == cases._pooled(encoder, alone)["fed"]
