"""How many layers to keep, from the loss of each layer's vectors: those of models that have no more layers."""

import json
from pathlib import Path

import pytest
from launch import composed
from tiny import SENTENCES, make_tiny_model

from l2v import Encoder
from l2v.cli.depth import main
from l2v.data.triplets.options import TripletMix
from l2v.errors import L2VError
from l2v.losses.contrastive import Contrastive
from l2v.planning.layer_losses import Depths, Sample, layer_losses

SAMPLE = Sample(batches=2, batch_size=3)


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers."""
    return make_tiny_model(tmp_path_factory.mktemp("deep") / "model", num_hidden_layers=4)


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("triplets") / "rows.jsonl"
    rows = [
        {"query": f"{number}: {text}", "positive": text[:20] + str(number), "negative": text[10:]}
        for number in range(3)
        for text in SENTENCES
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_each_layer_has_the_loss_of_a_model_that_ends_there(deep_model: Path, triplets: Path) -> None:
    data, loss = TripletMix(part="train", files=str(triplets), held_out=0), Contrastive()
    found = layer_losses(Encoder.from_pretrained(deep_model, device="cpu"), data, loss, SAMPLE)
    assert len(found.losses) == 4 and len({round(one, 3) for one in found.losses}) == 4
    for layers, expected in enumerate(found.losses, start=1):
        short = Encoder.from_pretrained(deep_model, layers=layers, device="cpu")
        assert layer_losses(short, data, loss, SAMPLE).losses[-1] == pytest.approx(expected, abs=1e-4)


def test_the_lowest_losses_of_both_halves_are_proposed() -> None:
    found = Depths([3.0, 1.0, 4.0, 5.0, 9.0, 2.0, 6.0])
    assert (found.smaller, found.larger) == (2, 6)
    assert Depths([1.0]).larger == Depths([1.0]).smaller == 1


def test_the_program_prints_the_depths_and_writes_the_losses(
    deep_model: Path, triplets: Path, tmp_path, capsys
) -> None:
    file = tmp_path / "depth.json"
    settings = [f"encoder={deep_model}", f"data.train.files={triplets}", "data.held_out=0", f"output={file}"]
    main(composed("depth", [*settings, "batches=1", "batch_size=4"]))
    written = json.loads(file.read_text())
    assert written["layers"] == len(written["losses"]) == 4
    assert f"larger: {written['larger']} of 4 layers" in capsys.readouterr().out
    with pytest.raises(L2VError, match="learns from a teacher's scores"):
        main(composed("depth", [*settings, "loss=distillation"]))
