"""Score an encoder: ``python evaluate.py encoder=runs/demo/simcse``; ``--help`` shows the settings."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge
from omegaconf import DictConfig

from l2v import config as configs

if TYPE_CHECKING:
    from l2v.encoders.settings import EncoderSettings


def main(composed: DictConfig) -> None:
    """Check the config, load the encoder, run the suite, print its scores."""
    config = configs.plain(composed)

    from l2v.encoders.settings import EncoderSettings
    from l2v.evaluation.suite import evaluate
    from l2v.report import print_scores

    own = ("evaluation", "encoder", "output", "devices", "debug")
    settings = {key: value for key, value in config.items() if key not in own}
    subject = EncoderSettings(**configs.check(EncoderSettings, {"source": config["encoder"], **settings}, ""))
    tasks = configs.build_tasks(config["evaluation"]["tasks"])
    folder = Path(config["output"]) if config["output"] else _folder(subject)
    devices = configs.check_value(Annotated[int, Ge(1)], config["devices"], "devices")
    evaluate(subject, tasks, suite=config["evaluation"]["suite"], folder=folder, devices=devices)
    print_scores([folder])


def _folder(subject: "EncoderSettings") -> Path:
    """The run itself; for others, and with settings of its own, runs/<name>-<attention>-<pooling>-..."""
    folder = Path(subject.source).expanduser()
    own: list[str | None] = [subject.attention, subject.pooling]
    own += [f"max{subject.max_length}"] if subject.max_length else []
    own += [key for key in ("template", "separator") if getattr(subject, key) is not None]
    own += [Path(adapter).name for adapter in subject.adapters]
    own += [subject.dtype] if subject.dtype != "float32" else []
    own += [subject.quantization] if subject.quantization else []
    if (folder / "run.json").exists() and not any(own):
        return folder
    # of a hub id its owner too
    name = folder.name if folder.exists() or subject.source.startswith("package:") else subject.source
    name = re.sub(r"[^\w.-]+", "-", name.removesuffix(".gguf"))
    return Path("runs") / "-".join(part for part in (name, *own) if part)


def start() -> None:
    """The program, with the arguments of this process."""
    configs.run(main, name="evaluate")


if __name__ == "__main__":
    start()
