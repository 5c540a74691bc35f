"""What both llm2vec sides put together the same way. Runs in llm2vec's environment; never imports l2v."""

from typing import Any

from llm2vec import LLM2Vec
from peft import LoraConfig

LORA = LoraConfig(
    r=16,
    lora_alpha=32,
    lora_dropout=0.05,
    bias="none",
    task_type=None,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)


def prepared(encoder: LLM2Vec, columns: list[list[list[str]]]) -> list[list[str]]:
    """Columns of pairs of instruction and text, as its trainers hand them to the tokenizer."""
    return [
        [encoder.prepare_for_tokenization(encoder._convert_to_str(instruction, text)) for instruction, text in column]
        for column in columns
    ]


def columns_of(triplets: list[dict[str, str]], instruction: str) -> list[list[list[str]]]:
    """Queries, positives and negatives, each with its instruction."""
    queries = [[instruction + ":", row["query"]] for row in triplets]
    return [queries, *([["", row[part]] for row in triplets] for part in ("positive", "negative"))]


def freeze_all_but_lora(model: Any) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
