"""What all sides are given, and how much arithmetic it takes at least."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from masked import masked_blocks
from transformers import AutoConfig, AutoTokenizer

from l2v.text.masking import IGNORED

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
ENCODE = ("encode_short", "encode_mixed", "encode_long")
TRAIN = ("mntp", "simcse", "supervised", "supervised_16x")


@dataclass(frozen=True)
class Size:
    """Rows of each task. The words of a text are cut from running text."""

    short: int = 512
    mixed: int = 512
    long: int = 32
    longest: int = 350
    """Words."""
    blocks: int = 8
    block_length: int = 256
    sentences: int = 32
    triplets: int = 16
    passage: int = 88
    """Words of a positive or negative."""


SMALL = Size(short=4, mixed=4, long=2, longest=20, blocks=2, block_length=16, sentences=4, triplets=2, passage=10)


def make(folder: Path, paragraphs: Sequence[str], sentences: Sequence[str], size: Size) -> dict[str, Any]:
    """``inputs.json`` for the model in ``folder/model``: texts, token ids, and the tokens that each task reads."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    draw = np.random.default_rng(0)
    words = " ".join(paragraphs).split()

    def cut(lengths: Sequence[int]) -> list[str]:
        begins = draw.integers(0, max(1, len(words) - size.longest), len(lengths))
        return [" ".join(words[begin : begin + length]) for begin, length in zip(begins, lengths, strict=True)]

    # a standard deviation of 0.8 in the logarithm: a sixth of the texts is longer than 90 words
    mixed = np.exp(draw.normal(np.log(40), 0.8, size.mixed)).round().clip(3, size.longest).astype(int)
    chosen = draw.permutation(len(sentences))[: size.sentences + 16 * size.triplets]
    queries = [sentences[row] for row in chosen[size.sentences :]] or list(sentences)
    queries = [queries[row % len(queries)] for row in range(16 * size.triplets)]
    passages = cut(draw.integers(size.passage // 2, 3 * size.passage // 2, 2 * len(queries)).tolist())
    texts: dict[str, Any] = {
        "encode_short": cut(draw.integers(3, 13, size.short).tolist()),
        "encode_mixed": cut(mixed.tolist()),
        "encode_long": cut([size.longest] * size.long),
        "simcse": [sentences[row] for row in chosen[: size.sentences]],
        "supervised_16x": [
            {"query": query, "positive": passages[2 * row], "negative": passages[2 * row + 1]}
            for row, query in enumerate(queries)
        ],
    }
    texts["supervised"] = texts["supervised_16x"][: size.triplets]
    masked, labels = masked_blocks(tokenizer, paragraphs, rows=size.blocks, length=size.block_length)

    def tokens(strings: Sequence[str]) -> int:
        return sum(map(len, tokenizer(list(strings)).input_ids))

    def of_triplets(rows: list[dict[str, str]]) -> int:
        return tokens([f"{INSTRUCTION}: {row['query']}" for row in rows]) + tokens(
            [row[part] for row in rows for part in ("positive", "negative")]
        )

    inputs = {
        **texts,
        "mntp": {"ids": masked.tolist(), "labels": labels.tolist()},
        "instruction": INSTRUCTION,
        "tokens": {
            **{task: tokens(texts[task]) for task in ENCODE},
            "mntp": masked.numel(),
            "simcse": 2 * tokens(texts["simcse"]),  # two views
            **{task: of_triplets(texts[task]) for task in ("supervised", "supervised_16x")},
        },
        "hidden_tokens": int((labels != IGNORED).sum()),
    }
    (folder / "inputs.json").write_text(json.dumps(inputs), encoding="utf-8")
    return inputs


def floor_flops(task: str, inputs: dict[str, Any], model: Path) -> float:
    """Operations that a step cannot do without: the blocks' linear layers on real tokens, forward and, in training, the
    gradient of activations (the weights are frozen); the output head at hidden tokens only. Attention is left out."""
    config = AutoConfig.from_pretrained(model)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    hidden, inner = config.hidden_size, config.intermediate_size
    attention = 2 * hidden * head * (config.num_attention_heads + config.num_key_value_heads)
    weights = config.num_hidden_layers * (attention + 3 * hidden * inner)
    passes = 1 if task in ENCODE else 2
    flops = 2.0 * passes * inputs["tokens"][task] * weights
    if task == "mntp":
        flops += 2.0 * passes * inputs["hidden_tokens"] * hidden * config.vocab_size
    return flops
