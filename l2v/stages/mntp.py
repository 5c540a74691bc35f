"""Masked next token prediction (paper, section 2.1)."""

import math
from typing import Annotated, Any

import datasets
import torch
from annotated_types import Gt, Le
from torch import Tensor

from l2v.data.collate import MaskedBlocks
from l2v.data.texts import TextSource
from l2v.data.tokens import block_rows
from l2v.losses.masked_tokens import masked_token_loss
from l2v.models.backbone import Backbone
from l2v.stages.stage import Stage
from l2v.text.masking import IGNORED, Strategy
from l2v.text.tokenization import mask_token_id
from l2v.text.vocabulary import token_count


class MNTP(Stage):
    """Hide some tokens of packed text blocks and predict each from the state one position before it.

    Args:
        block_length: tokens a row.
        masking_probability: fraction of tokens to hide and predict.
        masking_strategy: bert (80% mask token, 10% random, 10% kept) or all (always the mask token).
        mask_token: a token of the vocabulary that stands for a hidden one.
        micro_batch_tokens: run the rows forward and backward in passes of at most that many tokens: the same step in
            the memory of one of them. None runs one pass. Split weights (FSDP2) are gathered for each.
        settings: see :class:`~l2v.stages.stage.Stage`.
    """

    needs_head = True

    def __init__(
        self,
        *,
        block_length: Annotated[int, Gt(1)] = 512,
        masking_probability: Annotated[float, Gt(0), Le(1)] = 0.2,
        masking_strategy: Strategy = "bert",
        mask_token: str = "_",
        micro_batch_tokens: Annotated[int, Gt(0)] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.block_length = block_length
        self.masking_probability = masking_probability
        self.masking_strategy: Strategy = masking_strategy
        self.mask_token = mask_token
        self.micro_batch_tokens = micro_batch_tokens

    def attach(self, backbone: Backbone, seed: int) -> None:
        super().attach(backbone, seed)
        backbone.check_length(self.block_length, "stage.block_length")
        self.mask_token_id = mask_token_id(backbone.tokenizer, self.mask_token)

    def rows(self, source: TextSource, *, show: bool) -> datasets.Dataset:
        return block_rows(source, self.backbone.tokenizer, self.block_length, show=show)

    def collator(self, *, training: bool) -> MaskedBlocks:
        tokenizer = self.backbone.tokenizer
        return MaskedBlocks(
            probability=self.masking_probability,
            strategy=self.masking_strategy,
            mask_token_id=self.mask_token_id,
            vocabulary_size=token_count(tokenizer),
            unmaskable=tuple(tokenizer.all_special_ids),
            # validation hides the same tokens whatever the seed, so that runs can be compared
            seed=self.seed if training else 0,
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        labels = batch["labels"]
        total = self.backbone.masked_loss(
            batch["input_ids"], batch["attention_mask"], labels, micro_batch_tokens=self.micro_batch_tokens
        )
        # the mean over the masked tokens of all ranks: DDP averages the ranks' losses
        hidden = (labels[:, 1:] != IGNORED).sum().float()
        everywhere, count = self.trainer.strategy.reduce(torch.stack([total.detach(), hidden]), reduce_op="mean")
        count = count.clamp(min=1)
        self.log("train/loss", everywhere / count, prog_bar=True)
        return total / count

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        logits, targets = self.backbone.predict_masked(batch["input_ids"], batch["attention_mask"], batch["labels"])
        self.add_to_validation(
            loss=masked_token_loss(logits, targets, torch.ones(())),
            correct=(logits.argmax(dim=-1) == targets).sum(),
            count=torch.tensor(len(targets)),
        )

    def on_validation_epoch_end(self) -> None:
        sums = self.validation_sums()
        count = max(sums["count"], 1)
        loss = sums["loss"] / count
        self.log("validation/loss", loss, prog_bar=True)
        self.log("validation/accuracy", sums["correct"] / count, prog_bar=True)
        self.log("validation/perplexity", math.exp(min(loss, 50)))
