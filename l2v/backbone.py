"""The shared backbone: a decoder, bidirectional, with an adapter on it. Every stage trains one of these."""

import contextlib
import json
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from l2v.bidirectional import (
    Attention,
    Proof,
    accepts_position_ids,
    packed_states,
    prove,
    prove_packing,
    set_attention,
)
from l2v.dropped_attention import keep_no_pairs
from l2v.errors import L2VError, first_line
from l2v.fused_loss import Scores, summed_cross_entropy
from l2v.grad_cache import embed_in_parts, sum_in_parts
from l2v.linear import keep_freed_memory, keep_products, speed_up
from l2v.masking import IGNORED
from l2v.pooling import Pooling, pool
from l2v.progress import say
from l2v.published import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from l2v.quantization import Quantization, check_quantization, quantize
from l2v.sources import Source, cache_folder, draft_folder, file_hash, locate, model_file, not_on_hub

DType = Literal["float32", "bfloat16", "float16"]
Kind = Literal["decoder", "encoder"]
AttnImplementation = Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"]
Checkpointing = bool | Literal["selective"]


@dataclass(frozen=True)
class Lora:
    """LoRA settings (defaults: the paper, appendix D.1)."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    """Probability."""
    target_modules: str | list[str] = "all-linear"
    """Module names, or all-linear: every linear layer of the decoder (q, k, v, o, gate, up, down in Llama)."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise L2VError(f"adapter.lora.rank must be at least 1, got {self.rank}")
        if not 0 <= self.dropout < 1:
            raise L2VError(f"adapter.lora.dropout must be in [0, 1), got {self.dropout}")


