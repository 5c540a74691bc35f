"""Models of a few thousand random weights, and a real tokenizer, made on the spot."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

SENTENCES = [
    "A cat sat on the mat, and the cat looked at the dog.",
    "The dog sat on the other mat and looked at the cat.",
    "Find the sentence that means the same: the weather is fine today.",
    "It rained all day, so the dog stayed in the house with the cat.",
    "An encoder reads a whole sentence and gives one vector for it.",
    "The quick brown fox jumps over the lazy dog while the cat looks on.",
]
_VOCABULARY = 384


def make_tiny_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on ``SENTENCES``; it has <s> and </s>, and puts <s> first where ``bos``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if bos:
        first = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
        tokenizer.post_processor = first
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def make_tiny_decoder(family: str = "llama", *, tied: bool = True, **config_overrides: Any) -> PreTrainedModel:
    """A seeded causal language model of a family (a ``model_type`` of transformers), in memory."""
    settings = {
        "vocab_size": _VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,  # ten times the usual: a token must be seen to move the others
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
        "tie_word_embeddings": tied,
    }
    config = AutoConfig.for_model(family, **settings | config_overrides)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def make_tiny_model(
    folder: Path, *, family: str = "llama", tied: bool = True, bos: bool = False, **config_overrides: Any
) -> Path:
    """Write a tiny decoder and its tokenizer as a transformers folder, and return the folder."""
    make_tiny_decoder(family, tied=tied, **config_overrides).save_pretrained(folder)
    make_tiny_tokenizer(bos=bos).save_pretrained(folder)
    return folder
