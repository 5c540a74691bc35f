"""llm2vec's side: its own classes, as its training scripts put them together, around random weights. Never imports l2v.

Its configs for Llama 3 8B have bfloat16 weights, no autocast (PEFT computes adapters in float32) and gradient
checkpointing.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import shapes
import steps
import torch
from llm2vec import LLM2Vec
from llm2vec.llm2vec import batch_to_device
from llm2vec.loss.utils import load_loss
from llm2vec.models import LlamaBiForMNTP, LlamaBiModel
from llm2vec_parts import LORA, columns_of, freeze_all_but_lora, prepared
from peft import get_peft_model
from transformers import LlamaConfig


def load(kind: type, options: dict[str, Any], *, attention_dropout: float = 0.0) -> Any:
    """A model of random weights, made on the device."""
    settings = shapes.TINY if options["small"] else shapes.LLAMA_3_8B
    config = LlamaConfig(
        **settings,
        rope_theta=shapes.ROPE_THETA,
        attention_dropout=attention_dropout,
        attn_implementation=options["attention"],
        use_cache=False,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(steps.dtype())
    try:
        with torch.device(steps.device()):
            model = kind(config)
    finally:
        torch.set_default_dtype(before)
    if options.get("checkpointing"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def encoder_around(model: Any, options: dict[str, Any], max_length: int) -> LLM2Vec:
    tokenizer = shapes.make_tokenizer((shapes.TINY if options["small"] else shapes.LLAMA_3_8B)["vocab_size"])
    tokenizer.padding_side = "left"
    return LLM2Vec(model, tokenizer, max_length=max_length, doc_max_length=max_length)


def encode(folder: Path, inputs: dict[str, Any], options: dict[str, Any]) -> list[dict[str, float]]:
    encoder = encoder_around(load(LlamaBiModel, options), options, 512)
    texts = [["", text] for text in inputs["encode_mixed"]]
    settings = {"batch_size": options["batch"], "show_progress_bar": False, "convert_to_numpy": True}
    return steps.repeat(lambda: encoder.encode(texts, **settings), options)


def _autocast(options: dict[str, Any]) -> torch.autocast:
    return torch.autocast(steps.device(), torch.bfloat16, enabled=options.get("autocast", False))


def mntp(folder: Path, inputs: dict[str, Any], options: dict[str, Any]) -> list[dict[str, float]]:
    whole = load(LlamaBiForMNTP, options)
    whole.model = get_peft_model(whole.model, LORA)
    freeze_all_but_lora(whole)
    whole.train()
    ids, labels = (torch.tensor(inputs["mntp"][name], device=steps.device()) for name in ("ids", "labels"))
    parts = zip(ids.split(options["rows"]), labels.split(options["rows"]), strict=True)

    def loss_of(ids: torch.Tensor, labels: torch.Tensor) -> Callable[[], torch.Tensor]:
        def loss() -> torch.Tensor:
            with _autocast(options):
                return whole(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss

        return loss

    return steps.repeat(steps.optimize([loss_of(*part) for part in parts], whole), options)


def _contrastive(
    columns: list[list[list[str]]], options: dict[str, Any], scale: float, max_length: int, dropout: float
) -> list[dict[str, float]]:
    """A step of SimCSETrainer or SupervisedTrainer: a forward pass a column of texts, then the loss."""
    model = get_peft_model(load(LlamaBiModel, options, attention_dropout=dropout), LORA)
    encoder = encoder_around(model, options, max_length)
    encoder.train()
    loss = load_loss("HardNegativeNLLLoss", scale=scale)
    texts = prepared(encoder, columns)

    def forward() -> torch.Tensor:
        with _autocast(options):
            return loss(*(encoder(batch_to_device(encoder.tokenize(column), steps.device())) for column in texts))

    return steps.repeat(steps.optimize([forward], encoder), options)


def simcse(folder: Path, inputs: dict[str, Any], options: dict[str, Any]) -> list[dict[str, float]]:
    sentences = [["", text] for text in inputs["simcse"][: options["rows"]]]
    return _contrastive([sentences, sentences], options, 20.0, 128, dropout=0.3)


def supervised(folder: Path, inputs: dict[str, Any], options: dict[str, Any]) -> list[dict[str, float]]:
    rows = inputs["supervised_16x"][: options["rows"]]
    return _contrastive(columns_of(rows, inputs["instruction"]), options, 50.0, 512, dropout=0.0)


TASKS: dict[str, steps.Task] = {
    "encode_mixed": encode,
    "mntp": mntp,
    "simcse": simcse,
    "supervised_16x": supervised,
}

if __name__ == "__main__":
    steps.main(TASKS)