class Backbone(nn.Module):
    """A decoder turned encoder: ids in, token states or pooled vectors out.

    Attributes:
        decoder: the inner decoder (no output head), or a ``PeftModel`` around it.
        head: the frozen output head, when loaded with one. It is the input embedding where the model ties them.
        tokenizer: the decoder's tokenizer; it has a padding token and pads on the right.
        proof: what was seen when the attention was proven at loading.
    """

    def __init__(
        self,
        decoder: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        head: nn.Module | None = None,
        source: Source,
        proof: Proof,
        attention: Attention = "bidirectional",
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = head
        self.tokenizer = tokenizer
        self.source = source
        self.proof = proof
        self.attention: Attention = attention
        self._accepts_position_ids = accepts_position_ids(decoder)
        self._packing_is_proven = False
        if head is not None:
            head.requires_grad_(False)

    @staticmethod
    def load(
        source: str | Source,
        *,
        revision: str | None = None,
        attention: Attention = "bidirectional",
        attn_implementation: AttnImplementation = "auto",
        dtype: DType = "float32",
        attention_dropout: float | None = None,
        gradient_checkpointing: Checkpointing = False,
        with_head: bool = False,
        head_source: Source | None = None,
        merge: Sequence[Path] = (),
        quantization: Quantization | None = None,
        partial: bool = False,
        kind: Kind = "decoder",
        trust_remote_code: bool = False,
        device: str | torch.device = "cpu",
    ) -> "Backbone":
        """Load a decoder, merge adapters into it, set its attention and prove it.

        Args:
            source: a hub id, a folder, a GGUF file or ``package:NAME/FILE.gguf``.
            revision: of a hub id.
            attention: ``bidirectional``, or ``causal`` for the untouched decoder.
            attn_implementation: ``auto`` takes the first of flash_attention_2 (16 bit, on CUDA, where installed),
                sdpa and eager that the model supports and that is proven.
            dtype: of the decoder's weights. Adapters stay in float32.
            attention_dropout: probability in the attention weights while training; None leaves the model's own.
            gradient_checkpointing: recompute activations in the backward pass: all of them, or ``selective``, what lies
                between the LoRA layers, whose products are kept.
            with_head: load the output head too, for MNTP.
            head_source: where to take the head from if ``source`` has none of its own.
            merge: adapter folders to merge into the weights, in order, in float32.
            quantization: nf4 keeps the linear layers in 4 bits, after merging; None does not.
            partial: accept layers that cannot be made bidirectional.
            kind: ``encoder`` for a model that attends both ways by itself, to compare decoders with (BERT).
            trust_remote_code: run code that comes with the model.
            device: where the weights go and where the proof runs.

        Raises:
            L2VError: the source is missing, is of another kind, or fails the proof.
        """
        if quantization is not None:
            check_quantization(device)
        named = locate(source, revision) if isinstance(source, str) else source
        if not named.is_local and model_file(named, "config.json") is None:
            raise L2VError(f"model.source={named.name}: the hub repository has no config.json, so it holds no model")
        loaded_dtype = torch.float32 if merge else getattr(torch, dtype)
        with _told_as_one_line(named), _quiet():
            place = dequantized(named)
            arguments = {**place.arguments(), "trust_remote_code": trust_remote_code}
            tokenizer, config = _tokenizer_and_config(place, arguments)
            _check_kind(named, config, kind)
            if with_head:
                decoder, head = _with_head(place, head_source, loaded_dtype, arguments)
            else:
                decoder, info = AutoModel.from_pretrained(
                    place.path, dtype=loaded_dtype, output_loading_info=True, **arguments
                )
                # the head over an encoder's first token: nothing reads it, and masked language models are saved without
                missing = {key for key in info["missing_keys"] if not key.startswith("pooler.")}
                if missing:
                    raise _missing(place, missing, "expected all the weights of its config")
                head = None
        if torch.device(device).type == "cpu":
            keep_freed_memory()
            keep_no_pairs()
        set_attention(decoder, attention)
        for folder in merge:
            decoder = _load_adapter(decoder, folder, trainable=False).merge_and_unload()
        cast_weights(decoder, getattr(torch, dtype))
        if quantization is not None:
            quantize(decoder, quantization)
        cast(nn.Module, decoder).to(device=device)
        if head is not None:
            head.to(device=device, dtype=getattr(torch, dtype))
            speed_up(head)
        if attention_dropout is not None:
            _set_attention_dropout(decoder, attention_dropout)
        speed_up(decoder)
        proof = _choose_attn_implementation(decoder, attn_implementation, attention, partial)
        if gradient_checkpointing:
            kept = {"context_fn": keep_products} if gradient_checkpointing == "selective" else {}
            with _quiet():
                decoder.gradient_checkpointing_enable({"use_reentrant": False, **kept})
        backbone = Backbone(decoder, tokenizer, head=head, source=named, proof=proof, attention=attention)
        return backbone.eval()

    @property
    def config(self) -> Any:
        return self.decoder.config

    @property
    def hidden_size(self) -> int:
        return self.config.get_text_config().hidden_size

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
            if not self._packing_is_proven:
                prove_packing(self.decoder)
                self._packing_is_proven = True
            return packed_states(self.decoder, input_ids, segment_ids)
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
        pooling: Pooling = "mean",
        micro_batch_tokens: int | None = None,
        grad_cache: bool = False,
    ) -> Float[Tensor, "batch hidden"]:
        """One float32 vector per row.

        With ``micro_batch_tokens`` the rows run sorted by length in several forward passes of at most that many
        tokens each, padding included: the same vectors, without computing a short text's padding up to the longest.
        With ``grad_cache`` a backward pass needs the memory of one of these passes (:mod:`l2v.grad_cache`).
        """

        def run(ids: Tensor, mask: Tensor, text: Tensor, positions: Tensor | None) -> Tensor:
            return pool(self(ids, mask, positions), text, mask, pooling)

        if micro_batch_tokens is None:
            return run(input_ids, attention_mask, pool_mask, position_ids)
        lengths = attention_mask.sum(dim=1)
        order = lengths.argsort(descending=True)
        parts = []
        for rows in row_groups(order.tolist(), lengths.tolist(), micro_batch_tokens):
            width = int(lengths[rows[0]])
            columns = slice(width) if position_ids is None else slice(-width, None)
            positions = None if position_ids is None else position_ids[rows, columns]
            ids, mask, text = (x[rows, columns] for x in (input_ids, attention_mask, pool_mask))
            parts.append((ids, mask, text, positions))
        if grad_cache and torch.is_grad_enabled():
            vectors = embed_in_parts(run, parts, self.parameters())
        else:
            vectors = torch.cat([run(*part) for part in parts])
        return vectors[order.argsort()]

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

        That of :meth:`predict_masked`, with the scores of some tokens at a time (:mod:`l2v.fused_loss`). With
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
        return sum_in_parts(run, list(parts), self.parameters())

    def add_adapter(self, lora: Lora) -> None:
        """Put a new LoRA adapter on the decoder and freeze everything else."""
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            bias="none",
        )
        try:
            with _quiet():
                adapted = get_peft_model(cast(PreTrainedModel, self.decoder), config)
        except ValueError as error:
            if "lora_dropout" in str(error):  # PEFT's answer to experts that are one tensor
                raise L2VError(
                    f"adapter.lora.dropout={lora.dropout}: the experts of this model take none; set it to 0"
                ) from None
            raise L2VError(f"adapter.lora.target_modules={lora.target_modules}: {error}") from None
        speed_up(adapted)
        self.decoder = adapted.train(self.decoder.training)  # PEFT puts new modules into training mode

    def load_adapter(self, folder: Path, *, trainable: bool = False) -> None:
        """Put a saved adapter on the decoder. Its keys must fit exactly."""
        self.decoder = _load_adapter(cast(PreTrainedModel, self.decoder), folder, trainable)

    def merge_adapter(self) -> None:
        """Merge the adapter into the decoder's weights, in float32, and take it off."""
        decoder = cast(PeftModel, self.decoder)
        dtype = next(p.dtype for n, p in decoder.named_parameters() if "lora_" not in n and p.is_floating_point())
        self.decoder = cast(PreTrainedModel, decoder.float().merge_and_unload())
        cast_weights(self.decoder, dtype)

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
        with _quiet():
            self.decoder.save_pretrained(str(folder))
            self.tokenizer.save_pretrained(folder)


