"""Which decoders can be turned, proven on tiny random models: the table of docs/models.md.

A model type needs no code of its own in l2v. What holds for real weights is proven again whenever a model is loaded.
"""

import contextlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from l2v.errors import L2VError, first_line, is_out_of_memory
from l2v.models.adapters import Lora, trainable_parameters
from l2v.models.backbone import Backbone
from l2v.models.bidirectional import decoder_layers
from l2v.models.families import FAMILIES, Family, tiny_model
from l2v.models.proof import Proof, last_hidden_states, prove
from l2v.models.settings import AttnImplementation
from l2v.progress import track
from l2v.runs.locations import Source

_LENGTH = 10
_SAME = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference, relative to the largest state, that counts as rounding."""
_SEEN = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
"""Least change of a layer's output, relative to the largest, that shows that a position was seen."""


@dataclass(frozen=True)
class Row:
    """One line of the table; every finding is yes, no with its reason, or empty where nothing could be run."""

    family: str
    attn_implementation: str
    bidirectional: str
    padding: str = ""
    batch: str = ""
    packing: str = ""
    checkpointing: str = ""
    lora: str = ""

    def cells(self) -> list[str]:
        return [getattr(self, name) for name in self.__dataclass_fields__]


_BEGIN, _END = "<!-- the table begins -->", "<!-- the table ends -->"
HEADER = Row("model type", "attention", "bidirectional", "padding", "batch", "packing", "checkpointing", "LoRA on")


def implementations() -> list[AttnImplementation]:
    """The attention implementations that this machine can run."""
    on_cuda: list[AttnImplementation] = ["flash_attention_2"] if torch.cuda.is_available() else []
    return ["eager", "sdpa", "flex_attention", *on_cuda]


def examine(family: Family, implementation: AttnImplementation) -> Row:
    """Build a tiny model of a family and see what works with an attention implementation.

    Apart from the proof that every loaded model passes, each finding compares with something computed another way.
    flex_attention runs uncompiled, which is the same arithmetic without a minute of compiling.
    """
    row = Row(family.name, implementation, "")
    with _quiet(), torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
        try:
            model = tiny_model(family, implementation)
            proof = prove(model, "bidirectional", partial=family.partial)
        except (L2VError, ValueError, ImportError) as error:
            return replace(row, bidirectional=f"refused: {_reason(error)}")
        return replace(
            row,
            bidirectional=_found(lambda: _sees_both_sides(model, proof) + _note(model, implementation)),
            padding=_found(lambda: _ignores_padding(model)),
            batch=_found(lambda: _ignores_neighbours(model, proof)),
            packing=_found(lambda: _packs(model, proof)),
            checkpointing=_found(lambda: _checkpoints(family, implementation)),
            lora=_found(lambda: _takes_lora(family, implementation, proof)),
        )


def _backbone(model: PreTrainedModel, proof: Proof) -> Backbone:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    return Backbone(model, tokenizer, source=Source("tiny", "tiny"), proof=proof).eval()


