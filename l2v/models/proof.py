"""Whether a model attends as it should: it is run to see."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from l2v.errors import L2VError, first_line, is_out_of_memory
from l2v.models.bidirectional import Attention, accepts_position_ids, decoder_layers
from l2v.text.tokenization import position_ids

T = TypeVar("T")
Run = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From a model, ids and mask (rows, length) to the last states (rows, length, hidden) in float32."""

_PROBE_LENGTH = 12
_PADDING = 5
# Relative change of a layer's update that counts as none, by dtype: rounding stays below.
_SAME = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
# Relative change that shows that another token was seen. What a token cannot see changes nothing at all, or rounding
# where experts get other batches.
_SEEN = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
_OF_PRECISION = {"highest": torch.float32, "high": torch.float16, "medium": torch.bfloat16}
"""What float32 products are made of, by ``torch.set_float32_matmul_precision``: TF32 has the digits of float16."""


def same_within(dtype: torch.dtype) -> float:
    """The largest relative change of a layer's update that is rounding, of a model in this dtype."""
    return _SAME[_rounds_as(dtype)]


def _rounds_as(dtype: torch.dtype) -> torch.dtype:
    if dtype != torch.float32:
        return dtype
    if os.environ.get("NVIDIA_TF32_OVERRIDE") == "1":
        return torch.float16
    return _OF_PRECISION[torch.get_float32_matmul_precision()]


@dataclass(frozen=True)
class Proof:
    """What :func:`prove` saw. Changes are relative: ||after - before|| / ||before||."""

    attention: Attention
    attn_implementation: str
    backward_change: float
    """Change of the earlier states when the last token is replaced: 0 when causal."""
    padding_change: float
    """Largest change of a layer's update of a text when padding and a longer neighbour join it."""
    eager_change: float
    """The same when eager attention, the reference, takes the place of ``attn_implementation``."""
    causal_layers: list[int] = field(default_factory=list)
    """Layers in which no position sees a later one."""


@torch.no_grad()
def prove(model: nn.Module, attention: Attention, *, partial: bool = False, run: Run | None = None) -> Proof:
    """Run the model to see that it attends as ``attention`` says and that padding moves nothing.

    Seven short forward passes in evaluation mode, on the model's device, dtype and attention implementation:

    - a text, right-padded beside a longer one. What goes into each layer is kept and given to the layers of most other
      passes too. So each layer is compared by itself, and rounding, which deep models in 16 bits amplify until it
      changes all of the last states, does not add up;
    - the text alone, and left-padded: each layer must give it the same;
    - with eager attention: the same again. An implementation that leaves out what the family adds to attention (soft
      caps, sinks) does so without an error;
    - alone and padded, with another second half: the first half must move in every layer when bidirectional, and in
      none when causal;
    - another last token through the whole model: earlier states must move, or must not.

    Args:
        model: a transformers decoder, with or without an adapter.
        attention: what is expected.
        partial: accept layers that stay causal (linear attention, convolutions).
        run: runs the model, where that takes more than calling it.

    Raises:
        L2VError: naming the layers or the padding side that fail, or saying that the model cannot run like this.
    """
    return in_evaluation(model, attention, lambda: _prove(model, attention, partial, run or last_hidden_states))


