"""Propose how many layers to keep: ``l2v depth encoder=runs/demo/mntp data.train.files=triplets.jsonl``."""

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from l2v import config as configs
from l2v.errors import L2VError
from l2v.runs.files import check_writable, write_json

if TYPE_CHECKING:
    from l2v.planning.layer_losses import Depths

_WIDTH = 40
"""Characters of the longest bar."""


def main(composed: DictConfig) -> None:
    """Check the config, read the sample, print the loss of each layer and the two depths."""
    config = configs.plain(composed, without=("data.validation",))

    from l2v.data.triplets.options import TripletMix
    from l2v.encoders.encoder import Encoder
    from l2v.encoders.load import load_encoder
    from l2v.planning.layer_losses import Sample, layer_losses

    names = ("batches", "batch_size", "negatives", "seed")
    sample = configs.construct(Sample, {name: config[name] for name in names}, "")
    loss = configs.build(config["stage"]["loss"], "stage.loss")
    data = configs.build(config["data"]["train"], "data.train")
    if not isinstance(data, TripletMix):
        raise L2VError("data: expected queries with a positive each, as data=triplets or data=e5 has")
    output = Path(config["output"]).expanduser() if config["output"] else None
    if output is not None:
        check_writable(output)
    subject = configs.take_encoder(config)
    encoder = load_encoder(subject)
    if not isinstance(encoder, Encoder):
        raise L2VError(f"encoder={subject.source}: one of sentence-transformers; only l2v's own are cut")
    found = layer_losses(encoder, data, loss, sample)
    show(found)
    if output is not None:
        write_json(output, {"encoder": subject.source, **found.record()})


def show(found: "Depths") -> None:
    """Print a table: a bar a layer, as long as its loss is high."""
    count = len(found.losses)
    table = Table("layers", "loss", "", box=None, pad_edge=False)
    low, high = min(found.losses), max(found.losses)
    for layers, loss in enumerate(found.losses, start=1):
        bar = "█" * (1 + round(_WIDTH * (loss - low) / max(high - low, 1e-9)))
        mark = {found.larger: " larger", found.smaller: " smaller"}.get(layers, "")
        table.add_row(str(layers), f"{loss:.3f}", bar + mark, style="bold" if mark else None)
    Console().print(table)
    for name, layers in (("larger", found.larger), ("smaller", found.smaller)):
        print(f"{name}: {layers} of {count} layers, {layers / count:.0%}: model.layers={layers}")


def start() -> None:
    """The program, with the arguments of this process."""
    configs.run(main, name="depth")


if __name__ == "__main__":
    start()
