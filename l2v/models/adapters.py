"""Adapters on a decoder: new ones, saved ones, and what training changes."""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from l2v.errors import L2VError, first_line
from l2v.kernels.speed import speed_up
from l2v.models.quiet import quiet
from l2v.progress import say
from l2v.runs.adapter_folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS


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

    def config(self) -> LoraConfig:
        """As PEFT has it."""
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            bias="none",
        )


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def new_adapter(decoder: PreTrainedModel, adapter: Lora | PeftConfig) -> PeftModel:
    """A decoder with a new adapter on it, and everything else frozen.

    Args:
        decoder: the inner decoder.
        adapter: LoRA by l2v's settings, or any configuration of PEFT whose adapters can be merged into the weights
            (DoRA, rsLoRA, VeRA, IA3, ...).

    Raises:
        L2VError: it does not go with the decoder, or cannot be merged.
    """
    config = _as_peft(adapter)
    what = "adapter.lora" if isinstance(adapter, Lora) else "adapter.peft"
    wanted = getattr(adapter, "target_modules", None)
    _check_kind(config, what)
    try:
        with quiet():
            adapted = get_peft_model(decoder, config)
    except ValueError as error:
        if isinstance(adapter, Lora) and "lora_dropout" in str(error):  # PEFT's answer to experts that are one tensor
            raise L2VError(
                f"{what}.dropout={adapter.dropout}: the experts of this model take none; set it to 0"
            ) from None
        raise L2VError(f"{what}.target_modules={wanted}: {error}") from None
    speed_up(adapted)
    return cast(PeftModel, adapted.train(decoder.training))  # PEFT puts new modules into training mode


def _check_kind(config: PeftConfig, what: str) -> None:
    """Refuse what is not part of the weights, and what imports a module that the config names.

    Raises:
        L2VError: naming it.
    """
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(cast(PeftType, config.peft_type))
    if tuner is None or not issubclass(tuner, BaseTuner):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise L2VError(f"{what}: adapters of the kind {kind} are not part of the weights, so they cannot be merged")
    if getattr(config, "megatron_config", None) is not None:
        raise L2VError(f"{what}: megatron_config imports the module that it names; adapters of Megatron are not read")