def _prove(model: nn.Module, attention: Attention, partial: bool, run: Run) -> Proof:
    config: Any = model.config
    device, dtype = device_and_dtype(model)
    same, seen = same_within(dtype), _SEEN[_rounds_as(dtype)]
    vocabulary = config.get_text_config().vocab_size
    length = _PROBE_LENGTH + _PADDING
    long = torch.randint(vocabulary, (length,), generator=torch.Generator().manual_seed(0)).to(device)
    text, filler = long[:_PROBE_LENGTH], long[:_PADDING]
    everything = torch.ones(2, length, dtype=torch.long, device=device)
    right, left = everything.clone(), everything.clone()
    right[0, _PROBE_LENGTH:] = 0
    left[0, :_PADDING] = 0
    # tokens are numbered through the rows: the text comes first, then its padding, then the long neighbour
    tokens = torch.arange(2 * length, device=device)
    in_text, real = tokens[:_PROBE_LENGTH], tokens[right.flatten().bool()]
    half = _PROBE_LENGTH // 2
    to_left = torch.cat([tokens[_PROBE_LENGTH:length], in_text, tokens[length:]])

    ids = torch.stack([torch.cat([text, filler]), long])
    alone_ids, alone_mask = text[None], everything[:1, :_PROBE_LENGTH]
    padded = trace(model, ids, right, run=run)
    alone = trace(model, alone_ids, alone_mask, padded.fed(in_text), run=run)
    moved_right = largest_change(padded, alone, in_text, slice(None))
    in_left = trace(model, torch.stack([torch.cat([filler, text]), long]), left, padded.fed(to_left), run=run)
    moved_left = largest_change(padded, in_left, to_left[left.flatten().bool()], left.flatten().bool())
    eager_change = 0.0
    if config._attn_implementation != "eager":
        eager_change = largest_change(_eager_trace(model, ids, right, padded, run), padded, real, real)

    # the opposite of what they were: in another order they would be the same to layers that know no positions
    sign = torch.ones(2 * length, 1, dtype=dtype, device=device)
    sign[half:_PROBE_LENGTH] = -1
    other_alone = trace(model, alone_ids, alone_mask, [sign[in_text] * states for states in alone.inputs], run=run)
    other_padded = trace(model, ids, right, [sign * states for states in padded.inputs], run=run)
    unmoved = [
        {layer for layer, change in enumerate(_moved(one, other, tokens[:half])) if change < seen}
        for one, other in ((alone, other_alone), (padded, other_padded))
    ]
    causal = set.union(*unmoved) if attention == "bidirectional" else set.intersection(*unmoved)
    replaced = ids.clone()
    replaced[0, _PROBE_LENGTH - 1] = (text[-1] + 1 + vocabulary // 2) % vocabulary
    earlier = in_text[:-1]
    states = run(model, replaced, right).flatten(0, 1)
    proof = Proof(
        attention=attention,
        attn_implementation=config._attn_implementation,
        backward_change=_change(padded.states[earlier], states[earlier]),
        padding_change=max(moved_right, moved_left),
        eager_change=eager_change,
        causal_layers=sorted(causal),
    )
    where = f"{config.model_type} with attn_implementation={proof.attn_implementation}"
    told = "its states are not finite; use dtype=float32 or dtype=bfloat16, unless its weights are none"
    if math.isnan(moved_right + moved_left) or (attention == "causal" and not bool(padded.states.isfinite().all())):
        raise L2VError(f"{where}: {told}")
    if attention == "bidirectional":
        if proof.causal_layers and not partial:
            raise L2VError(
                f"{where}: {_named(proof.causal_layers)} causal, so this decoder cannot be made fully bidirectional; "
                "set model.partial=true to use it all the same, or model.attention=causal"
            )
        if not proof.causal_layers and proof.backward_change < seen:
            raise L2VError(f"{where} stays causal; try model.attn_implementation=eager or sdpa")
    elif len(causal) < len(padded.outputs) or not proof.backward_change <= same:
        raise L2VError(f"{where} is not causal though attention=causal was asked for")
    # not (a <= b) rather than a > b: a NaN must fail too
    if not (moved_right <= same and moved_left <= same):
        side = "right" if not moved_right <= same else "left"
        raise L2VError(
            f"{where}: padding on the {side} changes a text's states by {max(moved_right, moved_left):.1e} "
            f"(relative; at most {same:.0e} is rounding); try another model.attn_implementation"
        )
    if not eager_change <= same:
        raise L2VError(
            f"{where}: its states differ from those of eager attention by {eager_change:.1e} (relative; at most "
            f"{same:.0e} is rounding), so it leaves out what this family adds to attention; set "
            "model.attn_implementation=eager"
        )
    return proof


@dataclass(frozen=True)
class _Trace:
    """A forward pass: what went into each layer, what came out, and the last states; all (tokens, hidden)."""

    embeddings: Tensor
    inputs: list[Tensor]
    outputs: list[Tensor]
    states: Tensor

    def fed(self, tokens: Tensor) -> list[Tensor]:
        """The layers' inputs at these tokens."""
        return [states[tokens] for states in self.inputs]


def trace(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor,
    fed: list[Tensor] | None = None,
    *,
    run: Run | None = None,
) -> _Trace:
    """Run the model, by default by ``last_hidden_states``. With ``fed``, layer i gets ``fed[i]`` (tokens, hidden)."""
    embeddings: list[Tensor] = []
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def feed(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        if not embeddings:
            embeddings.append(states.flatten(0, 1).clone())
        if fed is not None:
            states = fed[len(inputs)].reshape(states.shape)
        inputs.append(states.flatten(0, 1).clone())
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": states}
        return (states, *args[1:]), kwargs

    def keep(_: nn.Module, args: tuple, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output).flatten(0, 1).clone())

    hooks = []
    for layer in decoder_layers(model):
        hooks += [layer.register_forward_pre_hook(feed, with_kwargs=True), layer.register_forward_hook(keep)]
    try:
        states = (run or last_hidden_states)(model, ids, mask)
    finally:
        for hook in hooks:
            hook.remove()
    return _Trace(embeddings[0], inputs, outputs, states.flatten(0, 1))


def _eager_trace(model: Any, ids: Tensor, mask: Tensor, like: _Trace, run: Run) -> _Trace:
    chosen = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return trace(model, ids, mask, like.inputs, run=run)
    finally:
        model.set_attn_implementation(chosen)


Tokens = Tensor | slice


def largest_change(one: _Trace, other: _Trace, in_one: Tokens, in_other: Tokens) -> float:
    """The same tokens in two passes whose layers were fed the same: the largest relative change of a layer's update.

    Over the tokens it is the root mean square. An update is what the layer adds to the residual stream; the rounding
    of the sum is left out.
    """
    rounding = torch.finfo(one.inputs[0].dtype).eps
    changes = [_relative(one.embeddings[in_one].float(), other.embeddings[in_other].float())]
    for fed, before, after in zip(one.inputs, one.outputs, other.outputs, strict=True):
        a, b = before[in_one].float(), after[in_other].float()
        change = ((b - a).norm(dim=-1) - rounding * a.norm(dim=-1)).clamp(min=0)
        changes.append((change / (a - fed[in_one].float()).norm(dim=-1)).square().mean().sqrt())
    return torch.stack(changes).max().item()  # max() of Python loses a NaN


def _moved(one: _Trace, other: _Trace, tokens: Tensor) -> list[float]:
    """How much the update of the token that moves most changes, in each layer.

    What later positions do can be small beside the largest states of a layer (real models have positions that nearly
    all attention goes to), hence not the mean, and each token relative to its own update.
    """
    changes = []
    for fed, before, after in zip(one.inputs, one.outputs, other.outputs, strict=True):
        update = before[tokens].float() - fed[tokens].float()
        change = (after[tokens].float() - before[tokens].float()).norm(dim=-1) / update.norm(dim=-1)
        changes.append(change.max().item())
    return changes


def in_evaluation(model: nn.Module, attention: Attention, check: Callable[[], T]) -> T:
    """Run a check in evaluation mode; whatever breaks in the model becomes one line."""
    was_training = model.training
    model.eval()
    try:
        return check()
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        config: Any = model.config
        raise L2VError(
            f"{config.model_type} with attn_implementation={config._attn_implementation} cannot run as {attention} "
            f"({type(error).__name__}: {first_line(error)}); try another model.attn_implementation or model.attention"
        ) from error
    finally:
        model.train(was_training)


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    return next((p.device, p.dtype) for p in model.parameters() if p.is_floating_point())


@torch.no_grad()
def last_hidden_states(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Of token ids and their padding mask (both rows, tokens), in float32 (rows, tokens, hidden)."""
    positions = {"position_ids": position_ids(mask)} if accepts_position_ids(model) else {}
    return model(input_ids=ids, attention_mask=mask, use_cache=False, **positions).last_hidden_state.float()


def _change(before: Tensor, after: Tensor) -> float:
    return _relative(before, after).item()


def _relative(before: Tensor, after: Tensor) -> Tensor:
    return (after - before).norm() / before.norm()


def _named(numbers: list[int]) -> str:
    """[5] -> 'layer 5 stays', [0, 1, 2, 5] -> 'layers 0-2, 5 stay'."""
    if len(numbers) == 1:
        return f"layer {numbers[0]} stays"
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return f"layers {', '.join(str(a) if a == b else f'{a}-{b}' for a, b in spans)} stay"
