"""The shared backbone: a decoder, bidirectional, with an adapter on it. Every stage trains one of these."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from l2v.errors import L2VError
from l2v.kernels.attention import is_registered
from l2v.kernels.devices import is_planned, kind_of
from l2v.kernels.grad_cache import embed_in_parts, sum_in_parts
from l2v.kernels.linear import FastLinear, keep_products
from l2v.kernels.masked_loss import Scores, summed_cross_entropy
from l2v.kernels.memory import giving_memory_back
from l2v.kernels.speed import speed_up
from l2v.models.adapters import Lora, Saved, load_adapter, new_adapter
from l2v.models.bidirectional import Attention, accepts_position_ids, has_alibi, learned_positions
from l2v.models.compatibility import write_for_transformers_4
from l2v.models.depth import depth_of, states_of_depths
from l2v.models.loading import choose_attn_implementation, load_decoder, set_attention_dropout, state_size
from l2v.models.merging import Unmerged, is_plain, merge_and_unload
from l2v.models.packing import packed_states, prove_packing
from l2v.models.proof import Proof
from l2v.models.quiet import quiet
from l2v.models.settings import AttnImplementation, Checkpointing, EncoderSettings
from l2v.models.sharding import is_split, most_of_all, put_back
from l2v.pooling import Pooling, PoolingName, pool
from l2v.progress import say
from l2v.runs.files import draft_folder, make_readable
from l2v.runs.locations import Source, locate
from l2v.text.masking import IGNORED
from l2v.text.tokenization import position_ids

_OF_A_ROW = 4096
"""Tokens at most of several texts in one row, whose mask is of all pairs."""


@dataclass(frozen=True)
class _Unfinished:
    """What loading leaves to be done."""

    unmerged: Unmerged
    attn_implementation: AttnImplementation
    partial: bool


class Backbone(nn.Module):
    """A decoder turned encoder: ids in, token states or pooled vectors out.

    Attributes:
        decoder: the inner decoder (no output head), or a ``PeftModel`` around it.
        head: the frozen output head, when loaded with one. It is the input embedding where the model ties them.
        tokenizer: the decoder's tokenizer; it has a padding token and pads on the right.
        pooling: one with weights, which are trained, kept and moved with the decoder's; None for those by name.
        proof: what was seen when the attention was proven at loading.
        positions: tokens that a row may have, where the model has learned its positions; None: any number.

    Example:
        >>> from l2v import Backbone
        >>> backbone = Backbone.load("model")
        >>> batch = backbone.tokenizer(["A dog barks.", "A puppy."], padding=True, return_tensors="pt")
        >>> states = backbone(batch["input_ids"], batch["attention_mask"])
        >>> states.shape == (*batch["input_ids"].shape, backbone.hidden_size)
        True
    """

    def __init__(
        self,
        decoder: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        head: nn.Module | None = None,
        source: Source,
        proof: Proof | None = None,
        attention: Attention = "bidirectional",
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = head
        self.tokenizer = tokenizer
        self.source = source
        self.proof: Proof
        if proof is not None:
            self.proof = proof
        self._unfinished: _Unfinished | None = None
        self.attention: Attention = attention
        self.pooling: Pooling | None = None
        self.positions = learned_positions(decoder)
        self._accepts_position_ids = accepts_position_ids(decoder)
        self._keeps_apart: bool | None = None  # the texts of a row; None: not tried yet
        if head is not None:
            head.requires_grad_(False)

    @staticmethod
    @giving_memory_back()
    def load(
        source: str | Source,
        settings: EncoderSettings | None = None,
        *,
        attention_dropout: float | None = None,
        gradient_checkpointing: Checkpointing = False,
        with_head: bool = False,
        head_source: Source | None = None,
        merge: Sequence[Path] = (),
        device: str | torch.device = "cpu",
        **given: Any,
    ) -> "Backbone":
        """Load a decoder, merge adapters into it, set its attention and prove it.

        Args:
            source: a hub id, a folder, a GGUF file or ``package:NAME/FILE.gguf``.
            settings: how it is loaded; None: as ``given`` says.
            attention_dropout: probability in the attention weights while training; None leaves the model's own.
            gradient_checkpointing: recompute activations in the backward pass: all of them, or ``selective``, what lies
                between the LoRA layers, whose products are kept.
            with_head: load the output head too, for MNTP.
            head_source: where to take the head from if ``source`` has none of its own.
            merge: adapter folders to merge into the weights, in order, in float32.
            device: where the weights go and where the proof runs. With ``meta`` they stay in their files, nothing is
                merged or proven, and :func:`~l2v.models.sharding.shard` does all that, layer by layer.
            given: settings one by one: revision, attention, attn_implementation, dtype, quantization, partial, kind,
                trust_remote_code of :class:`~l2v.models.settings.EncoderSettings`.

        Raises:
            L2VError: the source is missing, is of another kind, or fails the proof.
        """
        wanted = settings or EncoderSettings(source.name if isinstance(source, Source) else source)
        wanted = replace(wanted, **given)
        place = source if isinstance(source, Source) else locate(source, wanted.revision).shallower(wanted.layers)
        attention = wanted.attention or "bidirectional"
        loaded = load_decoder(
            place, wanted, attention, with_head=with_head, head_source=head_source, merge=merge, device=device
        )
        decoder = loaded.decoder
        if attention_dropout is not None:
            set_attention_dropout(decoder, attention_dropout)
        speed_up(decoder)
        backbone = Backbone(decoder, loaded.tokenizer, head=loaded.head, source=place, attention=attention)
        backbone._unfinished = _Unfinished(loaded.unmerged, wanted.attn_implementation, wanted.partial)
        if torch.device(device).type != "meta":
            backbone.prove()
        if gradient_checkpointing:
            kept = {"context_fn": keep_products} if gradient_checkpointing == "selective" else {}
            with quiet():
                decoder.gradient_checkpointing_enable({"use_reentrant": False, **kept})
        return backbone.eval()

    def settle(self, part: nn.Module) -> None:
        """Merge and cast the weights in a part of a backbone that was loaded to no device yet."""
        if self._unfinished is not None:
            self._unfinished.unmerged.settle(part)

    def prove(self) -> None:
        """Choose the attention implementation and prove it, once, when the weights are where they are to be.

        Raises:
            L2VError: the proof fails.
        """
        if self._unfinished is None:
            return
        wanted, partial = self._unfinished.attn_implementation, self._unfinished.partial

        def run(_: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
            return self(ids, mask, position_ids(mask)).float()

        adapted = self.decoder
        decoder = cast(PreTrainedModel, adapted.get_base_model() if isinstance(adapted, PeftModel) else adapted)
        self.proof = choose_attn_implementation(decoder, wanted, self.attention, partial, run)
        self._unfinished = None
        if self.attention == "bidirectional" and has_alibi(self.config):
            say(
                f"{self.config.model_type}: its attention is biased towards later tokens (ALiBi), which are not the "
                "nearer ones without a causal mask; expect less of long texts",
                style="yellow",
            )

    @property
    def config(self) -> Any:
        return self.decoder.config

    @property
    def hidden_size(self) -> int:
        return state_size(self.config)

    def check_length(self, tokens: int, setting: str) -> None:
        """Raise an L2VError where rows of so many tokens would go beyond the positions that the model has learned."""
        if self.positions is not None and tokens > self.positions:
            raise L2VError(f"{setting}={tokens}: this model has learned {self.positions} positions; lower it to that")

    def usual_length(self, wanted: int | None) -> int:
        """Tokens of a text: as wanted, else 512, or fewer where the model has not learned so many positions."""
        return wanted or min(512, self.positions or 512)

    @property
    def has_adapter(self) -> bool:
        return isinstance(self.decoder, PeftModel)

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        position_ids: Int[Tensor, "batch length"] | None = None,
        *,
        segment_ids: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length hidden"]:
        """Token states of the last layer.

        Args:
            input_ids: token ids.
            attention_mask: 1 for tokens, 0 for padding.
            position_ids: needed only where rows are padded on the left.
            segment_ids: for rows that hold several texts: the number of the text that a token belongs to, 0 for
                padding. They take the place of the mask and the positions, and each text gets the states that it has
                alone. This is proven at the first use.

        Raises:
            L2VError: ``segment_ids`` are given and the decoder cannot keep the texts of a row apart.
        """
        if segment_ids is not None:
            self._prove_packing()
            return packed_states(self.decoder, input_ids, segment_ids)
        self.check_length(input_ids.shape[1], "tokens of a row")
        positions = {"position_ids": position_ids} if position_ids is not None and self._accepts_position_ids else {}
        output = self.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **positions)
        return output.last_hidden_state

    def embed(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        pool_mask: Int[Tensor, "batch length"],
        position_ids: Int[Tensor, "batch length"] | None = None,
        *,
        pooling: PoolingName | Pooling = "mean",
        micro_batch_tokens: int | None = None,
        grad_cache: bool = False,
        layers: Sequence[int] = (),
    ) -> Float[Tensor, "batch *depths hidden"]:
        """One float32 vector per row, (batch, hidden).

        With ``layers`` (batch, their number + 1, hidden): of the decoder cut after each of them, then of the whole one.

        With ``micro_batch_tokens`` the rows run sorted by length in several forward passes of at most that many
        tokens each: the same vectors, without computing a short text's padding up to the longest. On a CPU the texts
        of a pass are one row without any padding, where the decoder is proven to keep them apart.
        With ``grad_cache`` a backward pass needs the memory of one of these passes (:mod:`l2v.kernels.grad_cache`).
        """

        def run(ids: Tensor, mask: Tensor, text: Tensor, positions: Tensor | None) -> Tensor:
            if not layers:
                states = self._unpadded(ids, mask) if packs else self(ids, mask, positions)
                return pool(states, text, mask, pooling)
            states = states_of_depths(self, layers, ids, mask, positions)
            return torch.stack([pool(one, text, mask, pooling) for one in states], dim=1)

        packs = micro_batch_tokens is not None and not layers and self._packs_on(input_ids.device)
        if micro_batch_tokens is None:
            return run(input_ids, attention_mask, pool_mask, position_ids)
        lengths = attention_mask.sum(dim=1)
        order = lengths.argsort(descending=True)
        if packs:
            groups = packed_groups(order.tolist(), lengths.tolist(), min(micro_batch_tokens, _OF_A_ROW))
        else:
            groups = row_groups(order.tolist(), lengths.tolist(), micro_batch_tokens)
        if is_split(self):  # every process runs as many passes, the last of them for nothing
            groups += [[int(order[-1])]] * (most_of_all(len(groups), input_ids.device) - len(groups))
        parts = []
        on_the_left = bool(attention_mask[:, -1].all())  # is the padding, where there is any
        for rows in groups:
            width = int(lengths[rows[0]])
            columns = slice(-width, None) if on_the_left else slice(width)
            positions = None if position_ids is None else position_ids[rows, columns]
            ids, mask, text = (x[rows, columns] for x in (input_ids, attention_mask, pool_mask))
            parts.append((ids, mask, text, positions))
        if grad_cache and torch.is_grad_enabled():
            vectors = embed_in_parts(run, parts, self._own_parameters())
        else:
            vectors = torch.cat([run(*part) for part in parts])
        return vectors[: len(order)][order.argsort()]

    def _packs_on(self, device: torch.device) -> bool:
        """Whether texts go through the decoder in one row, by attention that computes no pairs of two texts."""
        plain = kind_of(device) == "cpu" and not is_planned() and not is_split(self)
        if not plain or self.config._attn_implementation != "sdpa" or not is_registered():
            return False
        if self._keeps_apart is None:
            try:
                self._prove_packing()
            except L2VError:
                self._keeps_apart = False
        return bool(self._keeps_apart)

    def _prove_packing(self) -> None:
        """Once: raise an L2VError where texts in one row reach each other."""
        if not self._keeps_apart:
            with torch.autocast(next(self.decoder.parameters()).device.type, enabled=False):
                prove_packing(self.decoder)
            self._keeps_apart = True

    def _unpadded(
        self, input_ids: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length hidden"]:
        """Token states of the last layer, with zeros for padding, of which none is computed."""
        self.check_length(int(attention_mask.sum(dim=1).max()), "tokens of a row")
        tokens = attention_mask.flatten().nonzero().flatten()
        if len(tokens) == attention_mask.numel():
            return self(input_ids, attention_mask)
        rows = (tokens // input_ids.shape[1] + 1).unsqueeze(0)
        states = packed_states(self.decoder, input_ids.flatten()[tokens].unsqueeze(0), rows)[0]
        padded = states.new_zeros(attention_mask.numel(), states.shape[-1])
        return padded.index_copy(0, tokens, states).unflatten(0, attention_mask.shape)

    def logits(self, states: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch vocabulary"]:
        """Vocabulary scores of token states, scaled and capped as the model's own forward does."""
        return self._scores()(states)

    def _scores(self) -> Scores:
        if self.head is None:
            raise RuntimeError("the backbone was loaded without its output head")
        return Scores.of(self.head, self.config.get_text_config())

    def predict_masked(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        labels: Int[Tensor, "batch length"],
    ) -> tuple[Float[Tensor, "masked vocabulary"], Int[Tensor, " masked"]]:
        """Vocabulary scores and ids of the hidden tokens, each from the state one position before it.

        Only those positions go through the output head: at 20% masking, a fifth of the logits.
        """
        hidden = labels[:, 1:] != IGNORED
        states = self(input_ids, attention_mask)[:, :-1]
        return self.logits(states[hidden]), labels[:, 1:][hidden]

    def masked_loss(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Int[Tensor, "batch length"],
        labels: Int[Tensor, "batch length"],
        *,
        micro_batch_tokens: int | None = None,
    ) -> Float[Tensor, ""]:
        """The summed cross entropy of the hidden tokens, in nats, for training.

        That of :meth:`predict_masked`, with the scores of some tokens at a time (:mod:`l2v.kernels.masked_loss`). With
        ``micro_batch_tokens`` the rows go forward and backward in passes of at most that many tokens, or of one row:
        the same gradients, in the memory of one pass.
        """

        def run(ids: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
            hidden = wanted[:, 1:] != IGNORED
            states = self(ids, mask)[:, :-1]
            return summed_cross_entropy(states[hidden], wanted[:, 1:][hidden], self._scores())

        rows = input_ids.shape[0] if micro_batch_tokens is None else max(1, micro_batch_tokens // input_ids.shape[1])
        if rows >= input_ids.shape[0] or not torch.is_grad_enabled():
            return run(input_ids, attention_mask, labels)
        parts = zip(input_ids.split(rows), attention_mask.split(rows), labels.split(rows), strict=True)
        return sum_in_parts(run, list(parts), self._own_parameters())

    def _own_parameters(self) -> Iterator[nn.Parameter]:
        """As the optimizer has them: of a split weight, this process's part."""
        put_back(self)
        return self.parameters()

    def add_pooling(self, pooling: Pooling, *, trainable: bool = False) -> None:
        """Keep a pooling's weights, in float32, with those of the decoder; ``trainable``: training changes them."""
        device = next(self.decoder.parameters()).device
        self.pooling = pooling.float().to(device).train(self.training).requires_grad_(trainable)

    def add_adapter(self, adapter: Lora | PeftConfig) -> None:
        """Put a new adapter on the decoder and freeze everything else of it."""
        with self._ready_for(adapter.config() if isinstance(adapter, Lora) else adapter):
            self.decoder = new_adapter(cast(PreTrainedModel, self.decoder), adapter)

    def load_adapter(self, folder: Path, *, training: Lora | PeftConfig | None = None) -> None:
        """Put a saved adapter on the decoder, to train it on with these settings or not. Its keys must fit exactly."""
        layers = None if self.source.layers is None else depth_of(self.config)
        with self._ready_for(Saved.read(folder).config):
            self.decoder = load_adapter(cast(PreTrainedModel, self.decoder), folder, training, layers=layers)

    def _ready_for(self, adapter: PeftConfig) -> contextlib.AbstractContextManager[None]:
        """Let an adapter find the weights that it would find, were nothing left to be done to them."""
        if self._unfinished is None:
            return contextlib.nullcontext()
        if is_plain(adapter):
            return self._unfinished.unmerged.presented()
        self.settle(self)
        return contextlib.nullcontext()

    def merge_adapter(self) -> None:
        """Merge the adapter into the decoder's weights, in float32, and take it off."""
        decoder = cast(PeftModel, self.decoder)
        for layer in decoder.modules():
            if isinstance(layer, FastLinear):
                layer.drop_copy()  # PEFT writes to the weight itself
        own = str(decoder.base_model.prefix)
        dtype = next(p.dtype for n, p in decoder.named_parameters() if own not in n and p.is_floating_point())
        self.decoder = merge_and_unload(decoder, dtype)

    def save_adapter(self, folder: Path) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``, in the layout of PEFT."""
        decoder = cast(PeftModel, self.decoder)
        decoder.peft_config["default"].base_model_name_or_path = self.source.name
        with draft_folder(folder) as draft:
            decoder.save_pretrained(str(draft), save_embedding_layers=False)
            (draft / "README.md").unlink(missing_ok=True)  # PEFT's empty model card

    def save(self, folder: Path) -> None:
        """Write the decoder without an adapter, and its tokenizer, as a transformers folder."""
        if self.has_adapter:
            raise RuntimeError("merge the adapter before saving the decoder")
        if getattr(self.decoder, "is_loaded_in_4bit", False):
            raise L2VError("an encoder with quantization=nf4 cannot be saved: load it without, and save that one")
        with quiet():
            self.decoder.save_pretrained(str(folder))
            self.tokenizer.save_pretrained(folder)
        write_for_transformers_4(folder)
        make_readable(folder.glob("*.safetensors"), folder)


def row_groups(
    order: Sequence[int], lengths: Sequence[int], budget: int | None, *, most: int | None = None
) -> list[list[int]]:
    """Cut row numbers, longest first, into groups of at most ``budget`` padded tokens and ``most`` rows.

    A group has one row at least.
    """
    groups: list[list[int]] = []
    begin = 0
    while begin < len(order):
        limits = [limit for limit in (budget and budget // lengths[order[begin]], most) if limit is not None]
        size = max(1, min(limits, default=len(order)))
        groups.append(list(order[begin : begin + size]))
        begin += size
    return groups


def packed_groups(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut row numbers into groups of about as many tokens, at most ``budget`` without padding, or one row."""
    total = sum(lengths[row] for row in order)
    share = total / math.ceil(total / budget)
    groups: list[list[int]] = []
    tokens = 0
    for row in order:
        if not groups or tokens >= share or tokens + lengths[row] > budget:
            groups.append([])
            tokens = 0
        groups[-1].append(row)
        tokens += lengths[row]
    return groups


def hidden_states(backbone: Backbone, ids: Tensor, mask: Tensor) -> Sequence[Tensor]:
    """Of every layer, the embeddings first: (batch, length, hidden) each. The last went through the final norm."""
    backbone.check_length(ids.shape[1], "tokens of a row")
    output = backbone.decoder(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
    return [*output.hidden_states[:-1], output.last_hidden_state]