def load_tokenizer_and_config(
    source: Source, *, kind: Kind = "decoder", trust_remote_code: bool = False
) -> tuple[PreTrainedTokenizerBase, PretrainedConfig]:
    """What can be known of a model without loading its weights. The tokenizer has a padding token, on the right.

    Raises:
        L2VError: the source is missing, holds no model, or one of another kind.
    """
    with _told_as_one_line(source), _quiet():
        place = dequantized(source)
        tokenizer, config = _tokenizer_and_config(place, {**place.arguments(), "trust_remote_code": trust_remote_code})
        _check_kind(source, config, kind)
        return tokenizer, config


def _tokenizer_and_config(place: Source, arguments: dict[str, Any]) -> tuple[PreTrainedTokenizerBase, PretrainedConfig]:
    tokenizer = AutoTokenizer.from_pretrained(place.path, **arguments)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer, AutoConfig.from_pretrained(place.path, **arguments)


def _check_kind(source: Source, config: Any, kind: Kind) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise L2VError(f"model.source={source.name}: an encoder-decoder ({config.model_type}); expected {_A[kind]}")
    is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    found: Kind = "encoder" if is_encoder else "decoder"
    if found != kind:
        raise L2VError(f"model.source={source.name}: {_A[found]} ({config.model_type}); expected {_A[kind]}")


_A = {"decoder": "a decoder", "encoder": "an encoder"}


