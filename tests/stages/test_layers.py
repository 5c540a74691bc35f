"""Supervised training at several depths: layer-wise Matryoshka."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import Tiny, metrics
from lightning.pytorch.callbacks import Callback
from tiny import make_tiny_model

from l2v import Encoder
from l2v.errors import L2VError
from l2v.losses.contrastive import Contrastive
from l2v.models.bidirectional import decoder_layers
from l2v.stages.supervised import Supervised

SETTINGS: dict[str, Any] = {"name": "supervised", "batch_size": 4, "max_steps": 10, "learning_rate": 1e-3}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    return Tiny(tmp_path, make_tiny_model(tmp_path / "model", num_hidden_layers=4), monkeypatch)


class Depths(Callback):
    """Keeps a batch's loss, that of the decoder cut at each of the depths, and what got a gradient.

    Args:
        layers: where to cut; None: at those of the stage.
        at: the number of the batch.
    """

    def __init__(self, layers: list[int] | None = None, at: int = 0) -> None:
        self.layers, self.at = layers, at
        self.loss = 0.0
        self.alone: list[float] = []

    @torch.no_grad()
    def on_train_batch_start(self, trainer: Any, stage: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx != self.at:
            return
        stage.backbone.eval()
        self.depths = self.layers or stage._depths
        self.loss = stage.training_step(batch, 0).item()
        layers = decoder_layers(stage.backbone.decoder)
        for depth in (*self.depths, len(layers)):
            removed = list(layers)[depth:]
            del layers[depth:]
            self.alone.append(stage._loss(stage._embed(batch)).item())
            layers.extend(removed)
        stage.backbone.train()

    def on_before_optimizer_step(self, trainer: Any, stage: Any, optimizer: Any) -> None:
        self.gradients = {name: p.grad.norm().item() for name, p in stage.named_parameters() if p.requires_grad}


def test_the_loss_is_the_weighted_mean_of_those_of_the_cut_decoders(tiny: Tiny) -> None:
    keep = Depths()
    settings = ["stage.layers=[1,0.75]", "stage.layer_weights=[0.5,2]", "stage.loss.dimensions=[8,16]"]
    run = tiny.train("run", "supervised", *settings, "stage.max_steps=3", callbacks=[keep])
    assert keep.depths == [1, 3]
    first, third, whole = keep.alone
    assert len({round(loss, 3) for loss in keep.alone}) == 3
    assert keep.loss == pytest.approx((0.5 * first + 2 * third + whole) / 3.5, rel=1e-5)
    for layer in range(4):
        assert any(f"layers.{layer}." in name and norm > 0 for name, norm in keep.gradients.items())
    losses = [row["train/loss"] for row in metrics(run) if "train/loss" in row]
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)
    assert Encoder.from_pretrained(run).encode("a text").shape == (32,)


def test_training_at_depths_makes_the_cut_decoder_better_than_training_without(tiny: Tiny) -> None:
    settings = ["stage.max_steps=20", "stage.learning_rate=1e-2", "stage.loss.temperature=0.1"]

    plain, at_depths = Depths([1], at=19), Depths([1], at=19)
    tiny.train("plain", "supervised", *settings, callbacks=[plain])
    tiny.train("depths", "supervised", *settings, "stage.layers=[1]", callbacks=[at_depths])
    assert at_depths.alone[0] < plain.alone[0]


@pytest.mark.parametrize("layers", ["[4]", "[1,0.25]"])
def test_layers_that_the_decoder_has_not_or_has_twice_are_told(tiny: Tiny, layers: str) -> None:
    with pytest.raises(L2VError, match=r"stage\.layers=.*: expected different numbers below 4") as error:
        tiny.train("run", "supervised", f"stage.layers={layers}", "stage.max_steps=1")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layers", ["[0]", "[1.5]", "[-0.5]", "[2,7]"])
def test_a_layer_is_a_number_or_a_share(tiny: Tiny, layers: str) -> None:
    with pytest.raises(L2VError, match=r"stage\.layers"):
        tiny.train("run", "supervised", f"stage.layers={layers}", "stage.max_steps=1")


def test_weights_go_with_layers() -> None:
    with pytest.raises(L2VError, match=r"stage\.layer_weights: expected one for each of stage\.layers \(1\), found 2"):
        Supervised(loss=Contrastive(), layers=(1,), layer_weights=(1.0, 2.0), **SETTINGS)


@pytest.mark.parametrize("sharding", ["weights", "zero3"])
def test_split_weights_are_refused(sharding: Any) -> None:
    stage = Supervised(loss=Contrastive(), layers=(1,), **SETTINGS)
    with pytest.raises(L2VError, match=r"stage\.layers: .* choose trainer=ddp"):
        stage.check(encoder=False, adapter=True, sharding=sharding, sources=[])