def _note(model: PreTrainedModel, implementation: AttnImplementation) -> str:
    """Whether the kernel of this name is what computes."""
    called: set[str] = set()

    class Listen(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(getattr(function, "__name__", ""))
            return function(*args, **(kwargs or {}))

    kernel = {"sdpa": "scaled_dot_product_attention", "flex_attention": "flex_attention"}.get(implementation)
    with Listen():
        last_hidden_states(model, ids := _ids(1, _LENGTH, model), torch.ones_like(ids))
    return "" if kernel is None or kernel in called else " (eager attention computes it)"


def _sees_both_sides(model: PreTrainedModel, proof: Proof) -> str:
    """Replace the input of each layer at each position, with and without padding, and see which outputs move.

    Every position must be seen by all others, or by those in the sliding window on both sides; padding by none. And a
    replaced token must move exactly the states that it can reach through these layers.
    """
    ids = _ids(1, _LENGTH, model)
    window = getattr(model.config, "sliding_window", None)
    edge = 0 if "flash" in proof.attn_implementation else 1  # flash_attention_2's windows are one narrower
    places = torch.arange(_LENGTH)
    everything = torch.ones(_LENGTH, _LENGTH, dtype=torch.bool)
    backward_only = everything.tril()
    near = (places[:, None] - places).abs() < window + edge if window else everything
    windowed = False
    for left, right in ((0, 0), (0, 3), (3, 0)):
        mask = torch.ones_like(ids)
        mask[:, :left] = 0
        mask[:, _LENGTH - right :] = 0
        text = slice(left, _LENGTH - right)
        reach = torch.eye(_LENGTH, dtype=torch.bool)
        for layer in range(len(decoder_layers(model))):
            seen = _seen_in_layer(model, layer, ids, mask)
            reach = (seen.float() @ reach.float()) > 0
            padding = mask[0] == 0
            if seen[text][:, padding].any():
                return f"no: layer {layer} sees padding"
            seen = seen[text, text]
            expected = [everything[text, text], near[text, text]]
            if layer in proof.causal_layers:
                expected = [backward_only[text, text], seen if not seen.triu(1).any() else backward_only[text, text]]
            if not any(torch.equal(seen, pattern) for pattern in expected):
                return f"no: layer {layer} sees {int(seen.sum())} of {int(expected[0].sum())} pairs of positions"
            windowed |= not torch.equal(seen, everything[text, text]) and layer not in proof.causal_layers
        if not torch.equal(_moved_states(model, ids, mask)[text, text], reach[text, text]):
            return "no: a replaced token moves other states than its layers say"
    if window and window < _LENGTH and not windowed:
        return f"no: no layer has the sliding window of {window}"
    if proof.causal_layers:
        both = len(decoder_layers(model)) - len(proof.causal_layers)
        return f"partial: {both} of {len(decoder_layers(model))} layers"
    return "yes, windows on both sides" if windowed else "yes"


def _seen_in_layer(model: PreTrainedModel, layer: int, ids: Tensor, mask: Tensor) -> Tensor:
    """[i, j]: whether the layer's output at position i moves when its input at position j is another: bool."""
    length = ids.shape[1]
    outputs: list[Tensor] = []

    def replace_input(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        others = states.clone()
        for place in range(length):  # row 0 stays as it is
            others[place + 1, place] = -states[place + 1, place].flip(-1)
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": others}
        return (others, *args[1:]), kwargs

    def keep_output(_: nn.Module, args: tuple, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output).detach().float())

    module = decoder_layers(model)[layer]
    hooks = [
        module.register_forward_pre_hook(replace_input, with_kwargs=True),
        module.register_forward_hook(keep_output),
    ]
    try:
        last_hidden_states(model, ids.expand(length + 1, -1), mask.expand(length + 1, -1))
    finally:
        for hook in hooks:
            hook.remove()
    return _moved(outputs[0], model.dtype)


def _moved_states(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """[i, j]: whether the last state at position i moves when token j is another: bool."""
    length = ids.shape[1]
    rows = ids.repeat(length + 1, 1)
    for place in range(length):
        rows[place + 1, place] = (ids[0, place] + 50) % model.config.vocab_size
    return _moved(last_hidden_states(model, rows, mask.expand(length + 1, -1)), model.dtype)


def _moved(outputs: Tensor, dtype: torch.dtype) -> Tensor:
    """(1 + length, length, hidden), row j + 1 with position j replaced -> (length, length) bool, [i, j]."""
    change = (outputs[1:] - outputs[:1]).abs().amax(dim=-1)
    return (change > _SEEN[dtype] * outputs.abs().max()).T.cpu()


def _ignores_padding(model: PreTrainedModel) -> str:
    """A text's states alone, and with padding on either side that holds any tokens."""
    ids = _ids(1, _LENGTH, model)
    alone = last_hidden_states(model, ids, torch.ones_like(ids))
    for side, left, right in (("left", 1, 0), ("left", 6, 0), ("right", 0, 1), ("right", 0, 6)):
        padded = torch.cat([_ids(1, left, model, seed=2), ids, _ids(1, right, model, seed=3)], dim=1)
        mask = torch.zeros_like(padded)
        mask[:, left : left + _LENGTH] = 1
        if not _equal(last_hidden_states(model, padded, mask)[:, left : left + _LENGTH], alone, model.dtype):
            return f"no: padding on the {side} changes a text's states"
    return "yes"


def _ignores_neighbours(model: PreTrainedModel, proof: Proof) -> str:
    """Embeddings of texts alone, and in batches with others, in another order."""
    backbone = _backbone(model, proof)
    lengths = [_LENGTH, 4, 7, 1]
    texts = [_ids(1, length, model, seed=length)[0] for length in lengths]

    def embed(chosen: Sequence[int]) -> Tensor:
        ids = nn.utils.rnn.pad_sequence([texts[i] for i in chosen], batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(texts[i]) for i in chosen], batch_first=True)
        with torch.no_grad():
            return backbone.embed(ids, mask, mask)

    alone = torch.cat([embed([i]) for i in range(len(texts))])
    for chosen in ([0, 1, 2, 3], [3, 2, 1], [1, 2], [1, 1, 0]):
        if not _equal(embed(chosen), alone[chosen], model.dtype):
            return "no: a text's embedding depends on its batch"
    return "yes"


def _packs(model: PreTrainedModel, proof: Proof) -> str:
    """Texts in one row, with padding after and between them, and each alone."""
    backbone = _backbone(model, proof)
    rows = torch.tensor([[1] * 9 + [2] * 2 + [3] * 4 + [0], [1] * 3 + [0] * 2 + [2] * 10 + [3]], device=model.device)
    ids = _ids(2, rows.shape[1], model, seed=4)
    with torch.no_grad():
        packed = backbone(ids, rows.sign(), segment_ids=rows).float()
    for row in range(2):
        for number in (1, 2, 3):
            here = rows[row] == number
            alone = last_hidden_states(model, ids[row, here][None], torch.ones_like(ids[row, here])[None])
            if not _equal(packed[row, here][None], alone, model.dtype):
                return "no: packing changes a text's states"
    return "yes"


def _checkpoints(family: Family, implementation: AttnImplementation) -> str:
    """Gradients of every weight with and without recomputing, dropout included; and that something is recomputed."""
    gradients, runs = [], []
    for enabled in (False, True):
        model = tiny_model(family, implementation).train()
        if enabled:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        calls: list[None] = []
        inside = next(m for m in decoder_layers(model)[0].modules() if isinstance(m, nn.Linear | Conv1D))
        inside.register_forward_hook(lambda *_, calls=calls: calls.append(None))
        ids = _ids(2, _LENGTH, model)
        torch.manual_seed(0)
        mask = torch.ones_like(ids)
        mask[1, 6:] = 0
        output = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        output[mask.bool()].float().square().mean().backward()
        gradients.append({name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None})
        runs.append(len(calls))
    if runs[1] <= runs[0]:
        return "no: nothing is recomputed"
    plain, recomputed = gradients
    if plain.keys() != recomputed.keys():
        return "no: other weights have gradients"
    largest = max(gradient.abs().max() for gradient in plain.values())
    for name, gradient in plain.items():
        if not (gradient - recomputed[name]).abs().max() <= _SAME[model.dtype] * largest:
            return f"no: another gradient of {name}"
    return "yes"


def _takes_lora(family: Family, implementation: AttnImplementation, proof: Proof) -> str:
    """Put LoRA on all linear layers, save, load and merge it; returns the names of what it is on, and what it misses.

    The states must change with the adapter's weights, and be the same after saving and loading and after merging.
    """
    model = tiny_model(family, implementation)
    weights = {place: p for place, p in _matrices(model)}
    try:
        return _lora_on(Lora(rank=2), family, implementation, proof, weights)
    except (L2VError, ValueError) as error:
        if "adapter.lora.dropout" not in str(error):
            raise
        # PEFT puts LoRA on the fused weights of some families' experts, and without dropout only
        return _lora_on(Lora(rank=2, dropout=0.0), family, implementation, proof, weights) + " (adapter.lora.dropout=0)"


def _lora_on(
    lora: Lora, family: Family, implementation: AttnImplementation, proof: Proof, weights: Mapping[str, nn.Parameter]
) -> str:
    backbone = _backbone(model := tiny_model(family, implementation), proof)
    ids = _ids(2, _LENGTH, model)
    mask = torch.ones_like(ids)

    def states(backbone: Backbone) -> Tensor:
        with torch.no_grad():
            return backbone.eval()(ids, mask).float()

    before = states(backbone)
    backbone.add_adapter(lora)
    for parameter in trainable_parameters(backbone).values():
        nn.init.normal_(parameter, std=0.1)
    after = states(backbone)
    if _equal(after, before, model.dtype):
        return "no: the adapter changes nothing"
    again = _backbone(tiny_model(family, implementation), proof)
    with tempfile.TemporaryDirectory() as folder:
        backbone.save_adapter(Path(folder) / "adapter")
        again.load_adapter(Path(folder) / "adapter")
    if not torch.equal(states(again), after):
        return "no: a saved adapter gives other states"
    backbone.merge_adapter()
    merged = states(backbone)
    if not (merged - after).abs().max() <= (1e-5 if model.dtype == torch.float32 else 5e-2) * after.abs().max():
        return "no: a merged adapter gives other states"
    # an adapter is on a weight that its merge has changed
    changed = dict(_matrices(backbone.decoder))
    on = [place for place, weight in weights.items() if not torch.equal(weight, changed[place])]
    missed = [place for place in weights if place not in on]
    text = " ".join(dict.fromkeys(_module(place) for place in on))
    if not missed:
        return text
    return f"{text}; not {' '.join(dict.fromkeys(place.partition('.')[2].removesuffix('.weight') for place in missed))}"


def _module(place: str) -> str:
    """The last name of a module: 0.self_attn.q_proj.weight -> q_proj."""
    return place.removesuffix(".weight").rpartition(".")[2]


def _matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The weights of the layers that have two dimensions or more, as 0.self_attn.q_proj.weight; no biases."""
    for name, parameter in decoder_layers(model).named_parameters():
        if parameter.ndim > 1 and "bias" not in name:
            yield name, parameter


def _ids(rows: int, length: int, model: PreTrainedModel, seed: int = 1) -> Tensor:
    """Random token ids without the special ones: (rows, length) int64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, model.config.vocab_size, (rows, length), generator=generator).to(model.device)