def _check_sizes(config: PeftConfig, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Refuse ranks that no tensor of the adapter has, before matrices of that size are made.

    Raises:
        L2VError: naming the rank.
    """
    largest = max((max(tensor.shape, default=0) for tensor in weights.values()), default=0)
    pattern = getattr(config, "rank_pattern", None) or {}
    for rank in (getattr(config, "r", 0), *pattern.values()):
        if isinstance(rank, int) and rank > largest:
            raise L2VError(f"{folder}: {ADAPTER_CONFIG} says r={rank}, and no tensor of the adapter is that large")


def _check_patterns(config: PeftConfig, decoder: nn.Module, folder: Path) -> None:
    """Refuse patterns that are none, or take for ever on the names of the decoder's modules.

    They are tried in a process of their own, since nothing ends one that backtracks.

    Raises:
        L2VError: one cannot be used.
    """
    whole = [getattr(config, setting, None) for setting in ("target_modules", "exclude_modules")]
    patterns = [pattern for pattern in whole if isinstance(pattern, str) and pattern != "all-linear"]
    for setting in ("rank_pattern", "alpha_pattern"):
        patterns += [rf"(.*\.)?({name})$" for name in getattr(config, setting, None) or {}]
    layers = getattr(config, "layers_pattern", None) or []
    patterns += [rf".*\.{name}\.(\d+)\..*" for name in ([layers] if isinstance(layers, str) else layers)]
    if not patterns:
        return
    program = "import json, re, sys; p, n = json.load(sys.stdin); [re.fullmatch(a, b) for a in p for b in n]"
    task = json.dumps([patterns, [name for name, _ in decoder.named_modules()]])
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], input=task, text=True, timeout=_SECONDS, capture_output=True
        )
        usable = done.returncode == 0
    except subprocess.TimeoutExpired:
        usable = False
    if not usable:
        raise L2VError(f"{folder}: {ADAPTER_CONFIG} has a pattern that cannot be used, one of {', '.join(patterns)}")


_SECONDS = 10


def load_adapter(
    decoder: PreTrainedModel, folder: Path, training: Lora | PeftConfig | None = None, *, layers: int | None = None
) -> PeftModel:
    """A decoder with a saved adapter on it, of any kind of PEFT. Its keys must fit exactly.

    An adapter that was trained on a model with its output head (``...ForCausalLM``) is put on the decoder inside; what
    it has for the head is left out, as no vector depends on it. Embeddings that were saved with it take the place of
    the decoder's.

    Args:
        decoder: the inner decoder.
        folder: of the adapter.
        training: the settings that it is trained on with, see :meth:`Saved.check_goes_on`; None: it is not trained.
        layers: how many the decoder has kept, where the adapter may be of more; None: as many as it is of.

    Raises:
        L2VError: there is none, it is damaged, or it was trained on another decoder.
    """
    saved = Saved.read(folder, layers)
    if (
        training is not None
        and isinstance(wanted := _as_peft(training), LoraConfig)
        and isinstance(saved.config, LoraConfig)
    ):
        saved.config.lora_dropout = wanted.lora_dropout
    adapted = with_saved(decoder, [saved], training is not None)
    speed_up(adapted)
    return adapted.train(decoder.training)  # PEFT puts new modules into training mode


@dataclass(frozen=True)
class Saved:
    """An adapter in a folder."""

    folder: Path
    config: PeftConfig
    weights: dict[str, Tensor]

    @staticmethod
    def read(folder: Path, layers: int | None = None) -> "Saved":
        """An adapter, or what it has for the first ``layers`` of a decoder.

        Raises:
            L2VError: there is none, or it is damaged.
        """
        for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
            if not (folder / name).exists():
                raise L2VError(f"{folder}: no {name}, so it holds no adapter")
        try:
            config = PeftConfig.from_pretrained(str(folder))
            weights = load_file(folder / ADAPTER_WEIGHTS)
            if layers is not None:
                weights = {key: tensor for key, tensor in weights.items() if _layer_of(key) < layers}
            return Saved(folder, config, weights)
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            raise L2VError(f"{folder}: the adapter is damaged ({first_line(error)})") from None

    def check_goes_on(self, training: Lora | PeftConfig) -> None:
        """Refuse settings that the adapter does not have: it is trained on as it is. Its dropout may be another.

        Raises:
            L2VError: naming the setting.
        """
        wanted, place = _as_peft(training), "adapter.lora" if isinstance(training, Lora) else "adapter.peft"
        names = _NAMES if isinstance(training, Lora) else dict.fromkeys((*_NAMES, "use_dora", "use_rslora", "bias"))
        for name, setting in names.items():
            has, given = getattr(self.config, name, None), getattr(wanted, name, None)
            if name == "target_modules":
                if given is None or isinstance(has, str) or isinstance(given, str):
                    continue  # PEFT's own choice, a pattern, or all-linear, which stands for names
                has, given = (_last_names(modules) for modules in (has, given))
            if has != given:
                raise L2VError(
                    f"{place}.{setting or name}={given}: the adapter of init_from, which is trained on, has {has}; "
                    "give that, or adapter.init=new, which merges it and begins another"
                )


_NAMES = {"peft_type": "peft_type", "target_modules": "target_modules", "r": "rank", "lora_alpha": "alpha"}
"""What an adapter is made of: PEFT's name, and that of ``adapter.lora``."""


def _last_names(modules: Iterable[str] | None) -> str:
    """The names of modules without those of the modules that they are in."""
    return ", ".join(sorted({name.rpartition(".")[2] for name in modules or ()}))


def _as_peft(adapter: Lora | PeftConfig) -> PeftConfig:
    return adapter.config() if isinstance(adapter, Lora) else adapter


def _layer_of(key: str) -> int:
    """The number of the layer that a tensor of an adapter belongs to; -1 beside the layers."""
    return next((int(part) for part in key.split(".") if part.isdecimal()), -1)


def with_saved(decoder: PreTrainedModel, adapters: Sequence[Saved], trainable: bool) -> PeftModel:
    """A decoder with saved adapters on it, the first under PEFT's name ``default``."""
    adapted: Any = None
    for number, saved in enumerate(adapters):
        config, folder, name = saved.config, saved.folder, f"adapter-{number}" if number else "default"
        _check_kind(config, str(folder))
        _check_sizes(config, saved.weights, folder)
        _check_patterns(config, decoder, folder)
        weights = _on_the_inside(config, saved.weights, decoder, folder)
        config.inference_mode = not trainable
        config.base_model_name_or_path = None  # where it was trained is in the lineage; PEFT warns of another path
        try:
            with quiet():
                if adapted is None:
                    adapted = get_peft_model(decoder, config)
                else:
                    adapted.add_adapter(name, config)
        except Exception as error:  # its config may say anything
            kind = decoder.config.model_type
            raise L2VError(f"{folder}: the adapter does not fit {kind}: {first_line(error)}") from None
        embeddings = _saved_embeddings(adapted, weights)
        if embeddings and trainable:
            told = "has embeddings of its own, which cannot go on; merge it: adapter.init=new"
            raise L2VError(f"{folder}: the adapter {told}")
        own = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
        expected = {k: v.shape for k, v in own.items()} | {k: v.shape for k, v in embeddings.items()}
        found = {k: v.shape for k, v in weights.items()}
        if expected != found:
            odd = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
            raise L2VError(
                f"{folder}: the adapter does not fit the base model: {len(odd)} of {len(expected | found)} tensors are "
                f"missing, unexpected or of another shape, e.g. {odd[0]} (expected "
                f"{_shape(expected.get(odd[0]))}, found {_shape(found.get(odd[0]))})"
            )
        set_peft_model_state_dict(adapted, weights, adapter_name=name)
    return cast(PeftModel, adapted)


def changes_embeddings(folder: Path) -> bool:
    """Whether an adapter changes the input embeddings: an output head that shares them keeps those of before."""
    file = folder / ADAPTER_WEIGHTS
    return file.is_file() and any("embed" in key or ".wte." in key for key in load_file(file))


_KEYS = "base_model.model."


def _on_the_inside(
    config: Any, weights: dict[str, Tensor], decoder: PreTrainedModel, folder: Path
) -> dict[str, Tensor]:
    """The tensors of an adapter by their names on the decoder without its head, and the config changed to match."""
    config.task_type = None
    own = f"{decoder.base_model_prefix}."
    inside = _KEYS + own
    if not any(key.startswith(inside) for key in weights) or hasattr(decoder, decoder.base_model_prefix):
        return weights
    kept = {key.replace(inside, _KEYS, 1): value for key, value in weights.items() if key.startswith(inside)}
    if len(kept) < len(weights):
        say(f"{folder}: the adapter's part on the output head is left out: no vector depends on it", style="yellow")
    for name in ("target_modules", "exclude_modules", "modules_to_save", "feedforward_modules"):
        names = getattr(config, name, None)
        if names is not None and not isinstance(names, str):
            setattr(config, name, [n.removeprefix(own) for n in names if n.rpartition(".")[2] not in _HEADS] or None)
    for name in ("rank_pattern", "alpha_pattern"):
        if patterns := getattr(config, name, None):
            setattr(config, name, {key.removeprefix(own): value for key, value in patterns.items()})
    if isinstance(getattr(config, "target_modules", None), str):  # a pattern of names with the model's own before them
        config.target_modules = sorted({key.removeprefix(_KEYS).rpartition(".lora_")[0] for key in kept})
    return kept


_HEADS = ("lm_head", "embed_out", "output")
"""What the families call their output heads."""


def _saved_embeddings(adapted: PeftModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the tensors of an adapter, those that stand for the base's own input embeddings, and are not equal to them.

    PEFT saves them beside an adapter on the embeddings, or where the vocabulary has grown. Equal ones are taken out.
    """
    embedding = adapted.get_input_embeddings()
    base = getattr(embedding, "base_layer", embedding).weight
    own = {name for name, parameter in adapted.named_parameters() if parameter is base}
    found = {key: tensor for key, tensor in weights.items() if key in own and tensor.shape == base.shape}
    for key, tensor in list(found.items()):
        if torch.equal(tensor.to(base), base):
            del found[key], weights[key]
    return found


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape))
