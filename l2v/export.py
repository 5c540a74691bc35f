"""Put a run's encoder together from its parts: ``python -m l2v.export run=runs/demo/simcse``."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
from annotated_types import Ge, Le
from omegaconf import DictConfig
from torch import nn

from l2v import config as configs
from l2v.backbone import Backbone, DType
from l2v.encoder import Encoder, saved_settings
from l2v.errors import L2VError
from l2v.progress import say
from l2v.runs import Run, Start, lineage_at
from l2v.sources import draft_folder, locate


@dataclass(frozen=True)
class Merge:
    """How adapters and base become one set of weights."""

    base_ratio: Annotated[float, Ge(0), Le(1)] = 0.0
    """Share of the original decoder's weights in the result. 0.5 undoes much of what adaptation forgot (BidirLM,
    arXiv 2604.02045)."""


def export(run: Run, folder: Path, *, merge: Merge | None = None, dtype: DType = "float32") -> Encoder:
    """Merge a run's adapters into its base in the order of its lineage, and write the encoder.

    The run's own ``encoder/`` is read for its settings only. The arithmetic is in float32, whatever ``dtype`` is.

    Args:
        run: a finished one.
        folder: where the encoder goes; what is there is replaced.
        merge: how much of the base is mixed back in.
        dtype: of the written weights.

    Raises:
        L2VError: the run is not finished, or what it refers to is not there.
    """
    if not run.is_finished:
        raise L2VError(f"run={run.folder}: the run is not finished; go on with it first: resume={run.folder}")
    mix = merge or Merge()
    start = Start.of(run)
    adapters = [*start.merge, *([run.adapter] if run.adapter.exists() else [])]
    settings = saved_settings(locate(str(run.encoder), override="run"))
    attention, partial = settings.get("attention", "bidirectional"), settings.get("partial", False)

    def load(source: Any, adapters: list[Path]) -> Backbone:
        return Backbone.load(source, attention=attention, partial=partial, merge=adapters)

    backbone = load(start.base, adapters)
    if mix.base_ratio > 0:
        blend(backbone.decoder, load(start.head or start.base, []).decoder, mix.base_ratio)
    backbone.decoder.to(getattr(torch, dtype))
    encoder = Encoder.with_settings(backbone, settings)
    with draft_folder(folder) as draft:
        encoder.save(draft)
        replace(lineage_at(run, folder), base_ratio=mix.base_ratio).write(draft / "lineage.json")
    return encoder


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


def main(composed: DictConfig) -> None:
    """Check the config, merge, write."""
    config = configs.plain(composed)
    run = Run.open(config["run"], "run")
    merge = Merge(**configs.check(Merge, config["merge"], "merge"))
    dtype = config["dtype"]
    if dtype not in get_args(DType):
        raise L2VError(f"dtype={dtype}: expected one of {', '.join(get_args(DType))}")
    folder = Path(config["output"]).expanduser() if config["output"] else _folder(run, merge, dtype)
    if folder.exists() and not (folder / "l2v.json").exists():
        raise L2VError(f"output={folder}: the folder exists and holds no encoder; name another one")
    export(run, folder, merge=merge, dtype=dtype)
    say(f"wrote {folder}")


def _folder(run: Run, merge: Merge, dtype: str) -> Path:
    parts = ["exported"]
    parts += [f"base{merge.base_ratio:g}"] if merge.base_ratio else []
    parts += [dtype] if dtype != "float32" else []
    return run.folder / "-".join(parts)


if __name__ == "__main__":
    configs.run(main, conf=Path(__file__).parents[1] / "conf", name="export")
