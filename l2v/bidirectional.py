"""The only room that knows about causality: switch it off, then prove that it is off.

transformers decides causality in two places: the mask that the model builds reads ``config.is_causal``, and the
attention kernels read ``is_causal`` of the attention module when there is no mask. Both are set here. Neither is
trusted: :func:`prove` runs the model.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from l2v.errors import L2VError

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
    sentence-transformers and vLLM. Sliding-window layers become windowed on both sides.
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

    Five short forward passes in evaluation mode, on the model's device, dtype and attention implementation:

    - the last token is replaced, without and with padding in the batch: earlier states must move when bidirectional
      and must not when causal;
    - the same for each layer on its own, so that one causal layer among bidirectional ones is found;
    - a text is run alone, right-padded and left-padded beside a longer one: its states must stay.

    Args:
        model: a transformers decoder, with or without an adapter.
        attention: what is expected.
        partial: accept layers that stay causal (linear attention, convolutions).

    Raises:
        L2VError: naming the layers or the padding side that fail, or saying that the model cannot run like this.
    """
    was_training = model.training
    model.eval()
    try:
        return _prove(model, attention, partial)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        config: Any = model.config
        reason = str(error).strip().partition("\n")[0]
        raise L2VError(
            f"{config.model_type} with attn_implementation={config._attn_implementation} cannot run as {attention} "
            f"({type(error).__name__}: {reason}); try another model.attn_implementation or model.attention"
        ) from error
    finally:
        model.train(was_training)


def _prove(model: nn.Module, attention: Attention, partial: bool) -> Proof:
    config: Any = model.config
    device, dtype = next((p.device, p.dtype) for p in model.parameters() if p.is_floating_point())
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
    in_right = _states(model, torch.cat([torch.cat([text, filler], 1), long]), right)[:1, :_PROBE_LENGTH]
    in_left = _states(model, torch.cat([torch.cat([filler, text], 1), long]), left)[:1, _PADDING:]
    padded = _states(model, torch.cat([torch.cat([replaced, filler], 1), long]), right)[:1, :_PROBE_LENGTH]
    padded_backward = _change(in_right[:, :-1], padded[:, :-1])
    moved_right, moved_left = _change(before, in_right), _change(before, in_left)

    proof = Proof(
        attention=attention,
        attn_implementation=config._attn_implementation,
        backward_change=min(backward, padded_backward),
        padding_change=max(moved_right, moved_left),
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
    return proof


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count from each row's first token, whatever the padding side: (batch, length) int64."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def accepts_position_ids(model: nn.Module) -> bool:
    """Whether the decoder takes positions. BLOOM (ALiBi) and OPT derive them from the mask instead."""
    import inspect

    get_base_model = getattr(model, "get_base_model", None)  # of a PeftModel
    inner = get_base_model() if get_base_model else model
    return "position_ids" in inspect.signature(inner.forward).parameters


def _states(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    positions = {"position_ids": position_ids(mask)} if accepts_position_ids(model) else {}
    return model(input_ids=ids, attention_mask=mask, use_cache=False, **positions).last_hidden_state.float()


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
