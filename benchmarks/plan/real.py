"""Two steps of a real training of random weights on this CPU, and the most memory that they take; see run.py.

    python benchmarks/plan/real.py SPECIFICATION RESULT
    torchrun --nproc_per_node 2 benchmarks/plan/real.py SPECIFICATION RESULT

The memory is the system's: the most that the process has had since before the model was made (VmHWM), less what it
had then. It wants MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ in the environment, so that what is freed is given
back at once.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from specification import Specification
from torch.utils.data import DataLoader

from l2v.kernels.attention import register_attention
from l2v.planning.backbone import new_backbone
from l2v.planning.batches import longest_batch
from l2v.training.trainer import make_trainer, quiet_lightning


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


class _Peak(Callback):
    """Of the steps alone: what went before does not count into the most."""

    def on_train_start(self, *args: Any) -> None:
        Path("/proc/self/clear_refs").write_text("5")


def train(specification: Specification) -> None:
    setup = specification.setup()
    backbone = new_backbone(setup, "cpu")
    stage = setup.stage
    stage.attach(backbone, 0)
    batch = longest_batch(stage, setup.config.vocab_size)
    trainer: L.Trainer = make_trainer(
        {
            **setup.trainer,
            "accelerator": "cpu",
            "devices": setup.devices,
            "strategy": setup.strategy or "auto",
        },
        max_steps=2,
        logger=False,
        callbacks=[_Peak()],
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    with quiet_lightning():
        trainer.fit(stage, DataLoader([batch] * 2, batch_size=None))


def main(specification: Path, result: Path) -> None:
    register_attention()
    torch.manual_seed(0)
    given = json.loads(specification.read_text())
    # one small training first: what libraries load and keep is none of the model's
    small = {"hidden": 32, "layers": 1, "vocabulary": 64, "rows": 2, "length": 8}
    train(Specification(**given | small))
    before = status("VmRSS")
    train(Specification(**given))
    found = {"peak": status("VmHWM") - before}
    rank = os.environ.get("RANK", "0")
    result.with_suffix(f".{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
