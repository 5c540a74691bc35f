"""How many layers to keep, from the loss of each layer's vectors: those of models that have no more layers."""

import json
from pathlib import Path

import pytest
import torch
from launch import composed
from tiny import SENTENCES, make_tiny_model

from l2v import Encoder
from l2v.cli.depth import main
from l2v.data.triplets.options import TripletMix
from l2v.errors import L2VError
from l2v.losses.contrastive import Contrastive
from l2v.models.backbone import Backbone
from l2v.models.depth import FirstLayers
from l2v.models.families import FAMILIES, tiny_model
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


@pytest.mark.parametrize("adapted", [False, True])
def test_what_stands_behind_the_layers_is_found(deep_model: Path, adapted: bool) -> None:
    from l2v.models.adapters import Lora

    backbone = Backbone.load(str(deep_model))
    if adapted:
        backbone.add_adapter(Lora(rank=4))
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        states = FirstLayers(backbone.decoder).states(ids, torch.ones_like(ids))
        assert len(states) == 4 and torch.equal(states[-1], backbone(ids, torch.ones_like(ids)))


@pytest.mark.slow
@pytest.mark.parametrize("family", [pytest.param(one, id=one.name) for one in FAMILIES if one.model_type != "mpt"])
def test_it_is_found_in_every_family(family) -> None:
    model = tiny_model(family, "eager")
    ids = torch.randint(2, 100, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = FirstLayers(model).states(ids, torch.ones_like(ids))
    assert len(states) == 2 and not torch.allclose(states[0], states[1])


def test_what_cannot_be_told_is_refused(deep_model: Path) -> None:
    decoder = Backbone.load(str(deep_model)).decoder
    forward = decoder.forward

    def doubled(**inputs):
        output = forward(**inputs)
        output.last_hidden_state = 2 * output.last_hidden_state
        return output

    decoder.forward = doubled
    ids = torch.arange(12).reshape(2, 6)
    with pytest.raises(L2VError, match="what this decoder does after its layers cannot be told"):
        FirstLayers(decoder).states(ids, torch.ones_like(ids))


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
