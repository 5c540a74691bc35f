"""Rows that hold several texts, each with the states that it has alone; proven by running the model."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.masking_utils import (
    create_causal_mask,
    create_sliding_window_causal_mask,
    packed_sequence_mask_function,
)

from l2v.errors import L2VError
from l2v.kernels.attention import keep_apart
from l2v.models.bidirectional import Attention, accepts_position_ids
from l2v.models.proof import device_and_dtype, in_evaluation, largest_change, same_within, trace


def packed_positions(segment_ids: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """Positions that count from the first token of each text in a packed row."""
    places = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    return places - torch.where(_starts(segment_ids), places, 0).cummax(dim=1).values


def packed_mask(config: Any, segment_ids: Int[Tensor, "batch length"], dtype: torch.dtype) -> Any:
    """The attention mask of rows that hold several texts: a token sees the tokens of its own text only.

    Within a text it is the mask that the model would make: of ``config.is_causal``, with its sliding windows, in the
    form that ``config._attn_implementation`` (eager, sdpa or flex_attention) takes.

    Args:
        config: of the decoder.
        segment_ids: number of the text that a token belongs to, 0 for padding. The tokens of a text are next to each
            other; neighbouring texts have different numbers.
        dtype: of the decoder's token embeddings.

    Returns:
        One mask, (batch, 1, length, length), or a dictionary of them where ``config.layer_types`` has the types.

    Raises:
        L2VError: for layers that carry a state from token to token, which no mask cuts.
    """
    starts = _starts(segment_ids)
    number = starts.cumsum(dim=1)
    like = torch.empty(*segment_ids.shape, 0, dtype=dtype, device=segment_ids.device)
    same_text = packed_sequence_mask_function(number)
    # both follow config.is_causal, also to the two-sided masks
    create = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
    types = getattr(config, "layer_types", None)
    if types is None:
        kinds = ["full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"]
    else:
        kinds = sorted(set(types))
    if odd := [kind for kind in kinds if kind not in create]:
        raise L2VError(f"{config.model_type}: texts cannot be packed into one row through layers of {', '.join(odd)}")
    masks = {
        kind: create[kind](config, like, None, past_key_values=None, and_mask_function=same_text) for kind in kinds
    }
    for mask in masks.values():
        if isinstance(mask, Tensor):
            keep_apart(mask, starts)
    return masks[kinds[0]] if types is None else masks


def packed_states(
    model: nn.Module, input_ids: Int[Tensor, "batch length"], segment_ids: Int[Tensor, "batch length"]
) -> Float[Tensor, "batch length hidden"]:
    """Token states of rows that hold several texts, each as if it were alone (see :func:`packed_mask`).

    Raises:
        L2VError: the decoder takes no positions, or a layer carries a state from text to text.
    """
    config: Any = model.config
    if not accepts_position_ids(model):
        raise L2VError(f"{config.model_type}: texts cannot be packed into one row, since it takes no position_ids")
    positions = packed_positions(segment_ids)
    if "flash" in config._attn_implementation:
        # transformers finds texts by their positions, and in a single row only
        flat = model(input_ids=input_ids.reshape(1, -1), position_ids=positions.reshape(1, -1), use_cache=False)
        return flat.last_hidden_state.reshape(*input_ids.shape, -1)
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    mask = packed_mask(config, segment_ids, embeddings.weight.dtype)
    return model(input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state


@torch.no_grad()
def prove_packing(model: nn.Module) -> float:
    """Run texts packed into rows, and each alone, to see that they have the same states.

    Returns:
        The largest relative change of a text's states.

    Raises:
        L2VError: texts in one row reach each other, or the model cannot run like this.
    """
    config: Any = model.config
    attention: Attention = "causal" if getattr(config, "is_causal", True) else "bidirectional"
    return in_evaluation(model, attention, lambda: _prove_packing(model))


def _prove_packing(model: nn.Module) -> float:
    config: Any = model.config
    device, dtype = device_and_dtype(model)
    # in the second row padding comes first, and in the middle
    segments = torch.tensor([[1] * 7 + [2] * 3 + [3] * 5 + [0], [0] * 2 + [1] * 4 + [0] + [2] * 9], device=device)
    ids = torch.randint(config.get_text_config().vocab_size, segments.shape, generator=torch.Generator().manual_seed(0))
    ids = ids.to(device)
    packed = trace(model, ids, segments, run=packed_states)
    change = 0.0
    for row, texts in enumerate(segments):
        for number in range(1, int(texts.max()) + 1):
            tokens = row * segments.shape[1] + (texts == number).nonzero().flatten()
            text = ids.flatten()[tokens][None]
            alone = trace(model, text, torch.ones_like(text), packed.fed(tokens))
            change = max(change, largest_change(packed, alone, tokens, slice(None)))
            if not change <= same_within(dtype):  # not (a <= b) rather than a > b: a NaN must fail too
                raise L2VError(
                    f"{config.model_type} with attn_implementation={config._attn_implementation}: texts cannot be "
                    f"packed into one row; it changes their states by {change:.1e} (relative; at most "
                    f"{same_within(dtype):.0e} is rounding)"
                )
    return change


def _starts(segment_ids: Tensor) -> Tensor:
    """Where a text, or a stretch of padding, begins: (batch, length) bool."""
    before = torch.nn.functional.pad(segment_ids, (1, 0), value=-1)[:, :-1]
    return segment_ids != before
