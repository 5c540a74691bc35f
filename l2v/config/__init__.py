"""From a composed Hydra config to checked Python objects, and from any mistake to one line.

The only room that knows Hydra: everything else takes plain, typed arguments.
"""

from l2v.config.build import build, check_value, construct
from l2v.config.compose import (
    choices,
    compose,
    is_multirun,
    merge_overrides,
    model_of_init,
    overrides,
    plain,
    process_rank,
    read_saved,
    search_overrides,
    sweeper,
    sweeper_settings,
)
from l2v.config.encoder import take_encoder
from l2v.config.planning import build_plan
from l2v.config.program import run
from l2v.config.search import conf_folder
from l2v.config.targets import check_definitions, check_overrides, check_targets, leaves
from l2v.config.tasks import build_tasks
from l2v.config.trainer import build_predictor
from l2v.config.training import build_training
from l2v.config.typed import as_typed, parsed, quoted
from l2v.trust import allowed_modules

__all__ = [
    "allowed_modules",
    "as_typed",
    "build",
    "build_plan",
    "build_predictor",
    "build_tasks",
    "build_training",
    "check_definitions",
    "check_overrides",
    "check_targets",
    "check_value",
    "choices",
    "compose",
    "conf_folder",
    "construct",
    "is_multirun",
    "leaves",
    "merge_overrides",
    "model_of_init",
    "overrides",
    "parsed",
    "plain",
    "process_rank",
    "quoted",
    "read_saved",
    "run",
    "search_overrides",
    "sweeper",
    "sweeper_settings",
    "take_encoder",
]
