"""Score an encoder: ``python evaluate.py encoder=runs/demo/simcse``; ``--help`` shows the settings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge
from omegaconf import DictConfig

from l2v import config as configs
from l2v.errors import L2VError
from l2v.runs.files import in_a_name, read_json

if TYPE_CHECKING:
    from l2v.models.settings import EncoderSettings


def main(composed: DictConfig) -> None:
    """Check the config, load the encoder, run the suite, print its scores."""
    config = configs.plain(composed)

    from l2v.evaluation.suite import evaluate
    from l2v.report import print_scores

    subject = configs.take_encoder(config)
    suite, tasks = config["evaluation"]["suite"], configs.build_tasks(config["evaluation"])
    folder = Path(config["output"]).expanduser() if config["output"] else _free_folder(subject, suite)
    devices = configs.check_value(Annotated[int, Ge(1)], config["devices"], "devices")
    evaluate(subject, tasks, suite=suite, folder=folder, devices=devices)
    print_scores([folder])


def _free_folder(subject: "EncoderSettings", suite: str) -> Path:
    """Where the scores go, unless those of another encoder are there, whose folder is called the same."""
    folder = _folder(subject)
    file = folder / "evaluation" / f"{suite}.json"
    if not subject.is_run and file.exists() and (known := read_json(file).get("encoder")) != subject.source:
        raise L2VError(f"{file}: the scores of encoder={known}; set output= to another folder")
    return folder


def _folder(subject: "EncoderSettings") -> Path:
    """The run itself, or with settings of its own a folder beside it: <name>-<attention>-...; of others one in runs."""
    own = subject.labels()
    if subject.is_run:
        run = subject.folder if subject.folder.name else subject.folder.absolute()
        return run.with_name("-".join((run.name, *own))) if own else subject.folder
    # of a hub id its owner too
    local = subject.folder.exists() or subject.source.startswith("package:")
    name = subject.folder.name if local else subject.source
    name = in_a_name(name.removesuffix(".gguf"))
    return Path("runs") / "-".join((name, *own))


def start() -> None:
    """The program, with the arguments of this process."""
    configs.run(main, name="evaluate")


if __name__ == "__main__":
    start()