def _equal(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    return bool((a - b).abs().max() <= _SAME[dtype] * b.abs().max())


def _found(check: Callable[[], str]) -> str:
    try:
        return check()
    except (L2VError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        return f"no: {_reason(error)}"


def _reason(error: Exception) -> str:
    """An error in one line, without what the table says anyway and without the advice at its end."""
    text = first_line(error)
    if isinstance(error, L2VError):
        text = re.sub(r"^\S+( with attn_implementation=\w+)?:? ", "", text)
    for end in ("; ", ", so this decoder", ". "):
        text = text.partition(end)[0]
    return text.rstrip(".") + ")" * (text.count("(") - text.count(")"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


def examine_all(model_types: Sequence[str] = (), *, show: bool = True) -> list[Row]:
    """The rows of these model types, or of all in ``FAMILIES``. A type that is not there gets the common settings."""
    if unknown := [model_type for model_type in model_types if model_type not in CONFIG_MAPPING]:
        raise L2VError(f"transformers {version('transformers')} has no model type {', '.join(unknown)}")
    families = [f for f in FAMILIES if not model_types or f.model_type in model_types]
    known = {f.model_type for f in families}
    families += [Family(model_type) for model_type in model_types if model_type not in known]
    pairs = [(family, implementation) for family in families for implementation in implementations()]
    return [examine(*pair) for pair in track(pairs, "model types", show=show)]


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    lines = [HEADER.cells(), ["---"] * len(HEADER.cells()), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def versions() -> str:
    """Those that decide what is in the table."""
    return ", ".join(f"{name} {version(name).partition('+')[0]}" for name in ("torch", "transformers", "peft"))


def update(page: str, rows: Sequence[Row]) -> str:
    """The text of docs/models.md with these rows in place of those it has."""
    begin, end = page.find(_BEGIN), page.find(_END)
    if not 0 <= begin < end:
        raise L2VError(f"--write: expected a page with the lines {_BEGIN} and {_END}, which the table goes between")
    return f"{page[:begin]}{_BEGIN}\n\nWith {versions()}:\n\n{table(rows)}\n\n{page[end:]}"
