"""Score an encoder: ``python evaluate.py encoder=runs/demo/simcse``; ``--help`` shows the settings."""

import re
from pathlib import Path

from omegaconf import DictConfig

from l2v import config as configs


def main(composed: DictConfig) -> None:
    """Check the config, load the encoder, run the suite, print its scores."""
    config = configs.plain(composed)

    from l2v.evaluation.suite import Subject, evaluate
    from l2v.report import print_scores

    subject = Subject(**configs.check(Subject, {
        "source": config["encoder"], "attention": config["attention"], "pooling": config["pooling"],
    }, "encoder"))  # fmt: skip
    tasks = configs.build(config["evaluation"]["tasks"], "evaluation.tasks")
    folder = Path(config["output"]) if config["output"] else _folder(config["encoder"], config["attention"])
    evaluate(subject, tasks, suite=config["evaluation"]["suite"], folder=folder)
    print_scores([folder])


def _folder(encoder: str, attention: str | None) -> Path:
    """The run itself, or runs/<name of the model>-<attention>."""
    if (Path(encoder) / "run.json").exists():
        return Path(encoder)
    name = re.sub(r"[^\w.-]+", "-", encoder.split("/")[-1].removesuffix(".gguf"))
    return Path("runs") / (f"{name}-{attention}" if attention else name)


if __name__ == "__main__":
    configs.run(main, conf=Path(__file__).parent / "conf", name="evaluate")
