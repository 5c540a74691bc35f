"""Stages in a row with an evaluation after each: ``python recipe.py recipe=demo``; ``--help`` shows the settings."""

import contextlib
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from l2v import config as configs
from l2v.cli.processes import run_program
from l2v.cli.sweep import Points, alone, apply_to, key_of, label_of, note_point, record_stage, shared_run, wrapped
from l2v.errors import L2VError
from l2v.progress import console, say
from l2v.runs.hashes import file_hash, source_hash
from l2v.runs.locations import locate

if TYPE_CHECKING:
    from l2v.training.settings import Training

_NOT_OF_BASELINES = {"seed", "stage", "stages", "adapter", "trainer", "logger", "data", "task", "baselines", "debug"}
"""Groups whose settings change nothing of the untrained model and its scores."""


def main(composed: DictConfig) -> None:
    """Evaluate the untrained model, then train and evaluate stage by stage; end with a table and a page.

    In a sweep this is one point, in a folder of its own; stages that other points have trained already are taken from
    there.
    """
    begin = time.monotonic()
    config = configs.plain(composed)
    given = [str(override) for override in config["given"].values()]
    recipes_own = configs.check_value(list[str], config["overrides"], "overrides")
    stages = {
        stage: configs.check_value(list[str], overrides, f"stages.{stage}")
        for stage, overrides in configs.check_value(dict[str, Any], config["stages"], "stages").items()
    }
    for override in given:
        if (option := override.partition("=")[0].lstrip("+~")) in ("stage", "task"):
            raise L2VError(
                f"{override}: a recipe says its stages, {', '.join(stages)}, and {option}= would make all of them the "
                f"same; leave one out by '~stages.NAME', or train a single one by train.py {override}"
            )
    if not stages:
        raise L2VError("stages: none; expected one at least, as \"+stages.mntp=['stage=mntp']\"")
    recipes_own = configs.as_typed(recipes_own, "train")
    stages = {stage: configs.as_typed(overrides, "train") for stage, overrides in stages.items()}
    for own in (recipes_own, *stages.values()):
        configs.check_overrides(own, configs.allowed_modules(), f"recipe={configs.choices()['recipe']}")
    shared = _merged(recipes_own, given)
    name = config["name"] or f"{configs.choices()['recipe']}-{shared['model']}"
    whole = Path(config["runs_dir"]) / name
    swept = [*config["swept"], *(key for key in configs.sweeper_settings() if key not in config["swept"])]
    groups = set(map(_group, swept))
    label = label_of(swept, [*configs.overrides(), *given])
    if configs.is_multirun() and configs.sweeper() != "basic":
        raise L2VError(f"hydra/sweeper={configs.sweeper()}: a recipe has no value to optimise; train.py has one")
    folder = whole / label
    fixed = {
        "runs_dir": configs.quoted(config["runs_dir"]),
        "seed": str(config["seed"]),
        "debug": str(config["debug"]).lower(),
        **_while_training(given),
    }
    search = configs.search_overrides()
    everywhere = [override for override in given if not override.startswith("stage.")]
    bare = {
        stage: configs.compose("train", [*_arguments(_merged(recipes_own, overrides, everywhere)), *search])
        for stage, overrides in stages.items()
    }
    of_stage = apply_to(bare, given)
    named = {stage: {"name": configs.quoted(str(Path(name) / label / stage))} for stage in stages}
    settings = {
        stage: _arguments({**_merged(recipes_own, overrides, of_stage[stage]), **fixed, **named[stage]})
        for stage, overrides in stages.items()
    }
    composed_stages = {stage: configs.compose("train", [*arguments, *search]) for stage, arguments in settings.items()}
    trainings = {stage: configs.build_training(composed) for stage, composed in composed_stages.items()}
    _check(config["evaluation"])
    if label:
        _heading(label)
    model = next(iter(composed_stages.values()))["model"]
    columns: list[Path] = []
    for attention in config["baselines"]:
        columns.append((whole if groups <= _NOT_OF_BASELINES else folder) / attention)
        _heading(f"evaluate the untrained model with {attention} attention")
        with alone(whole, attention) if label else contextlib.nullcontext():
            _evaluate({**_usage(model), "attention": attention}, config["evaluation"], columns[-1])
    previous: Path | None = None
    key: str | None = None
    for stage, arguments in settings.items():
        run, training = folder / stage, trainings[stage]
        if label:
            begins = _beginning(training, composed_stages[stage]["init_from"]) if key is None else []
            key = key_of(composed_stages[stage], [*training.fingerprints(), *begins], key)
        with alone(whole, key) if key is not None else contextlib.nullcontext():
            known = shared_run(folder, stage, key, training.exports) if key is not None else None
            if known is not None:
                say(f"{stage}: the same as in {known.parent.name}, which has trained it; it is reused")
                run = known
            else:
                _heading(f"train {stage}")
                run_program("train", [*arguments, *search, "reuse=true", *_init(previous)], "the stage")
                if key is not None:
                    record_stage(folder, stage, key)
            _heading(f"evaluate after {stage}")
            # what is measured may differ where the stage does not
            scores = folder / stage if "evaluation" in groups else run
            of_run = {"source": str(run), "revision": None, "layers": None}  # it has no more than were trained
            _evaluate({**_usage(model), **of_run}, config["evaluation"], scores)
        columns.append(scores)
        previous = run
    assert previous is not None
    _finish(columns, previous, folder, f"{name} {label}".strip(), time.monotonic() - begin)
    note_point(label, whole, columns)


