"""The commands that stand in README, docs, the programs' help and the experiments work as they are written there."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch import ROOT, composed
from omegaconf import OmegaConf
from tiny import SENTENCES

from l2v.cli.sweep import OWN
from l2v.config import search
from l2v.config.typed import as_typed, parsed, take_texts

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "experiments").glob("*/README.md"))]
PAGES += sorted((ROOT / "conf" / "hydra" / "help").glob("*.yaml"))
_COMMAND = re.compile(r"^ *((?:python (?:train|recipe|evaluate|encode|mine)\.py|l2v [a-z]+)(?: .*|$))")
_COMMENT = re.compile(r"(?: {3,}|\t| # ).*$")
_PLACEHOLDER = re.compile(r"<[^>]*>")


def commands() -> list[str]:
    """Every command, on a line of its own, without the words beside it."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for match in filter(None, map(_COMMAND.match, text.splitlines())):
            command = _PLACEHOLDER.sub("some-where", re.sub(r"(?<= ) +(?=[\w.]+=)", "", match[1]))
            found.append(_COMMENT.sub("", command).rstrip().replace("$analysis", "geometry"))
    return list(dict.fromkeys(found))


@functools.cache
def words(command: str) -> tuple[str, list[str]]:
    """The program, and its arguments as a shell hands them over."""
    shown = f'python() {{ printf \'%s\\0\' "$@"; }}; l2v() {{ python "$@"; }}; {command}'
    out = subprocess.run(["bash", "-fc", shown], capture_output=True, text=True, check=True).stdout
    program, *arguments = out.split("\0")[:-1]
    return program.removesuffix(".py"), [argument for argument in arguments if argument != "..."]


def _asks_a_shell(command: str) -> bool:
    return re.search(r"['\"\[{$]", command) is not None


ALL = [pytest.param(c, marks=() if _asks_a_shell(c) else pytest.mark.slow) for c in commands()]


@pytest.mark.parametrize("command", ALL)
def test_a_command_of_the_docs_means_what_it_says(command: str, tmp_path: Path) -> None:
    program, arguments = words(command)
    if not (ROOT / "conf" / f"{program}.yaml").exists():
        pytest.skip(f"{program} is no program of Hydra's")
    if "--help" in arguments:
        return
    typed = as_typed(arguments, program)
    overrides: list[str] = []
    for argument in typed:
        override = parsed(argument) if re.match(r"[\w+~]", argument) and "=" in argument else None
        if override is None or override.is_hydra_override() or argument.startswith("allow_modules="):
            continue
        if override.is_discrete_sweep():
            assert "-m" in typed, f"{argument} is several values"
            argument = f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
        if not override.is_interval_sweep():
            overrides.append(argument)
    _add_options(overrides, tmp_path)
    if program == "recipe":  # settings of train.py go to its stages
        own = [o for o in overrides if re.split(r"[.=@]", o)[0] in OWN]
        composed("train", ["name=x", *(o for o in overrides if o not in own and not o.startswith("recipe"))])
        overrides = own
    config = composed(program, [*overrides, f"hydra.searchpath=[file://{tmp_path}]"])
    take_texts(config, overrides, program)
    for argument in arguments:
        key, _, value = argument.partition("=")
        is_text = re.fullmatch(r"[\w.]+=.*", argument) and re.search(r"[ ,:?*]", value) and value[0] not in "[{$"
        if is_text and argument not in typed:
            assert OmegaConf.select(config, key) == value


def _add_options(overrides: list[str], folder: Path) -> None:
    """Options of a reader's own are made of the first of ours that the group has."""
    for override in overrides:
        group, _, option = override.partition("=")
        known = search.options(group.partition("@")[0], [ROOT / "conf"])
        if known and re.fullmatch(r"[\w.-]+", option) and option not in known and option != "null":
            (folder / group).mkdir(parents=True, exist_ok=True)
            (folder / group / f"{option}.yaml").write_text(yaml.safe_dump({"defaults": [next(iter(known))]}))


def test_the_commands_are_found() -> None:
    assert len(ALL) > 100
    assert any("instruction='Given a question, retrieve its answer'" in command for command in commands())


def shell(command: str, folder: Path) -> str:
    """Run a command as a reader does, and return what it printed."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    program = (
        f'python() {{ "{sys.executable}" "{ROOT}/$@"; }}; l2v() {{ "{sys.executable}" -m l2v.cli "$@"; }}; {command}'
    )
    done = subprocess.run(
        ["bash", "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder with what the commands below name."""
    (tmp_path / "model").symlink_to(tiny_model)
    (tmp_path / "queries.txt").write_text("\n".join(SENTENCES) + "\n")
    pairs = [{"query": f"{n} {text[:9]}", "positive": text} for n, text in enumerate(SENTENCES)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return tmp_path


@pytest.mark.slow
def test_an_instruction_with_a_comma_reaches_the_encoder(folder: Path) -> None:
    shell(
        "python encode.py encoder=model files=queries.txt output=2026_11 instruction='Given a, retrieve b: c'", folder
    )
    manifest: dict[str, Any] = json.loads((folder / "2026_11" / "manifest.json").read_text())
    assert manifest["settings"]["instruction"] == "Given a, retrieve b: c"


@pytest.mark.slow
def test_instructions_with_commas_reach_mining_and_export(folder: Path) -> None:
    mining = "python mine.py encoder=model pairs=pairs.jsonl output=triplets.jsonl num_negatives=1"
    shell(f"{mining} percentage_margin=null query_instruction='Given a question, retrieve its answer'", folder)
    assert "Given a question, retrieve its answer" in (folder / "triplets.summary.json").read_text()
    shell(
        "python train.py name=run model.source=model model.max_length=32 data=files data.train.files=queries.txt "
        "data.validation.files=queries.txt stage=simcse stage.batch_size=2 stage.max_steps=1 trainer.precision=32-true",
        folder,
    )
    shell("l2v export run=runs/run prompts='{query: \"Given a question, retrieve its answer\"}'", folder)
    (exported,) = (folder / "runs/run").glob("exported-prompts-*")
    saved = json.loads((exported / "config_sentence_transformers.json").read_text())
    assert saved["prompts"]["query"] == "Given a question, retrieve its answer:\n"


@pytest.mark.slow
def test_points_of_a_sweep_over_init_from_take_the_model_of_each(folder: Path) -> None:
    data = "data=files data.train.files=queries.txt data.validation.files=queries.txt stage.batch_size=2"
    small = f"{data} stage.max_steps=1 trainer.precision=32-true"
    for name in ("a", "b"):
        shell(f"python train.py name={name} model.source=model model.max_length=32 stage=simcse {small}", folder)
    shell(f"python train.py -m stage=simcse init_from=runs/a,runs/b {small}", folder)
    made = sorted(run.name for run in (folder / "runs").iterdir() if (run / "lineage.json").exists())
    assert len(made) == 4
    one = f"python train.py name=c stage=simcse init_from='runs/a' model.max_length=16 {small}"
    shell(one, folder)
    assert OmegaConf.load(folder / "runs/c/config.yaml").model.max_length == 16
