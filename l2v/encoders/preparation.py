"""Texts to what an encoder takes, without its model: for loader processes that read and tokenize ahead."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from l2v.text.prompts import Prompt
from l2v.text.tokenization import Tokens, pad, tokenize


class Preparation(Protocol):
    """Of one encoder and one instruction; it can be pickled."""

    def items(self, texts: Sequence[str]) -> list[Any]:
        """The texts, ready to be put into batches."""
        ...

    def length(self, item: Any) -> int:
        """How long an item is: batches hold items of like length."""
        ...

    def collate(self, items: Sequence[Any]) -> dict[str, Any]:
        """A batch, as the encoder's ``embed`` takes it; tensors in it are moved to its device before."""
        ...


@dataclass(frozen=True)
class TokenPreparation:
    """Texts as tokens, padded to the longest of a batch."""

    tokenizer: PreTrainedTokenizerBase
    prompt: Prompt
    max_length: int
    text_max_length: int | None
    padding_side: str
    instruction: str | None = None

    def items(self, texts: Sequence[str]) -> list[Tokens]:
        return tokenize(
            texts,
            self.tokenizer,
            max_length=self.max_length,
            instructions=[self.instruction] * len(texts),
            prompt=self.prompt,
            text_max_length=self.text_max_length,
        )

    def length(self, item: Tokens) -> int:
        return len(item.input_ids)

    def collate(self, items: Sequence[Tokens]) -> dict[str, Any]:
        return {**pad(items, self.tokenizer.pad_token_id, self.padding_side)}


@dataclass(frozen=True)
class TextPreparation:
    """Texts as they are, for a library that tokenizes by itself."""

    instruction: str | None = None

    def items(self, texts: Sequence[str]) -> list[str]:
        return list(texts)

    def length(self, item: str) -> int:
        return len(item)

    def collate(self, items: Sequence[str]) -> dict[str, Any]:
        return {"texts": list(items), "instruction": self.instruction}
