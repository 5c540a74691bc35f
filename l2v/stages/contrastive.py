"""What the contrastive stages share: how texts become vectors, and the vectors of all ranks."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, cast

import torch
from annotated_types import Ge
from torch import Tensor

from l2v.data.text_mix import TextMixRows
from l2v.errors import L2VError
from l2v.models.backbone import Backbone
from l2v.pooling import Pooling, PoolingName
from l2v.stages.stage import Stage
from l2v.text.prompts import SEPARATOR, PooledTokens, Prompt, SpecialTokens

_TEXTS = ("input_ids", "attention_mask", "pool_mask", "position_ids")


class ContrastiveStage(Stage):
    """A stage that trains on vectors of texts.

    Of several sets of texts, such as languages, a batch comes from one, as in supervised training: a negative in
    another language is told apart by its language, which says nothing about meaning and drives the languages apart.

    Args:
        max_length: tokens a text, instruction included.
        pooling: mean, weighted_mean, last_token, bos, or that of ``model.pooling``, whose weights are trained.
        template: around instruction and text, see :class:`~l2v.text.prompts.Prompt`; None: nothing.
        pooled_tokens: after_prompt, text or all.
        special_tokens: in a text: tokens or text.
        micro_batch_tokens: split a forward pass into passes of at most that many tokens, rows sorted by length: less
            padding to compute. None runs one pass. Split weights (FSDP2) are gathered for each.
        grad_cache: go through the backward pass one micro-batch at a time too: the memory of one of them, whatever the
            batch size, for another forward pass.
        settings: see :class:`~l2v.stages.stage.Stage`.
    """

    trains_pooling = True
    one_set_a_batch = True

    def __init__(
        self,
        *,
        max_length: Annotated[int, Ge(1)],
        pooling: PoolingName | Pooling | None = "mean",
        template: str | None = None,
        pooled_tokens: PooledTokens = "after_prompt",
        special_tokens: SpecialTokens = "tokens",
        micro_batch_tokens: Annotated[int, Ge(1)] | None = None,
        grad_cache: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if grad_cache and micro_batch_tokens is None:
            raise L2VError(
                "stage.grad_cache=true needs stage.micro_batch_tokens: the tokens whose activations fit in memory at "
                "once"
            )
        self.max_length = max_length
        self.pooling: PoolingName | Pooling = pooling or "mean"
        self.template = template
        self.pooled_tokens: PooledTokens = pooled_tokens
        self.special_tokens: SpecialTokens = special_tokens
        self.micro_batch_tokens = micro_batch_tokens
        self.grad_cache = grad_cache
        self._kept: list[list[Tensor]] = []

    def prompt(self, separator: str = SEPARATOR) -> Prompt:
        """What stands around a text, and ``separator`` between an instruction and it."""
        return Prompt.of(
            self.backbone.tokenizer,
            template=self.template,
            separator=separator,
            pooled_tokens=self.pooled_tokens,
            special_tokens=self.special_tokens,
        )

    def attach(self, backbone: Backbone, seed: int) -> None:
        super().attach(backbone, seed)
        backbone.check_length(self.max_length, "stage.max_length")

    def texts_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The part of a batch that :meth:`embed` takes."""
        return {name: batch[name] for name in _TEXTS if name in batch}

    def embed(self, texts: dict[str, Tensor], layers: Sequence[int] = ()) -> Tensor:
        """The vectors (texts, hidden), in float32, of a :class:`~l2v.text.tokenization.Batch` of texts.

        With ``layers`` (texts, depths, hidden), as :meth:`~l2v.models.backbone.Backbone.embed` gives them.
        """
        pooling = self.backbone.pooling if isinstance(self.pooling, Pooling) else self.pooling
        assert pooling is not None
        return self.backbone.embed(
            **texts,
            pooling=pooling,
            micro_batch_tokens=self.micro_batch_tokens,
            grad_cache=self.grad_cache,
            layers=layers,
        )

    def on_validation_epoch_start(self) -> None:
        self._kept = []

    def keep(self, keys: Tensor, *of_rows: Tensor) -> None:
        """Keep tensors (rows, ...) of a validation batch until its end.

        Args:
            keys: of the rows (rows,); negative for fillers, which are left out.
            of_rows: whatever they have.
        """
        self._kept.append([part[keys >= 0].detach() for part in (keys, *of_rows)])

    def kept(self) -> Iterator[list[Tensor]]:
        """What was kept on all ranks, in batches of one set: the same ones on any number of ranks, and whatever part of
        a step a rank has at a time. One of fewer than two rows is left out.

        They have ``global_batch_size`` rows, or ``batch_size`` where that is given.

        Raises:
            L2VError: there is no other.
        """
        keys, *of_rows = (torch.cat(self.gather_rows(torch.cat(parts))) for parts in zip(*self._kept, strict=True))
        self._kept = []
        rows = self.trainer.datamodule.validation_rows  # type: ignore[attr-defined]
        sets = torch.zeros_like(keys)
        if isinstance(rows, TextMixRows):
            sets = torch.from_numpy(rows.sets).to(keys)[keys]
        order, size = keys.argsort(), self.global_batch_size or self.batch_size
        of_sets = [order[sets[order] == number] for number in sets.unique()]
        batches = [batch for own in of_sets for batch in own.split(size) if len(batch) > 1]
        if not batches:
            raise L2VError("data.validation, data.held_out, stage.validation_rows: expected two texts or more")
        for batch in batches:
            yield [part[batch] for part in of_rows]

    def log_loss(self, loss: Tensor) -> None:
        """Log the mean of the ranks' losses."""
        self.log("train/loss", self.trainer.strategy.reduce(loss.detach().clone(), reduce_op="mean"), prog_bar=True)

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        """The rows of every rank, in the order of the ranks, which may have different numbers of them.

        A gradient goes back to the rank that the rows came from, summed over the ranks that used them.
        """
        if self.trainer.world_size == 1:
            return [rows]
        counts = cast(Tensor, self.all_gather(torch.tensor(len(rows), device=self.device))).tolist()
        padded = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])])
        gathered = self.all_gather(padded, sync_grads=rows.is_floating_point() and torch.is_grad_enabled())
        return [part[:count] for part, count in zip(cast(Tensor, gathered), counts, strict=True)]
