"""Stages in a row with an evaluation after each: ``python recipe.py recipe=demo``; ``--help`` shows the settings."""

import functools
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from l2v import config as configs
from l2v.errors import L2VError, Stopped
from l2v.progress import console

_STOPPING = (signal.SIGINT, signal.SIGTERM)
_OWN = (
    "recipe",
    "name",
    "runs_dir",
    "seed",
    "evaluation",
    "baselines",
    "stages",
    "overrides",
    "debug",
    "hydra",
    "allow_modules",
)
"""Settings of a recipe; any other override is one of train.py and goes to every stage."""


def main(composed: DictConfig, given: Sequence[str] = ()) -> None:
    """Evaluate the untrained model, then train and evaluate stage by stage; end with a table and a page.

    Args:
        composed: the recipe.
        given: overrides of train.py from the command line, which win over the recipe's.
    """
    begin = time.monotonic()
    config = configs.plain(composed)
    recipes_own = configs.check_value(list[str], config["overrides"], "overrides")
    stages = {
        stage: configs.check_value(list[str], overrides, f"stages.{stage}")
        for stage, overrides in configs.check_value(dict[str, Any], config["stages"], "stages").items()
    }
    if not stages:
        raise L2VError("stages: none; expected one at least, as stages={mntp:[stage=mntp]}")
    for own in (recipes_own, *stages.values()):
        configs.check_overrides(own, configs.allowed_modules(), f"recipe={configs.choices()['recipe']}")
    shared = _merged(recipes_own, given)
    name = config["name"] or f"{configs.choices()['recipe']}-{shared['model']}"
    folder = Path(config["runs_dir"]) / name
    fixed = {"runs_dir": config["runs_dir"], "seed": str(config["seed"]), "debug": str(config["debug"]).lower()}
    settings = {
        stage: _arguments({**_merged(recipes_own, overrides, given), **fixed, "name": f"{name}/{stage}"})
        for stage, overrides in stages.items()
    }
    composed_stages = {stage: configs.compose("train", arguments) for stage, arguments in settings.items()}
    for stage in composed_stages.values():
        configs.build_training(stage)
    model = next(iter(composed_stages.values()))["model"]
    how = {key: model[key] for key in ("pooling", "max_length", "dtype", "partial", "trust_remote_code")}
    columns: list[Path] = []
    for attention in config["baselines"]:
        columns.append(folder / attention)
        _heading(f"evaluate the untrained model with {attention} attention")
        untrained = {"source": model["source"], "revision": model["revision"], "attention": attention}
        _evaluate({**how, **untrained}, config["evaluation"], columns[-1])
    previous: Path | None = None
    for stage, arguments in settings.items():
        run = folder / stage
        _heading(f"train {stage}")
        _train([*arguments, "reuse=true", *_init(previous)])
        _heading(f"evaluate after {stage}")
        _evaluate({**how, "source": str(run)}, config["evaluation"], run)
        columns.append(run)
        previous = run
    _finish(columns, folder, name, time.monotonic() - begin)


def _merged(*overrides: Sequence[str]) -> dict[str, str]:
    """Overrides by key, the later ones in place of the earlier."""
    return dict(override.partition("=")[::2] for part in overrides for override in part)


def _arguments(overrides: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in overrides.items()]


def _is_own(argument: str) -> bool:
    """Whether an argument is for the recipe itself and not for its stages."""
    return "=" not in argument or argument[0] == "-" or re.split(r"[.=@]", argument.lstrip("+~"))[0] in _OWN


def _init(previous: Path | None) -> list[str]:
    return [f"init_from={previous}"] if previous else []


def _train(arguments: list[str]) -> None:
    """Train in a process of its own: a stage leaves no memory behind, and trains as it would by hand.

    The process has its own group, so that Ctrl-C reaches it once, through this one: a second signal would stop it at
    once instead of after saving.
    """
    process = subprocess.Popen([sys.executable, "-m", "l2v.cli.train", *arguments], process_group=0)
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        received.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in _STOPPING}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in _STOPPING:
        if number in received or code in (-number, 128 + number):  # a stage may end before it hears of the signal
            raise Stopped(number, "stopped; the same command goes on from here")
    if code != 0:
        raise L2VError(f"the stage failed (exit code {code}); its message is above")


def _evaluate(how: dict[str, Any], suite: dict[str, Any], folder: Path) -> None:
    from l2v.evaluation.suite import evaluate
    from l2v.models.settings import EncoderSettings

    tasks = configs.build_tasks(suite["tasks"])
    evaluate(EncoderSettings(**how), tasks, suite=suite["suite"], folder=folder)


def _finish(columns: list[Path], folder: Path, name: str, seconds: float) -> None:
    from l2v.report import print_scores, write_report

    page = write_report(columns, folder / "report.html", title=f"l2v recipe: {name}")
    print_scores(columns)
    encoder = columns[-1]
    sentences = '["A dog barks.", "A puppy yaps.", "Stocks fell."]'
    print(f"\n{seconds / 60:.1f} minutes. Report: {page.resolve()}\nEncoder: {(encoder / 'encoder').resolve()}\n")
    print("from l2v import Encoder")
    print(f'encoder = Encoder.from_pretrained("{encoder}")')
    print(f"print(encoder.similarity(*[encoder.encode({sentences})] * 2))")


def _heading(text: str) -> None:
    console.rule(f"[bold]{text}", align="left")


def start() -> None:
    """The program, with the arguments of this process."""
    for_stages = [argument for argument in sys.argv[1:] if not _is_own(argument)]
    sys.argv[1:] = [argument for argument in sys.argv[1:] if _is_own(argument)]
    configs.run(functools.partial(main, given=for_stages), name="recipe")


if __name__ == "__main__":
    start()
