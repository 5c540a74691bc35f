"""llm2vec's side: its own classes, as its training scripts put them together. Never imports l2v."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
import torch
from llm2vec import LLM2Vec
from llm2vec.loss.utils import load_loss
from llm2vec.models import LlamaBiForMNTP
from peft import LoraConfig, get_peft_model

LORA = LoraConfig(
    r=16,
    lora_alpha=32,
    lora_dropout=0.05,
    bias="none",
    task_type=None,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)


def encode(task: str) -> Callable[[Path, dict[str, Any], int], timing.Clock]:
    def run(model: Path, inputs: dict[str, Any], steps: int) -> timing.Clock:
        encoder = LLM2Vec.from_pretrained(str(model), max_length=512, doc_max_length=512, torch_dtype=torch.float32)
        texts = [["", text] for text in inputs[task]]
        encoder.encode(texts[:8], batch_size=32, show_progress_bar=False)
        clock = timing.Clock(warmup=0)
        for _ in range(steps):
            clock.begin()
            encoder.encode(texts, batch_size=32, show_progress_bar=False, convert_to_numpy=True)
            clock.end()
        return clock

    return run


def mntp(model: Path, inputs: dict[str, Any], steps: int) -> timing.Clock:
    whole = LlamaBiForMNTP.from_pretrained(model, torch_dtype=torch.float32)
    whole.model = get_peft_model(whole.model, LORA)
    for name, parameter in whole.named_parameters():
        parameter.requires_grad_("lora_" in name)
    whole.train()
    ids, labels = (torch.tensor(inputs["mntp"][name]) for name in ("ids", "labels"))
    mask = torch.ones_like(ids)
    step = timing.optimize(lambda: whole(input_ids=ids, attention_mask=mask, labels=labels).loss, whole)
    return timing.repeat(step, steps)


def _contrastive(
    model: Path, columns: list[list[list[str]]], steps: int, scale: float, **settings: Any
) -> timing.Clock:
    """A step of SimCSETrainer or SupervisedTrainer: a forward pass a column of texts, then the loss."""
    encoder = LLM2Vec.from_pretrained(
        str(model), max_length=512, doc_max_length=512, torch_dtype=torch.float32, **settings
    )
    encoder.model = get_peft_model(encoder.model, LORA)
    encoder.train()
    loss = load_loss("HardNegativeNLLLoss", scale=scale)
    texts = [
        [encoder.prepare_for_tokenization(encoder._convert_to_str(instruction, text)) for instruction, text in column]
        for column in columns
    ]

    def forward() -> torch.Tensor:
        return loss(*(encoder(encoder.tokenize(column)) for column in texts))

    return timing.repeat(timing.optimize(forward, encoder), steps)


def simcse(model: Path, inputs: dict[str, Any], steps: int) -> timing.Clock:
    sentences = [["", text] for text in inputs["simcse"]]
    return _contrastive(model, [sentences, sentences], steps, 20.0, attention_dropout=0.3)


def supervised(model: Path, inputs: dict[str, Any], steps: int) -> timing.Clock:
    rows = inputs["supervised"]
    queries = [[inputs["instruction"] + ":", row["query"]] for row in rows]
    documents = [[["", row[part]] for row in rows] for part in ("positive", "negative")]
    return _contrastive(model, [queries, *documents], steps, 50.0)


TASKS = {
    **{task: encode(task) for task in ("encode_short", "encode_mixed", "encode_long")},
    "mntp": mntp,
    "simcse": simcse,
    "supervised": supervised,
}

if __name__ == "__main__":
    timing.main(TASKS, ["llm2vec", "torch", "transformers", "peft"])
