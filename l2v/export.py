"""A run's encoder for others: ``python -m l2v.export run=runs/demo/simcse``."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
from annotated_types import Ge, Le
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from l2v import config as configs
from l2v.backbone import Backbone, DType, cast_weights
from l2v.card import Card, Form, model_card
from l2v.encoder import Encoder, saved_settings
from l2v.errors import L2VError, first_line
from l2v.onnx import check_packages, write_onnx
from l2v.progress import say
from l2v.published import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from l2v.runs import Run, Start, lineage_at
from l2v.sources import Source, draft_folder, locate, read_json, write_json, write_text


@dataclass(frozen=True)
class Merge:
    """How adapters and base become one set of weights."""

    base_ratio: Annotated[float, Ge(0), Le(1)] = 0.0
    """Share of the original decoder's weights in the result. 0.5 undoes much of what adaptation forgot (BidirLM,
    arXiv 2604.02045)."""


@dataclass(frozen=True)
class Export:
    """What to write of a run."""

    form: Form = "merged"
    """A whole model, or one adapter on the base, whose weights stay where they are."""
    dtype: DType = "float32"
    """Of the written weights."""
    merge: Merge = field(default_factory=Merge)
    onnx: bool = False
    """Write ``onnx/model.onnx`` too."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """More instructions for sentence-transformers and mteb, by the name of a prompt, without separator."""

    def check(self, run: Run) -> Start:
        """What the run began with.

        Raises:
            L2VError: the run is not finished, or cannot be written so. No model is loaded.
        """
        if not run.is_finished:
            raise L2VError(f"run={run.folder}: the run is not finished; go on with it first: resume={run.folder}")
        start = Start.of(run)
        if self.onnx:
            if self.dtype != "float32" or self.form != "merged":
                raise L2VError("onnx=true: expected dtype=float32 and form=merged, which the graph is made of")
            check_packages()
        if self.form == "merged":
            return start
        if not adapters_of(run, start):
            raise L2VError(f"form=adapter: {run.folder} has no adapter, it trained all weights; choose form=merged")
        if start.base.gguf_file:
            raise L2VError(
                f"form=adapter: transformers loads no adapter on the GGUF file {start.base.name}; choose form=merged"
            )
        if self.dtype != "float32" or self.merge.base_ratio > 0:
            raise L2VError("form=adapter leaves the base as it is: expected dtype=float32 and merge.base_ratio=0")
        return start


def export(run: Run, folder: Path, wanted: Export | None = None, *, name: str | None = None) -> Encoder:
    """Put a run's encoder together from its parts, and write it with its lineage and a model card.

    The run's own ``encoder/`` is read for its settings only. Adapters are merged in the order of the lineage, in
    float32 whatever the dtype is.

    Args:
        run: a finished one.
        folder: where the encoder goes; what is there is replaced.
        wanted: what to write; None: a merged model in float32.
        name: of the encoder, for the card; None: that of the folder.

    Raises:
        L2VError: the run is not finished, what it refers to is not there, or it cannot be written so.
    """
    wanted = wanted or Export()
    start = wanted.check(run)
    settings = saved_settings(locate(str(run.encoder), override="run"))
    with draft_folder(folder) as draft:
        write = _write_merged if wanted.form == "merged" else _write_adapter
        encoder = write(wanted, run, start, settings, draft)
        difference = None
        if wanted.onnx:
            difference = write_onnx(encoder, draft / "onnx" / "model.onnx")
            say(f"onnx/model.onnx: its vectors differ by at most {difference:.1e}")
        lineage = replace(lineage_at(run, folder), base_ratio=wanted.merge.base_ratio)
        lineage.write(draft / "lineage.json")
        about = Card(name or folder.name, start.head or start.base, lineage, wanted.form, wanted.dtype, difference)
        write_text(draft / "README.md", model_card(run, encoder, about))
    return encoder


def adapters_of(run: Run, start: Start) -> list[Path]:
    """Folders of the adapters that made a run's encoder, in order; one that training went on with is in the last."""
    return [*start.merge, *([run.adapter] if run.adapter.exists() else [])]


def _write_merged(wanted: Export, run: Run, start: Start, settings: dict[str, Any], draft: Path) -> Encoder:
    backbone = _load(start.base, settings, adapters_of(run, start))
    if wanted.merge.base_ratio > 0:
        blend(backbone.decoder, _load(start.head or start.base, settings, []).decoder, wanted.merge.base_ratio)
    cast_weights(backbone.decoder, getattr(torch, wanted.dtype))
    encoder = Encoder.with_settings(backbone, settings)
    encoder.save(draft, prompts=wanted.prompts)
    return encoder


