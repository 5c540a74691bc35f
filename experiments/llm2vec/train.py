"""MNTP by llm2vec 0.2.3: its model and loss under transformers' Trainer, as its training script puts them together.

    python experiments/llm2vec/train.py <folder of batches.py> <seed> <adapter to write>

Runs in an environment of its own (``llm2vec==0.2.3 transformers==4.44.2 peft==0.12.0``); never imports l2v. The
settings are those of l2v's demo: LoRA of rank 16, learning rate 1e-3 with 10 steps of warm-up, linear to 0, gradients
clipped at 1.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llm2vec.models import LlamaBiForMNTP
from peft import get_peft_model
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainingArguments, set_seed

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from llm2vec_parts import LORA, freeze_all_but_lora


class Rows(Dataset):
    def __init__(self, file: Path) -> None:
        arrays = np.load(file)
        self.batch_size = arrays["labels"].shape[1]
        self.ids, self.labels = (arrays[name].reshape(-1, arrays[name].shape[-1]) for name in ("input_ids", "labels"))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        ids = torch.from_numpy(self.ids[row]).long()
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": torch.from_numpy(self.labels[row]).long(),
        }


class InOrder(Trainer):
    def _get_train_sampler(self) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def main(folder: Path, seed: int, adapter: Path) -> None:
    set_seed(seed)
    model = LlamaBiForMNTP.from_pretrained(folder / "model", torch_dtype=torch.float32)
    model.model = get_peft_model(model.model, LORA)
    freeze_all_but_lora(model)
    rows = Rows(folder / "batches.npz")
    arguments = TrainingArguments(
        output_dir=str(adapter),
        per_device_train_batch_size=rows.batch_size,
        num_train_epochs=1,
        learning_rate=1e-3,
        warmup_steps=10,
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler_type="linear",
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        seed=seed,
    )
    InOrder(model=model, args=arguments, train_dataset=rows).train()
    model.model.save_pretrained(adapter)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