def _with_head(
    place: Source, head_source: Source | None, dtype: torch.dtype, arguments: dict[str, Any]
) -> tuple[PreTrainedModel, nn.Module]:
    """The decoder and its output head, or that of ``head_source`` where a saved encoder has none of its own."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(place.path, dtype=dtype, output_loading_info=True, **arguments)
    whole, info = loaded
    head = whole.get_output_embeddings()
    if missing := set(info["missing_keys"]):
        own = {id(p) for p in head.parameters()}
        if head_source is None or not missing <= {name for name, p in whole.named_parameters() if id(p) in own}:
            raise _missing(place, missing, "expected a decoder with an output head")
        origin = dequantized(head_source)
        _, head = _with_head(origin, None, dtype, {**arguments, **origin.arguments()})
    return cast(PreTrainedModel, whole.base_model), head


def _missing(place: Source, keys: Collection[str], expected: str) -> L2VError:
    return L2VError(f"model.source={place.name}: {len(keys)} weights are missing, e.g. {min(keys)}; {expected}")


def dequantized(place: Source) -> Source:
    """A GGUF file's model as a transformers folder in float32, made once and kept in the cache.

    Reading a GGUF takes some 15 seconds for 135M parameters; the folder loads in less than one. Any other source is
    returned as it is.
    """
    if not (place.gguf_file and place.is_local):
        return place
    folder = cache_folder("gguf") / file_hash(Path(place.path) / str(place.gguf_file))[:16]
    if not (folder / "config.json").exists():
        arguments = place.arguments()
        say(f"unpacking {place.name} into the cache, once; some 15 seconds for 135M parameters")
        tokenizer = AutoTokenizer.from_pretrained(place.path, **arguments)
        model = AutoModelForCausalLM.from_pretrained(place.path, dtype=torch.float32, **arguments)
        # the weights are plain tensors by now, but a model that is marked as quantized refuses to be saved
        config = type(model.config)(**{k: v for k, v in model.config.to_dict().items() if k != "quantization_config"})
        plain = type(model)(config)
        plain.load_state_dict(model.state_dict())
        with draft_folder(folder) as draft:
            plain.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
    return replace(place, path=str(folder), gguf_file=None)


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Change the dtype of a model's weights, in place, and of nothing else.

    Buffers stay as they are, as in ``from_pretrained(dtype=...)``: rotary frequencies in bfloat16 would misplace the
    tokens of a long text.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _load_adapter(decoder: PreTrainedModel, folder: Path, trainable: bool) -> PeftModel:
    file = folder / ADAPTER_WEIGHTS
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        if not (folder / name).exists():
            raise L2VError(f"{folder}: no {name}, so it holds no adapter")
    try:
        config, weights = LoraConfig.from_pretrained(str(folder)), load_file(file)
    except (SafetensorError, ValueError, TypeError) as error:
        raise L2VError(f"{folder}: the adapter is damaged ({first_line(error)})") from None
    config.inference_mode = not trainable
    config.base_model_name_or_path = None  # where it was trained is in the lineage; PEFT warns of another path
    try:
        with _quiet():
            adapted = get_peft_model(decoder, config)
    except ValueError as error:
        raise L2VError(f"{folder}: the adapter does not fit {decoder.config.model_type}: {error}") from None
    expected = {k: v.shape for k, v in get_peft_model_state_dict(adapted, save_embedding_layers=False).items()}
    found = {k: v.shape for k, v in weights.items()}
    if expected != found:
        odd = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
        raise L2VError(
            f"{folder}: the adapter does not fit the base model: {len(odd)} of {len(expected | found)} tensors are "
            f"missing, unexpected or of another shape, e.g. {odd[0]} (expected "
            f"{_shape(expected.get(odd[0]))}, found {_shape(found.get(odd[0]))})"
        )
    set_peft_model_state_dict(adapted, weights)
    speed_up(adapted)
    return cast(PeftModel, adapted.train(decoder.training))  # PEFT puts new modules into training mode


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape))


def _choose_attn_implementation(
    decoder: PreTrainedModel, wanted: AttnImplementation, attention: Attention, partial: bool
) -> Proof:
    """Set the first implementation that the model supports and that is proven, or the one that was asked for.

    Proven means also: the same states as eager attention. ``auto`` leaves out flex_attention, which compiles for each
    new shape and, on a CPU, cannot train.
    """
    if wanted != "auto":
        _set_attn_implementation(decoder, wanted)
        return prove(decoder, attention, partial=partial)
    failures: list[L2VError] = []
    device = next(decoder.parameters())
    candidates: list[AttnImplementation] = ["sdpa", "eager"]
    if device.is_cuda and device.dtype in (torch.float16, torch.bfloat16):
        candidates.insert(0, "flash_attention_2")
    for name in candidates:
        try:
            _set_attn_implementation(decoder, name)
            return prove(decoder, attention, partial=partial)
        except L2VError as error:
            failures.append(error)
    raise failures[-1]


def _set_attn_implementation(decoder: PreTrainedModel, name: AttnImplementation) -> None:
    try:
        with _quiet():
            decoder.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise L2VError(f"model.attn_implementation={name}: {first_line(error)}") from None
    # families whose layers compute attention themselves keep it, and are only warned about
    if name != "eager" and decoder.config._attn_implementation == "eager":
        raise L2VError(
            f"model.attn_implementation={name}: {decoder.config.model_type} has eager only; expected eager or auto"
        )


def _set_attention_dropout(decoder: nn.Module, probability: float) -> None:
    """Set the dropout of attention weights, under the names that the families use."""
    names = ("attention_dropout", "attn_pdrop", "attn_dropout")
    found = False
    for module in decoder.modules():
        for name in names:
            value = getattr(module, name, None)
            if isinstance(value, float | int):
                setattr(module, name, probability)
                found = True
            elif isinstance(value, nn.Dropout):
                value.p = probability
                found = True
    if not found:
        raise L2VError(
            f"stage.attention_dropout={probability}: found no attention dropout in this model; set it to null and "
            "rely on adapter.lora.dropout"
        )


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


@contextlib.contextmanager
def _told_as_one_line(source: Source) -> Iterator[None]:
    """Turn the many ways in which a model cannot be loaded into one line each."""
    try:
        yield
    except L2VError:
        raise
    except json.JSONDecodeError as error:
        raise L2VError(f"model.source={source.name}: config.json is not JSON ({error})") from None
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if not source.is_local:
            raise not_on_hub(source, error) from error
        raise L2VError(f"model.source={source.name}: cannot be loaded as a decoder: {first_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own progress bars and reports: the entry points have theirs."""
    from transformers.utils import logging

    getLogger("huggingface_hub").setLevel(ERROR)  # it reports every retry
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # it has a new name in newer versions, and works in all that l2v supports
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated.*")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
