"""What a finished MNTP run of l2v began with and read, for another program to train on.

    python experiments/llm2vec/batches.py <run> <folder to write>

``batches.npz`` holds ids and labels, (steps, rows, tokens), -100 where nothing is hidden, in the run's order; ``model``
the weights that its adapter began on, in the words of transformers 4.
"""

import sys
from pathlib import Path

import lightning as L
import numpy as np
import torch
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from transformers4 import write_transformers4

from l2v import Encoder
from l2v import config as configs
from l2v.runs.initialization import Initialization
from l2v.runs.run import Run


def main(run: Run, folder: Path) -> None:
    training = configs.build_training(configs.plain(OmegaConf.load(run.folder / "config.yaml")))
    stage = training.stage
    stage.share_batch(1, 1)
    stage.trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    data = stage.data(training, Initialization.of(run), torch.device("cpu"))
    data.prepare_data()
    data.setup("fit")
    batches = [batch for _, batch in zip(range(stage.max_steps), data.train_dataloader(), strict=False)]
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: torch.stack([batch[name] for batch in batches]).numpy() for name in ("input_ids", "labels")}
    np.savez_compressed(folder / "batches.npz", **arrays)
    if not (folder / "model").exists():
        Encoder.from_pretrained(training.model.source, device="cpu").save(folder / "saved")
        write_transformers4(folder / "saved", folder / "model")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Run.open(Path(sys.argv[1])), Path(sys.argv[2]))
