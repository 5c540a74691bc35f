"""From a hub id, a folder or a GGUF file to a decoder, its tokenizer and its output head."""

import contextlib
import json
import re
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
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from l2v.errors import L2VError, first_line, is_out_of_memory, panics_told
from l2v.kernels.masked_loss import Scores
from l2v.kernels.speed import speed_up
from l2v.models.adapters import changes_embeddings
from l2v.models.bidirectional import Attention, set_attention
from l2v.models.depth import cut, depth_of
from l2v.models.merging import Unmerged
from l2v.models.proof import Proof, Run, prove
from l2v.models.quantization import check_quantization, quantize
from l2v.models.quiet import quiet
from l2v.models.settings import AttnImplementation, EncoderSettings, Kind
from l2v.models.weights import load_mapped
from l2v.progress import say
from l2v.runs.files import cache_folder, draft_folder
from l2v.runs.hashes import file_hash
from l2v.runs.ledger import is_kept, seal
from l2v.runs.locations import Source, model_file, not_on_hub
from l2v.text.vocabulary import settle


@dataclass(frozen=True)
class LoadedDecoder:
    """What was loaded of a model."""

    decoder: PreTrainedModel
    head: nn.Module | None
    tokenizer: PreTrainedTokenizerBase
    unmerged: Unmerged
    """What its weights still lack, where they are on no device yet."""


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
    """Load a decoder and merge adapters into it; see :meth:`l2v.models.backbone.Backbone.load`.

    Raises:
        L2VError: the source is missing, or is of another kind.
    """
    if settings.quantization is not None:
        check_quantization(device)
    if not place.is_local and model_file(place, "config.json") is None:
        raise L2VError(f"model.source={place.name}: the hub repository has no config.json, so it holds no model")
    dtype = getattr(torch, settings.dtype)
    made_in = torch.float32 if merge else dtype
    with told_as_one_line(place), quiet():
        unpacked = dequantized(place)
        arguments = {**unpacked.arguments(), "trust_remote_code": settings.trust_remote_code}
        tokenizer, config = _tokenizer_and_config(unpacked, arguments)
        _check_kind(place, config, settings.kind)
        check_sizes(unpacked, config)
        head: nn.Module | None = None
        if with_head:
            decoder, head = _decoder_with_head(unpacked, head_source, made_in, arguments)
        else:
            whole_model, info = _mapped(AutoModel, unpacked, made_in, arguments)
            decoder = _text_part(whole_model, place)
            # the head over an encoder's first token: nothing reads it, and masked language models are saved without
            missing = {key for key in info["missing_keys"] if not key.startswith("pooler.")}
            if missing:
                raise _missing_weights(unpacked, missing, "expected all the weights of its config")
    set_attention(decoder, attention)
    if any(changes_embeddings(folder) for folder in merge):
        _part(decoder, head)
    unmerged = Unmerged(decoder, head, merge, dtype, layers=None if place.layers is None else depth_of(config))
    whole: list[nn.Module] = [decoder] if head is None else [decoder, head]
    if torch.device(device).type != "meta":
        for part in whole:
            unmerged.settle(part)
        if settings.quantization is not None:
            quantize(decoder, settings.quantization)
        for part in whole:
            part.to(device=device)
    if head is not None:
        speed_up(head)
    return LoadedDecoder(decoder, head, tokenizer, unmerged)


def state_size(config: PretrainedConfig) -> int:
    """Length of a token state. Some OPT models project theirs."""
    text = config.get_text_config()
    return int(getattr(text, "word_embed_proj_dim", None) or text.hidden_size)


def _text_part(model: PreTrainedModel, place: Source) -> PreTrainedModel:
    """The decoder of a model that sees or hears too, without the parts that do.

    Raises:
        L2VError: it is not found.
    """
    if model.config.get_text_config() is model.config:
        return model
    decoder = getattr(model, "language_model", None)
    if not isinstance(decoder, PreTrainedModel):
        kind = model.config.model_type
        raise L2VError(f"model.source={place.name}: a model of more than texts ({kind}), whose decoder is not found")
    return decoder


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
    config = cut(AutoConfig.from_pretrained(place.path, **arguments), place.layers)
    settle(tokenizer, getattr(config.get_text_config(), "vocab_size", None))
    return tokenizer, config


