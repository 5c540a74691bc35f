"""How well a model fills in hidden tokens: what MNTP teaches, measured the same way for every model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from l2v.data.collate import MaskedBlocks
from l2v.data.datamodule import spread
from l2v.data.texts import TextSource
from l2v.data.tokens import block_rows
from l2v.encoders.text_encoder import TextEncoder, with_backbone
from l2v.errors import L2VError
from l2v.evaluation.task import Task
from l2v.losses.masked_tokens import masked_token_loss
from l2v.progress import track
from l2v.text.masking import Strategy
from l2v.text.tokenization import mask_token_id
from l2v.text.vocabulary import token_count


@dataclass(frozen=True)
class MaskedAccuracy(Task):
    """Share of hidden tokens that the model's first guess names, from the state one position before each.

    The same tokens are hidden at every call. A causal model sees only what is before a hidden token.
    """

    texts: TextSource
    block_length: int = 128
    """Tokens a row."""
    rows: int = 64
    probability: float = 0.2
    """Fraction of tokens to hide."""
    strategy: Strategy = "all"
    mask_token: str = "_"
    batch_size: int = 16

    label: str = "Masked-token accuracy"
    metric: str = "accuracy"
    needs_head: bool = True
    needs_backbone = True

    def evaluated_texts(self) -> Iterator[str]:
        """All texts that rows are taken from."""
        return self.texts.texts()

    @torch.no_grad()
    def run(self, encoder: TextEncoder, *, show: bool = False) -> dict[str, float]:
        """``accuracy``, ``loss`` (nats a hidden token) and ``tokens`` (how many were hidden)."""
        model = with_backbone(encoder, self.label)
        backbone = model.backbone
        if backbone.head is None:
            raise L2VError(f"{self.label} needs the model's output head: load the encoder with with_head=True")
        data = spread(block_rows(self.texts, backbone.tokenizer, self.block_length, show=show), self.rows)
        collate = MaskedBlocks(
            probability=self.probability,
            strategy=self.strategy,
            mask_token_id=mask_token_id(backbone.tokenizer, self.mask_token),
            vocabulary_size=token_count(backbone.tokenizer),
            unmaskable=tuple(backbone.tokenizer.all_special_ids),
            seed=0,
        )
        blocks = [(row, number) for number, row in enumerate(data)]
        batches = [blocks[begin : begin + self.batch_size] for begin in range(0, len(blocks), self.batch_size)]
        loss = correct = count = 0.0
        for rows in track(batches, "filling in hidden tokens", show=show):
            batch = collate(rows)
            tensors = (batch[name].to(model.device) for name in ("input_ids", "attention_mask", "labels"))
            logits, targets = backbone.predict_masked(*tensors)
            loss += masked_token_loss(logits, targets, torch.ones(())).item()
            correct += (logits.argmax(dim=-1) == targets).sum().item()
            count += len(targets)
        if not math.isfinite(loss):
            raise L2VError(f"{self.label}: the loss is not finite; use dtype=float32 or dtype=bfloat16")
        return {"accuracy": correct / count, "loss": loss / count, "tokens": count}