def _write_adapter(wanted: Export, run: Run, start: Start, settings: dict[str, Any], draft: Path) -> Encoder:
    stack_adapters(adapters_of(run, start), draft)
    config = read_json(draft / ADAPTER_CONFIG)
    base = start.base
    place = {"base_model_name_or_path": base.path, "revision": None if base.is_local else base.revision}
    write_json(draft / ADAPTER_CONFIG, config | place)
    encoder = Encoder.with_settings(_load(base, settings, [draft]), settings)
    encoder.backbone.tokenizer.save_pretrained(draft)
    encoder.save_settings(draft, wanted.prompts, as_adapter=True)
    return encoder


def _load(source: Source, settings: dict[str, Any], adapters: list[Path]) -> Backbone:
    attention, partial = settings.get("attention", "bidirectional"), settings.get("partial", False)
    return Backbone.load(source, attention=attention, partial=partial, merge=adapters)


@torch.no_grad()
def blend(weights: nn.Module, base: nn.Module, base_ratio: float) -> None:
    """``weights`` become (1 - base_ratio) * weights + base_ratio * base, in place.

    Raises:
        L2VError: the two have not the same parameters.
    """
    mine, other = dict(weights.named_parameters()), dict(base.named_parameters())
    if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in other.items()}:
        raise L2VError("merge.base_ratio: the run's weights and those of its original model have not the same shapes")
    for name, parameter in mine.items():
        parameter.lerp_(other[name], base_ratio)


_LORA_A, _LORA_B = ".lora_A.weight", ".lora_B.weight"
_PLAIN_LORA: dict[str, tuple[Any, ...]] = {
    **{key: (None, False) for key in ("use_dora", "modules_to_save", "layers_to_transform", "target_parameters")},
    **{key: (None, {}, False) for key in ("rank_pattern", "alpha_pattern", "layer_replication")},
    "bias": ("none",),
}
"""Settings of a LoRA adapter, with the values under which it is no more than two matrices a module."""


def stack_adapters(folders: Sequence[Path], target: Path) -> None:
    """Write LoRA adapters as one, which adds to the base what they add together.

    B1 A1 + B2 A2 = [B1 B2] [A1; A2]: the ranks add up, and each scale goes into its B. Exact but for the rounding.

    Args:
        folders: of adapters in PEFT's layout, in order. A single one is copied as it is.
        target: an existing folder.

    Raises:
        L2VError: an adapter is more than plain LoRA.
    """
    configs_of = [read_json(folder / ADAPTER_CONFIG) for folder in folders]
    weights_of = [load_file(folder / ADAPTER_WEIGHTS) for folder in folders]
    config, weights = configs_of[-1], weights_of[-1]
    if len(folders) > 1:
        for folder, one, tensors in zip(folders, configs_of, weights_of, strict=True):
            odd = [key for key, plain in _PLAIN_LORA.items() if one.get(key) not in (*plain, [])]
            odd += [key for key in tensors if not key.endswith((_LORA_A, _LORA_B))][:1]
            if odd or not isinstance(one["target_modules"], list):
                what = odd[0] if odd else "target_modules"
                raise L2VError(
                    f"form=adapter: {folder} is more than plain LoRA ({what}), so the run's adapters do not add up to "
                    "one; choose form=merged"
                )
        weights = _stacked(weights_of, [one["lora_alpha"] / _divisor(one) for one in configs_of])
        rank = sum(one["r"] for one in configs_of)
        targets = sorted({name for one in configs_of for name in one["target_modules"]})
        config = {**config, "r": rank, "lora_alpha": rank, "use_rslora": False, "target_modules": targets}
    save_file(weights, target / ADAPTER_WEIGHTS, {"format": "pt"})
    write_json(target / ADAPTER_CONFIG, {**config, "inference_mode": True})


def _divisor(config: dict[str, Any]) -> float:
    return config["r"] ** 0.5 if config.get("use_rslora") else config["r"]