def _mapped(
    auto: Any, place: Source, dtype: torch.dtype, arguments: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model, or its first layers: the weights of the others are not read."""
    config = cut(AutoConfig.from_pretrained(place.path, **arguments), place.layers)
    given = {} if place.layers is None else {"config": config}
    return load_mapped(auto, place, config, dtype, {**arguments, **given})


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
    loaded: Any = _mapped(AutoModelForCausalLM, place, dtype, arguments)
    whole, info = loaded
    head = whole.get_output_embeddings()
    if missing := set(info["missing_keys"]):
        own = {id(p) for p in head.parameters()}
        if head_source is None or not missing <= {name for name, p in whole.named_parameters() if id(p) in own}:
            raise _missing_weights(place, missing, "expected a decoder with an output head")
        origin = dequantized(head_source)
        _, head = _decoder_with_head(origin, None, dtype, {**arguments, **origin.arguments()})
    else:
        _prove_scores(whole, head, place)
    return _text_part(cast(PreTrainedModel, whole.base_model), place), head


def _prove_scores(whole: Any, head: nn.Module, place: Source) -> None:
    """See that vocabulary scores are made of token states as the model's own forward pass makes them.

    Families scale and cap them in ways of their own. The decoder itself is not run.

    Raises:
        L2VError: they are others.
    """
    config, decoder = whole.config.get_text_config(), whole.base_model
    states = torch.randn(1, 3, state_size(config), generator=torch.Generator().manual_seed(0))
    states = states.to(next(head.parameters()).dtype)
    decoder.forward = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=states)
    try:
        with torch.no_grad():
            expected = whole(input_ids=torch.zeros(1, 3, dtype=torch.long), use_cache=False).logits.float()
            found = Scores.of(head, config)(states).float()
    except Exception:  # a forward pass of another form
        return
    finally:
        del decoder.forward
    if found.shape != expected.shape or (found - expected).norm() > _SCORES_DIFFER * expected.norm():
        raise L2VError(
            f"model.source={place.name}: the model's forward pass makes other scores of its token states than l2v knows"
            " to make, so hidden tokens would be predicted wrongly; stage=simcse and supervised need none"
        )


_SCORES_DIFFER = 0.02
"""By more than bfloat16 rounds."""


def check_sizes(place: Source, config: PretrainedConfig) -> None:
    """Refuse sizes that nothing has, before anything is made of them: they would take all memory and time.

    Raises:
        L2VError: so many layers, experts or heads, or matrices far larger than the files with the weights.
    """
    sizes = {name: size for name, size in config.get_text_config().to_dict().items() if isinstance(size, int)}
    for name, size in sizes.items():
        most = next((most for pattern, most in _MOST_PARTS.items() if re.search(pattern, name)), size)
        if size > most:
            raise L2VError(f"model.source={place.name}: its config.json says {name}={size}; expected {most} at most")
    if not place.is_local:
        return
    files = [Path(place.path) / place.gguf_file] if place.gguf_file else Path(place.path).glob("*.safetensors")
    stored = sum(file.stat().st_size for file in files)
    width = config.get_text_config().hidden_size
    for name in ("vocab_size", "hidden_size", "intermediate_size"):
        if stored and sizes.get(name, 0) * width > _DENSEST * stored:
            raise L2VError(
                f"model.source={place.name}: config.json says hidden_size={width} and {name}={sizes[name]}, and the "
                f"weights have {stored:,} bytes only"
            )


_MOST_PARTS = {r"experts": 100_000, r"layers?$|heads?$": 10_000}
_DENSEST = 16
"""Numbers a byte of a file, at most, in one matrix: 4 bits a number would be 2."""


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
    if not is_kept(folder):
        arguments = place.arguments()
        check_sizes(place, AutoConfig.from_pretrained(place.path, **arguments))
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
            seal(draft)
    return replace(place, path=str(folder), gguf_file=None)


def choose_attn_implementation(
    decoder: PreTrainedModel, wanted: AttnImplementation, attention: Attention, partial: bool, run: Run
) -> Proof:
    """Set the first implementation that the model supports and that is proven, or the one that was asked for.

    Proven means also: the same states as eager attention. ``auto`` leaves out flex_attention, which compiles for each
    new shape and, on a CPU, cannot train.
    """
    if wanted != "auto":
        _set_attn_implementation(decoder, wanted)
        return prove(decoder, attention, partial=partial, run=run)
    failures: list[L2VError] = []
    device = next(decoder.parameters())
    candidates: list[AttnImplementation] = ["sdpa", "eager"]
    if device.is_cuda and device.dtype in (torch.float16, torch.bfloat16):
        candidates.insert(0, "flash_attention_2")
    for name in candidates:
        try:
            _set_attn_implementation(decoder, name)
            return prove(decoder, attention, partial=partial, run=run)
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
    """Turn the many ways in which a model cannot be loaded into one line each.

    Its files may say anything: 0 heads end in a ZeroDivisionError, a text for a number in one of a dozen others.
    """
    try:
        with panics_told():
            yield
    except L2VError:
        raise
    except json.JSONDecodeError as error:
        raise L2VError(f"model.source={source.name}: config.json is not JSON ({error})") from None
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if not source.is_local and isinstance(error, OSError):
            raise not_on_hub(source, error) from error
        told = first_line(error)
        if "ignore_mismatched_sizes" in told:  # transformers has printed which
            told = "the shapes of its weights are not those of its config.json"
        if not isinstance(error, (OSError, ValueError, RuntimeError, ImportError, SafetensorError)):
            told = f"its config.json does not make a model ({type(error).__name__}: {told})"
        raise L2VError(f"model.source={source.name}: cannot be loaded as a decoder: {told}") from error
