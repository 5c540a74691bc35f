"""The only room that knows about causality: switch it off, then prove that it is off.

transformers decides causality in two places: the mask that the model builds reads ``config.is_causal``, and the
attention kernels read ``is_causal`` of the attention module when there is no mask. Both are set here. Neither is
trusted: :func:`prove` runs the model, and :func:`prove_packing` runs it on rows that hold several texts.
"""

import inspect
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.masking_utils import (
    create_causal_mask,
    create_sliding_window_causal_mask,
    packed_sequence_mask_function,
)

from l2v.errors import L2VError, first_line

T = TypeVar("T")
Attention = Literal["bidirectional", "causal"]
ATTENTIONS: tuple[str, ...] = get_args(Attention)

_PROBE_LENGTH = 12
_PADDING = 5
# Relative change of the states (Frobenius norm) that counts as none, and as one, by dtype: rounding stays below the
# first bound, and the effect of another token far above it.
_SAME = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}


def set_attention(model: nn.Module, attention: Attention) -> None:
    """Make every layer of a transformers decoder look both ways, or back only.

    Written to ``config.is_causal`` too, so that a saved model is reloaded with the same attention by transformers,
    sentence-transformers and vLLM. Sliding-window layers become windowed on both sides: a token sees
    ``config.sliding_window`` tokens on each (with flash_attention_2, whose windows transformers sets, one fewer).
    """
    causal = attention == "causal"
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "model_type"):
            config.is_causal = causal
        if hasattr(module, "is_causal"):
            module.is_causal = causal  # type: ignore[assignment]


@dataclass(frozen=True)
class Proof:
    """What :func:`prove` saw. Changes are relative: ||after - before|| / ||before||."""

    attention: Attention
    attn_implementation: str
    backward_change: float
    """Change of the earlier states when the last token is replaced: 0 when causal."""
    padding_change: float
    """Largest change of a text's states when padding and a longer neighbour join it."""
    eager_change: float
    """Change of the states when eager attention, the reference, takes the place of ``attn_implementation``."""
    causal_layers: list[int] = field(default_factory=list)
    """Layers in which no position sees a later one."""


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder's list of layers: the module list nearest to the root."""
    queue: deque[nn.Module] = deque([model])
    while queue:
        module = queue.popleft()
        if isinstance(module, nn.ModuleList) and len(module) > 0:
            return module
        queue.extend(module.children())
    raise L2VError(f"{type(model).__name__} has no list of layers; expected a decoder-only transformer")


@torch.no_grad()
def prove(model: nn.Module, attention: Attention, *, partial: bool = False) -> Proof:
    """Run the model to see that it attends as ``attention`` says and that padding moves nothing.

    Six short forward passes in evaluation mode, on the model's device, dtype and attention implementation:

    - the last token is replaced, without and with padding in the batch: earlier states must move when bidirectional
      and must not when causal;
    - the same for each layer on its own, so that one causal layer among bidirectional ones is found;
    - a text is run alone, right-padded and left-padded beside a longer one: its states must stay;
    - once more with eager attention: the states must be the same. An implementation that leaves out what the family
      adds to attention (soft caps, sinks) does so without an error.

    Args:
        model: a transformers decoder, with or without an adapter.
        attention: what is expected.
        partial: accept layers that stay causal (linear attention, convolutions).

    Raises:
        L2VError: naming the layers or the padding side that fail, or saying that the model cannot run like this.
    """
    return _in_evaluation(model, attention, lambda: _prove(model, attention, partial))


