"""Score an encoder: ``python evaluate.py encoder=runs/demo/simcse``; ``--help`` shows the settings."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from l2v import config as configs

if TYPE_CHECKING:
    from l2v.evaluation.suite import Subject


def main(composed: DictConfig) -> None:
    """Check the config, load the encoder, run the suite, print its scores."""
    config = configs.plain(composed)

    from l2v.evaluation.suite import Subject, evaluate
    from l2v.report import print_scores

    settings = {key: value for key, value in config.items() if key not in ("evaluation", "encoder", "output", "debug")}
    subject = Subject(**configs.check(Subject, {"source": config["encoder"], **settings}, "evaluate"))
    tasks = configs.build(config["evaluation"]["tasks"], "evaluation.tasks")
    folder = Path(config["output"]) if config["output"] else _folder(subject)
    evaluate(subject, tasks, suite=config["evaluation"]["suite"], folder=folder)
    print_scores([folder])


def _folder(subject: "Subject") -> Path:
    """The run itself; for others, and with an attention or pooling of its own, runs/<name>-<attention>-<pooling>."""
    if (Path(subject.source) / "run.json").exists() and subject.attention is None and subject.pooling is None:
        return Path(subject.source)
    name = re.sub(r"[^\w.-]+", "-", Path(subject.source).name.removesuffix(".gguf"))
    return Path("runs") / "-".join(part for part in (name, subject.attention, subject.pooling) if part)


if __name__ == "__main__":
    configs.run(main, conf=Path(__file__).parent / "conf", name="evaluate")
