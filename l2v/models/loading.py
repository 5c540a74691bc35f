"""From a hub id, a folder or a GGUF file to a decoder, its tokenizer and its output head."""

import contextlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
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

from l2v.errors import L2VError, first_line
from l2v.kernels.linear import speed_up
from l2v.models.adapters import changes_embeddings, load_adapter
from l2v.models.bidirectional import Attention, set_attention
from l2v.models.proof import Proof, prove
from l2v.models.quantization import check_quantization, quantize
from l2v.models.quiet import quiet
from l2v.models.settings import AttnImplementation, EncoderSettings, Kind
from l2v.progress import say
from l2v.runs.files import cache_folder, draft_folder
from l2v.runs.hashes import file_hash
from l2v.runs.locations import Source, model_file, not_on_hub
from l2v.text.vocabulary import settle


@dataclass(frozen=True)
class LoadedDecoder:
    """What was loaded of a model."""

    decoder: PreTrainedModel
    head: nn.Module | None
    tokenizer: PreTrainedTokenizerBase


def load_decoder(
    place: Source,
    settings: EncoderSettings,
    attention: Attention,
    *,
    with_head: bool,
    head_source: Source | None,
    merge: Sequence[Path],
    device: str | torch.device,
) -> LoadedDecoder:
    """Load a decoder and merge adapters into it, in float32; see :meth:`l2v.models.backbone.Backbone.load`.

    Raises:
        L2VError: the source is missing, or is of another kind.
    """
    if settings.quantization is not None:
        check_quantization(device)
    if not place.is_local and model_file(place, "config.json") is None:
        raise L2VError(f"model.source={place.name}: the hub repository has no config.json, so it holds no model")
    dtype = getattr(torch, settings.dtype)
    loaded_dtype = torch.float32 if merge else dtype
    with told_as_one_line(place), quiet():
        unpacked = dequantized(place)
        arguments = {**unpacked.arguments(), "trust_remote_code": settings.trust_remote_code}
        tokenizer, config = _tokenizer_and_config(unpacked, arguments)
        _check_kind(place, config, settings.kind)
        head: nn.Module | None = None
        if with_head:
            decoder, head = _decoder_with_head(unpacked, head_source, loaded_dtype, arguments)
        else:
            decoder, info = AutoModel.from_pretrained(
                unpacked.path, dtype=loaded_dtype, output_loading_info=True, **arguments
            )
            # the head over an encoder's first token: nothing reads it, and masked language models are saved without
            missing = {key for key in info["missing_keys"] if not key.startswith("pooler.")}
            if missing:
                raise _missing_weights(unpacked, missing, "expected all the weights of its config")
    set_attention(decoder, attention)
    for folder in merge:
        if changes_embeddings(folder):
            _part(decoder, head)
        decoder = load_adapter(decoder, folder, trainable=False).merge_and_unload()
    cast_weights(decoder, dtype)
    if settings.quantization is not None:
        quantize(decoder, settings.quantization)
    cast(nn.Module, decoder).to(device=device)
    if head is not None:
        head.to(device=device, dtype=dtype)
        speed_up(head)
    return LoadedDecoder(decoder, head, tokenizer)


def _part(decoder: PreTrainedModel, head: nn.Module | None) -> None:
    """Let the output head keep the input embeddings that it shares, before they change."""
    decoder.config.tie_word_embeddings = False
    if isinstance(head, nn.Linear) and head.weight is decoder.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def load_tokenizer_and_config(
    source: Source, *, kind: Kind = "decoder", trust_remote_code: bool = False
) -> tuple[PreTrainedTokenizerBase, PretrainedConfig]:
    """What can be known of a model without loading its weights. The tokenizer has a padding token, on the right.

    Raises:
        L2VError: the source is missing, holds no model, or one of another kind.
    """
    with told_as_one_line(source), quiet():
        place = dequantized(source)
        tokenizer, config = _tokenizer_and_config(place, {**place.arguments(), "trust_remote_code": trust_remote_code})
        _check_kind(source, config, kind)
        return tokenizer, config


def _tokenizer_and_config(place: Source, arguments: dict[str, Any]) -> tuple[PreTrainedTokenizerBase, PretrainedConfig]:
    tokenizer = AutoTokenizer.from_pretrained(place.path, **arguments)
    config = AutoConfig.from_pretrained(place.path, **arguments)
    settle(tokenizer, getattr(config.get_text_config(), "vocab_size", None))
    return tokenizer, config


def _check_kind(source: Source, config: Any, kind: Kind) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise L2VError(f"model.source={source.name}: an encoder-decoder ({config.model_type}); expected {_A[kind]}")
    is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    found: Kind = "encoder" if is_encoder else "decoder"
    if found != kind:
        raise L2VError(f"model.source={source.name}: {_A[found]} ({config.model_type}); expected {_A[kind]}")


_A = {"decoder": "a decoder", "encoder": "an encoder"}


def _decoder_with_head(
    place: Source, head_source: Source | None, dtype: torch.dtype, arguments: dict[str, Any]
) -> tuple[PreTrainedModel, nn.Module]:
    """The decoder and its output head, or that of ``head_source`` where a saved encoder has none of its own."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(place.path, dtype=dtype, output_loading_info=True, **arguments)
    whole, info = loaded
    head = whole.get_output_embeddings()
    if missing := set(info["missing_keys"]):
        own = {id(p) for p in head.parameters()}
        if head_source is None or not missing <= {name for name, p in whole.named_parameters() if id(p) in own}:
            raise _missing_weights(place, missing, "expected a decoder with an output head")
        origin = dequantized(head_source)
        _, head = _decoder_with_head(origin, None, dtype, {**arguments, **origin.arguments()})
    return cast(PreTrainedModel, whole.base_model), head


def _missing_weights(place: Source, keys: Collection[str], expected: str) -> L2VError:
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


def choose_attn_implementation(
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
        with quiet():
            decoder.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise L2VError(f"model.attn_implementation={name}: {first_line(error)}") from None
    # families whose layers compute attention themselves keep it, and are only warned about
    if name != "eager" and decoder.config._attn_implementation == "eager":
        raise L2VError(
            f"model.attn_implementation={name}: {decoder.config.model_type} has eager only; expected eager or auto"
        )


def set_attention_dropout(decoder: nn.Module, probability: float) -> None:
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


@contextlib.contextmanager
def told_as_one_line(source: Source) -> Iterator[None]:
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
