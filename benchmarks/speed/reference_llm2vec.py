"""llm2vec's side: its own classes, as its training scripts put them together. Never imports l2v."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import timing
import torch
from llm2vec import LLM2Vec
from llm2vec.loss.utils import load_loss
from llm2vec.models import LlamaBiForMNTP
from llm2vec_parts import LORA, columns_of, freeze_all_but_lora, prepared
from peft import get_peft_model


def encode(task: str) -> timing.Task:
    def run(model: Path, inputs: dict[str, Any], steps: int, precision: timing.Precision) -> timing.Clock:
        dtype = getattr(torch, precision)
        encoder = LLM2Vec.from_pretrained(str(model), max_length=512, doc_max_length=512, torch_dtype=dtype)
        texts = [["", text] for text in inputs[task]]
        encoder.encode(texts[:8], batch_size=32, show_progress_bar=False)
        clock = timing.Clock(warmup=0)
        for _ in range(steps):
            clock.begin()
            encoder.encode(texts, batch_size=32, show_progress_bar=False, convert_to_numpy=True)
            clock.end()
        return clock

    return run


def mntp(model: Path, inputs: dict[str, Any], steps: int, precision: timing.Precision) -> timing.Clock:
    whole = LlamaBiForMNTP.from_pretrained(model, torch_dtype=torch.float32)
    whole.model = get_peft_model(whole.model, LORA)
    freeze_all_but_lora(whole)
    whole.train()
    ids, labels = (torch.tensor(inputs["mntp"][name]) for name in ("ids", "labels"))
    mask = torch.ones_like(ids)

    def loss() -> torch.Tensor:
        return whole(input_ids=ids, attention_mask=mask, labels=labels).loss

    return timing.repeat(timing.optimize(loss, whole, precision), steps)


def _contrastive(
    model: Path,
    columns: list[list[list[str]]],
    steps: int,
    precision: timing.Precision,
    scale: float,
    **settings: Any,
) -> timing.Clock:
    """A step of SimCSETrainer or SupervisedTrainer: a forward pass a column of texts, then the loss."""
    encoder = LLM2Vec.from_pretrained(
        str(model), max_length=512, doc_max_length=512, torch_dtype=torch.float32, **settings
    )
    encoder.model = get_peft_model(encoder.model, LORA)
    encoder.train()
    loss = load_loss("HardNegativeNLLLoss", scale=scale)
    texts = prepared(encoder, columns)

    def forward() -> torch.Tensor:
        return loss(*(encoder(encoder.tokenize(column)) for column in texts))

    return timing.repeat(timing.optimize(forward, encoder, precision), steps)


def simcse(model: Path, inputs: dict[str, Any], steps: int, precision: timing.Precision) -> timing.Clock:
    sentences = [["", text] for text in inputs["simcse"]]
    return _contrastive(model, [sentences, sentences], steps, precision, 20.0, attention_dropout=0.3)


def supervised(model: Path, inputs: dict[str, Any], steps: int, precision: timing.Precision) -> timing.Clock:
    columns = columns_of(inputs["supervised"], inputs["instruction"])
    return _contrastive(model, columns, steps, precision, 50.0)


TASKS = {
    **{task: encode(task) for task in ("encode_short", "encode_mixed", "encode_long")},
    "mntp": mntp,
    "simcse": simcse,
    "supervised": supervised,
}

if __name__ == "__main__":
    timing.main(TASKS, ["llm2vec", "torch", "transformers", "peft"])
