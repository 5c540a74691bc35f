"""A backbone without weights: the sizes of a model, and everything that training puts on it."""

import copy
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from l2v.errors import L2VError, first_line
from l2v.kernels.linear import keep_products, speed_up
from l2v.models.backbone import Backbone
from l2v.models.bidirectional import set_attention
from l2v.models.loading import set_attention_dropout
from l2v.models.proof import Proof
from l2v.models.quiet import quiet
from l2v.planning.setup import Setup
from l2v.pooling import Pooling
from l2v.runs.locations import Source


def new_backbone(setup: Setup, device: str = "meta") -> Backbone:
    """The backbone that ``Training.load_backbone`` gives, with new weights: nothing is read and nothing proven.

    Attention is torch's fused one where the family has it, as ``auto`` chooses.

    Args:
        setup: of the model and what training puts on it.
        device: meta: without numbers.

    Raises:
        L2VError: the adapter does not go with the model.
    """
    model, stage = setup.model, setup.stage
    attention = model.attention or "bidirectional"
    dtype = getattr(torch, model.dtype if setup.adapter is not None else setup.trained_dtype)
    config = copy.deepcopy(setup.config)
    kind = AutoModelForCausalLM if stage.needs_head else AutoModel
    with torch.device(device), quiet():
        try:
            whole: Any = kind.from_config(config, dtype=dtype)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise L2VError(f"model.source={model.source}: cannot be built: {first_line(error)}") from None
        decoder = whole.base_model if stage.needs_head else whole
        head = whole.get_output_embeddings() if stage.needs_head else None
        set_attention(decoder, attention)
        if stage.attention_dropout is not None:
            set_attention_dropout(decoder, stage.attention_dropout)
        speed_up(whole)
        implementation = _set_fused_attention(decoder, model.attn_implementation)
        if checkpointing := model.gradient_checkpointing:
            kept = {"context_fn": keep_products} if checkpointing == "selective" else {}
            decoder.gradient_checkpointing_enable({"use_reentrant": False, **kept})
        proof = Proof(attention, implementation, backward_change=0.0, padding_change=0.0, eager_change=0.0)
        source = Source(name=model.source, path=model.source)
        backbone = Backbone(decoder, words_tokenizer(), head=head, source=source, proof=proof, attention=attention)
        if setup.adapter is not None:
            backbone.add_adapter(setup.adapter)
        if isinstance(model.pooling, Pooling):
            pooling = copy.deepcopy(model.pooling)
            pooling.build(backbone.hidden_size)
            backbone.add_pooling(pooling, trainable=stage.trains_pooling)
    return backbone


def _set_fused_attention(decoder: Any, wanted: str) -> str:
    """FlashAttention needs its package, and keeps what torch's fused attention keeps."""
    for name in ("eager",) if wanted == "eager" else ("sdpa", "eager"):
        try:
            decoder.set_attn_implementation(name)
        except (ValueError, ImportError):
            continue
        break
    return str(decoder.config._attn_implementation)


@cache
def words_tokenizer() -> PreTrainedTokenizerFast:
    """Stands for the model's own, of which a step needs only the special tokens."""
    special = ["<s>", "</s>", "<unk>", "_", *(f"w{number}" for number in range(1000))]
    tokenizer = Tokenizer(models.WordLevel({token: id_ for id_, token in enumerate(special)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


def text_config(config: PretrainedConfig) -> Any:
    """The sizes of the decoder."""
    return config.get_text_config()