def _stacked(adapters: list[dict[str, Tensor]], scales: list[float]) -> dict[str, Tensor]:
    """One adapter's tensors, in float32; a module that an adapter does not have gets zeros in its place."""
    ranks = [next(tensor.shape[0] for key, tensor in one.items() if key.endswith(_LORA_A)) for one in adapters]
    modules = {key.removesuffix(_LORA_A) for one in adapters for key in one if key.endswith(_LORA_A)}
    stacked = {}
    for module in modules:
        shapes = next((one[module + _LORA_A], one[module + _LORA_B]) for one in adapters if module + _LORA_A in one)
        inputs, outputs = shapes[0].shape[1], shapes[1].shape[0]
        a = [
            one.get(module + _LORA_A, torch.zeros(rank, inputs)).float()
            for one, rank in zip(adapters, ranks, strict=True)
        ]
        b = [
            one.get(module + _LORA_B, torch.zeros(outputs, rank)).float() * scale
            for one, rank, scale in zip(adapters, ranks, scales, strict=True)
        ]
        stacked[module + _LORA_A], stacked[module + _LORA_B] = torch.cat(a, dim=0), torch.cat(b, dim=1)
    return stacked


def check_hub(repository: str, wanted: Export, start: Start) -> None:
    """See that the hub can be written to, before anything is made.

    Raises:
        L2VError: no name, no token, no network; or what is pushed needs what others do not have.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise L2VError(f"push={repository}: {first_line(error)}; expected <owner>/<name>") from None
    if repository.count("/") != 1:
        raise L2VError(f"push={repository}: expected <owner>/<name>")
    if wanted.form == "adapter" and start.base.is_local:
        raise L2VError(f"push={repository}: others do not have the base {start.base.path}; choose form=merged")
    if get_token() is None:
        raise L2VError(f"push={repository}: no token for the hub; log in with `hf auth login`, or set HF_TOKEN")
    with _told_of(repository):
        HfApi().whoami()


def push_folder(folder: Path, repository: str, *, private: bool = True) -> str:
    """Upload an exported folder to the hub.

    Args:
        folder: an exported encoder.
        repository: owner/name; made where it is not there.
        private: of a repository that is made now.

    Returns:
        its address.

    Raises:
        L2VError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    with _told_of(repository):
        api = HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="l2v.export")
    return str(address)


@contextlib.contextmanager
def _told_of(repository: str) -> Iterator[None]:
    """Turn whatever the hub or the network answers into one line."""
    try:
        yield
    except Exception as error:  # of huggingface_hub or its HTTP library, which it has changed before
        raise L2VError(f"push={repository}: the hub cannot be written to ({first_line(error)})") from error


def main(composed: DictConfig) -> None:
    """Check the config, write, push."""
    config = configs.plain(composed)
    run = Run.open(config["run"], "run")
    dtype, form, prompts = config["dtype"], config["form"], config["prompts"] or {}
    for name, value, known in (("dtype", dtype, get_args(DType)), ("form", form, get_args(Form))):
        if value not in known:
            raise L2VError(f"{name}={value}: expected one of {', '.join(known)}")
    wanted = Export(
        form=form,
        dtype=dtype,
        merge=Merge(**configs.check(Merge, config["merge"], "merge")),
        onnx=configs.check_value(bool, config["onnx"], "onnx"),
        prompts={name: configs.check_value(str, text, f"prompts.{name}") for name, text in prompts.items()},
    )
    private = configs.check_value(bool, config["private"], "private")
    folder = Path(config["output"]).expanduser() if config["output"] else _folder(run, wanted)
    if folder.exists() and not (folder / "l2v.json").exists():
        raise L2VError(f"output={folder}: the folder exists and holds no encoder; name another one")
    start = wanted.check(run)
    if config["push"]:
        check_hub(config["push"], wanted, start)
    export(run, folder, wanted, name=config["push"] or run.folder.name)
    say(f"wrote {folder}")
    if config["push"]:
        say(f"pushed {push_folder(folder, config['push'], private=private)}")


def _folder(run: Run, wanted: Export) -> Path:
    parts = ["exported"]
    parts += [wanted.form] if wanted.form != "merged" else []
    parts += [f"base{wanted.merge.base_ratio:g}"] if wanted.merge.base_ratio else []
    parts += [wanted.dtype] if wanted.dtype != "float32" else []
    parts += ["onnx"] if wanted.onnx else []
    return run.folder / "-".join(parts)


if __name__ == "__main__":
    configs.run(main, conf=Path(__file__).parents[1] / "conf", name="export")