def _prove(model: nn.Module, attention: Attention, partial: bool) -> Proof:
    config: Any = model.config
    device, dtype = _device_and_dtype(model)
    same = _SAME[dtype]
    vocabulary = config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    long = torch.randint(vocabulary, (1, _PROBE_LENGTH + _PADDING), generator=generator).to(device)
    text = long[:, :_PROBE_LENGTH]
    replaced = text.clone()
    replaced[0, -1] = (text[0, -1] + 1 + vocabulary // 2) % vocabulary

    before, inputs = _run_recording_layers(model, text)
    after = _states(model, replaced, torch.ones_like(replaced))
    backward = _change(before[:, :-1], after[:, :-1])

    mask = torch.ones(2, _PROBE_LENGTH + _PADDING, dtype=torch.long, device=device)
    right, left = mask.clone(), mask.clone()
    right[0, _PROBE_LENGTH:] = 0
    left[0, :_PADDING] = 0
    filler = long[:, :_PADDING]
    batch = torch.cat([torch.cat([text, filler], 1), long])
    both = _states(model, batch, right)
    in_right = both[:1, :_PROBE_LENGTH]
    in_left = _states(model, torch.cat([torch.cat([filler, text], 1), long]), left)[:1, _PADDING:]
    padded = _states(model, torch.cat([torch.cat([replaced, filler], 1), long]), right)[:1, :_PROBE_LENGTH]
    padded_backward = _change(in_right[:, :-1], padded[:, :-1])
    moved_right, moved_left = _change(before, in_right), _change(before, in_left)
    eager = both if config._attn_implementation == "eager" else _eager_states(model, batch, right)

    proof = Proof(
        attention=attention,
        attn_implementation=config._attn_implementation,
        backward_change=min(backward, padded_backward),
        padding_change=max(moved_right, moved_left),
        eager_change=_change(eager[right.bool()], both[right.bool()]),
        causal_layers=_causal_layers(model, inputs, same),
    )
    where = f"{config.model_type} with attn_implementation={proof.attn_implementation}"
    if attention == "bidirectional":
        if proof.causal_layers and not partial:
            raise L2VError(
                f"{where}: layers {_ranges(proof.causal_layers)} stay causal, so this decoder cannot be made fully "
                "bidirectional; set model.partial=true to use it all the same, or model.attention=causal"
            )
        if not proof.causal_layers and (backward < same or padded_backward < same):
            how = "without padding" if backward < same else "with padding in the batch"
            raise L2VError(f"{where} stays causal {how}; try model.attn_implementation=eager or sdpa")
    elif max(backward, padded_backward) > same:
        raise L2VError(f"{where} is not causal though attention=causal was asked for")
    # not (a <= b) rather than a > b: a NaN must fail too
    if not (moved_right <= same and moved_left <= same):
        side = "right" if not moved_right <= same else "left"
        raise L2VError(
            f"{where}: padding on the {side} changes a text's states by {max(moved_right, moved_left):.1e} "
            f"(relative; at most {same:.0e} is rounding); try another model.attn_implementation"
        )
    if not proof.eager_change <= same:
        raise L2VError(
            f"{where}: its states differ from those of eager attention by {proof.eager_change:.1e} (relative; at most "
            f"{same:.0e} is rounding), so it leaves out what this family adds to attention; set "
            "model.attn_implementation=eager"
        )
    return proof


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count from each row's first token, whatever the padding side: (batch, length) int64."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def accepts_position_ids(model: nn.Module) -> bool:
    """Whether the decoder takes positions. BLOOM (ALiBi) and OPT derive them from the mask instead."""
    get_base_model = getattr(model, "get_base_model", None)  # of a PeftModel
    inner = get_base_model() if get_base_model else model
    return "position_ids" in inspect.signature(inner.forward).parameters


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
    number = _starts(segment_ids).cumsum(dim=1)
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
    return _in_evaluation(model, attention, lambda: _prove_packing(model))


def _prove_packing(model: nn.Module) -> float:
    config: Any = model.config
    device, dtype = _device_and_dtype(model)
    # in the second row padding comes first, and in the middle
    segments = torch.tensor([[1] * 7 + [2] * 3 + [3] * 5 + [0], [0] * 2 + [1] * 4 + [0] + [2] * 9], device=device)
    ids = torch.randint(config.get_text_config().vocab_size, segments.shape, generator=torch.Generator().manual_seed(0))
    ids = ids.to(device)
    packed = packed_states(model, ids, segments).float()
    change = 0.0
    for row, texts in enumerate(segments):
        for number in range(1, int(texts.max()) + 1):
            text = ids[row, texts == number][None]
            alone = _states(model, text, torch.ones_like(text))
            change = max(change, _change(alone, packed[row, texts == number][None]))
            if not change <= _SAME[dtype]:  # not (a <= b) rather than a > b: a NaN must fail too
                raise L2VError(
                    f"{config.model_type} with attn_implementation={config._attn_implementation}: texts cannot be "
                    f"packed into one row; it changes their states by {change:.1e} (relative; at most "
                    f"{_SAME[dtype]:.0e} is rounding)"
                )
    return change


def _starts(segment_ids: Tensor) -> Tensor:
    """Where a text, or a stretch of padding, begins: (batch, length) bool."""
    before = torch.nn.functional.pad(segment_ids, (1, 0), value=-1)[:, :-1]
    return segment_ids != before


def _in_evaluation(model: nn.Module, attention: Attention, check: Callable[[], T]) -> T:
    """Run a check in evaluation mode; whatever breaks in the model becomes one line."""
    was_training = model.training
    model.eval()
    try:
        return check()
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        config: Any = model.config
        raise L2VError(
            f"{config.model_type} with attn_implementation={config._attn_implementation} cannot run as {attention} "
            f"({type(error).__name__}: {first_line(error)}); try another model.attn_implementation or model.attention"
        ) from error
    finally:
        model.train(was_training)


def _device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    return next((p.device, p.dtype) for p in model.parameters() if p.is_floating_point())


def _states(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    positions = {"position_ids": position_ids(mask)} if accepts_position_ids(model) else {}
    return model(input_ids=ids, attention_mask=mask, use_cache=False, **positions).last_hidden_state.float()


def _eager_states(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    chosen = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return _states(model, ids, mask)
    finally:
        model.set_attn_implementation(chosen)


def _run_recording_layers(model: nn.Module, ids: Tensor) -> tuple[Tensor, list[tuple[tuple, dict]]]:
    inputs: list[tuple[tuple, dict]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True)
        for layer in decoder_layers(model)
    ]
    try:
        return _states(model, ids, torch.ones_like(ids)), inputs
    finally:
        for hook in hooks:
            hook.remove()


def _causal_layers(model: nn.Module, inputs: list[tuple[tuple, dict]], same: float) -> list[int]:
    """Run each layer on its recorded input with another last position, and see whether earlier ones move."""
    causal = []
    for index, (layer, (args, kwargs)) in enumerate(zip(decoder_layers(model), inputs, strict=True)):
        states = args[0] if args else kwargs["hidden_states"]
        other = states.clone()
        other[:, -1] = states[:, 0].flip(-1)
        outputs = []
        for value in (states, other):
            positional = (value, *args[1:]) if args else ()
            named = kwargs if args else {**kwargs, "hidden_states": value}
            output = layer(*positional, **named)
            outputs.append((output[0] if isinstance(output, tuple) else output).float())
        # the layer's own update, without the residual stream that passes beside it
        update, other_update = outputs[0] - states.float(), outputs[1] - other.float()
        if _change(update[:, :-1], other_update[:, :-1]) < same:
            causal.append(index)
    return causal


def _change(before: Tensor, after: Tensor) -> float:
    return ((after - before).norm() / before.norm()).item()


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> '0-2, 5'."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
