"""Score an encoder: ``python evaluate.py encoder=runs/demo/simcse``; ``--help`` shows the settings."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge
from omegaconf import DictConfig

from l2v import config as configs

if TYPE_CHECKING:
    from l2v.models.settings import EncoderSettings


def main(composed: DictConfig) -> None:
    """Check the config, load the encoder, run the suite, print its scores."""
    config = configs.plain(composed)

    from l2v.evaluation.suite import evaluate
    from l2v.report import print_scores

    subject = configs.take_encoder(config)
    tasks = configs.build_tasks(config["evaluation"])
    folder = Path(config["output"]) if config["output"] else _folder(subject)
    devices = configs.check_value(Annotated[int, Ge(1)], config["devices"], "devices")
    evaluate(subject, tasks, suite=config["evaluation"]["suite"], folder=folder, devices=devices)
    print_scores([folder])


def _folder(subject: "EncoderSettings") -> Path:
    """The run itself; for others, and with settings of its own, runs/<name>-<attention>-<pooling>-..."""
    own = [_named(name, value) for name, value in subject.differences().items() if name not in _NOT_NAMED]
    if subject.is_run and not own:
        return subject.folder
    # of a hub id its owner too
    local = subject.folder.exists() or subject.source.startswith("package:")
    name = subject.folder.name if local else subject.source
    name = re.sub(r"[^\w.-]+", "-", name.removesuffix(".gguf"))
    return Path("runs") / "-".join((name, *own))


_NOT_NAMED = ("revision", "base", "partial", "kind", "trust_remote_code", "library")
"""Settings that decide how an encoder is found and loaded, and not which it is."""


def _named(name: str, value: Any) -> str:
    """A setting in the name of a folder."""
    if name in ("template", "separator"):
        return name
    if name in ("max_length", "text_max_length"):
        return name.replace("_length", "").replace("_", "-") + str(value)
    if name == "adapters":
        return "-".join(Path(adapter).name for adapter in value)
    return value if isinstance(value, str) else type(value).__name__


def start() -> None:
    """The program, with the arguments of this process."""
    configs.run(main, name="evaluate")


if __name__ == "__main__":
    start()