def _merged(*overrides: Sequence[str]) -> dict[str, str]:
    """Overrides by key, the later ones in place of the earlier."""
    return dict(override.partition("=")[::2] for part in overrides for override in part)


def _arguments(overrides: dict[str, str]) -> list[str]:
    return [key if key.startswith("~") and not value else f"{key}={value}" for key, value in overrides.items()]


def _group(key: str) -> str:
    return re.split(r"[.@]", key.lstrip("+~"))[0]


def _beginning(training: "Training", init_from: str | list[str] | None) -> list[str]:
    """What pins the weights that the first stage begins with: the model's, and the lineages of the runs on it."""
    names = [init_from] if isinstance(init_from, str) else init_from or []
    lineages = [Path(name).expanduser() / "lineage.json" for name in names]
    return [
        source_hash(locate(training.model.source, training.model.revision)),
        *(file_hash(lineage) for lineage in lineages if lineage.is_file()),
    ]


def _while_training(given: Sequence[str]) -> dict[str, str]:
    """With ``evaluate_every`` each stage evaluates by the recipe's own suite while it trains."""
    if all(_group(key) != "evaluate_every" for key in _merged(given)):
        return {}
    own = [one for one in configs.overrides() if _group(one.partition("=")[0]) == "evaluation"]
    return {"evaluation": configs.choices()["evaluation"], **_merged(own)}


def _check(suite: dict[str, Any]) -> None:
    """Raise an L2VError where a task misses something: better told before hours of training."""
    from l2v.evaluation.periodic import PeriodicEvaluation

    PeriodicEvaluation(1, suite["suite"], configs.build_tasks(suite)).check()


def _init(previous: Path | None) -> list[str]:
    return [f"init_from={configs.quoted(str(previous))}"] if previous else []


def _usage(model: dict[str, Any]) -> dict[str, Any]:
    """The settings of an encoder that stand in a stage's ``model``."""
    from l2v.models.settings import EncoderSettings

    settings = {field.name: model[field.name] for field in fields(EncoderSettings) if field.name in model}
    return {**settings, "attention": None, "pooling": configs.build(settings.get("pooling"), "model.pooling")}


def _evaluate(how: dict[str, Any], suite: dict[str, Any], folder: Path) -> None:
    from l2v.evaluation.suite import evaluate
    from l2v.kernels.memory import give_back_what_is_free
    from l2v.models.settings import EncoderSettings

    tasks = configs.build_tasks(suite)
    evaluate(EncoderSettings(**how), tasks, suite=suite["suite"], folder=folder)
    give_back_what_is_free()  # the next stage trains in a process of its own


def _finish(columns: list[Path], run: Path, folder: Path, name: str, seconds: float) -> None:
    from l2v.report import print_scores, write_report

    page = write_report(columns, folder / "report.html", title=f"l2v recipe: {name}")
    print_scores(columns)
    encoder = next((folder for folder in (run / "encoder", run / "adapter") if folder.is_dir()), run)
    sentences = '["A dog barks.", "A puppy yaps.", "Stocks fell."]'
    print(f"\n{seconds / 60:.1f} minutes. Report: {page.resolve()}\nEncoder: {encoder.resolve()}\n")
    print("from l2v import Encoder")
    print(f'encoder = Encoder.from_pretrained("{run}")')
    print(f"print(encoder.similarity(*[encoder.encode({sentences})] * 2))")


def _heading(text: str) -> None:
    console.rule(f"[bold]{text}", align="left")


def start() -> None:
    """The program, with the arguments of this process; a sweep ends with one report over all of its points."""
    arguments = sys.argv[1:]
    sweeps = any(argument in ("-m", "--multirun") for argument in arguments)
    sys.argv[1:] = wrapped(arguments)
    points = Points() if sweeps else None
    try:
        configs.run(main, name="recipe")
    finally:
        if points is not None:
            _report_points(list(points.finished()))
            points.close()


def _report_points(points: list[dict[str, Any]]) -> None:
    from l2v.report import print_scores, write_report

    if len(points) < 2:
        return
    runs = list(dict.fromkeys(Path(run) for point in points for run in point["runs"]))
    folder = Path(points[0]["folder"])
    page = write_report(runs, folder / "report.html", title=f"l2v recipe: {folder.name}")
    _heading(f"{len(points)} points")
    print_scores(runs)
    print(f"\nReport over all points: {page.resolve()}")


if __name__ == "__main__":
    # by its own name: a launcher of a sweep hands main on to other processes
    import l2v.cli.recipe

    l2v.cli.recipe.start()
