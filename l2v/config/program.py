"""Run a program with the config that Hydra composes; a mistake ends in one line."""

import functools
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

import hydra
from omegaconf import DictConfig

from l2v.config.compose import (
    choices,
    is_multirun,
    overrides,
    point_overrides,
    process_rank,
    with_model_of_init,
)
from l2v.config.messages import no_such_option, one_line
from l2v.config.search import conf_folder, is_base, offer_groups, search_path
from l2v.config.targets import check_recipe, take_allowed_modules
from l2v.config.typed import as_resumed, as_typed, take_texts
from l2v.errors import L2VError, Stopped, Terminated, first_line, panics_told
from l2v.process import find_home, set_up_process
from l2v.progress import say


def run(task: Callable[[DictConfig], Any], *, name: str, models: bool = True) -> None:
    """Run ``task`` with the config that Hydra composes from ``conf/<name>.yaml`` and the command line.

    An error is printed as one line, without a traceback unless ``debug=true``. Exit codes: 0, 1 after an error, 130
    or 143 after Ctrl-C or SIGTERM. A user's modules are found in the current folder, behind all others.

    In a sweep (``-m``) a failing point is told with what it differs in, and Hydra's sweeper hears of it: that decides
    whether others still run, in whichever process they do.

    Args:
        task: takes the composed config; what it returns is for the sweeper.
        name: of the config.
        models: whether the task runs models; see :func:`l2v.process.set_up_process`.
    """
    set_up_process(models=False)
    if (homeless := find_home()) and process_rank() == 0:
        say(homeless, style="yellow")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra raises its errors instead of printing them
    debug = any(argument.lower() == "debug=true" for argument in sys.argv)
    failures: list[Exception] = []
    typed = tuple(as_typed(sys.argv[1:], name))

    @functools.wraps(task)
    def guarded(composed: DictConfig) -> Any:
        try:
            set_up_process(models=models)
            _refuse_bases(name)
            take_texts(composed, [*overrides(), *typed], name)
            with panics_told():
                return task(composed)
        except Exception as error:
            if debug:
                raise
            failures.append(error)
            if isinstance(error, Stopped):
                raise SystemExit from None
            if not is_multirun():
                _tell(error, name)
                return None
            _tell(error, name, " ".join(point_overrides(typed)))
            raise PointFailed(first_line(error)) from None

    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.argv[1:] = with_model_of_init(take_allowed_modules(as_resumed(typed) if name == "train" else typed))
        check_recipe(sys.argv[1:], name)
        offer_groups(name)
        hydra.main(version_base="1.3", config_path=str(conf_folder().resolve()), config_name=name)(guarded)()
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("interrupted; what was saved before is kept")
        sys.exit(130)
    except Terminated:
        if process_rank() == 0:
            say("stopped; what was saved before is kept")
        raise
    except SystemExit:
        if not failures:
            raise
        if process_rank() == 0:
            say(str(failures[-1]))
        sys.exit(128 + failures[-1].signal if isinstance(failures[-1], Stopped) else 1)
    except Exception as error:
        if debug:
            raise
        failures.append(error)
        if not isinstance(error, PointFailed):
            _tell(error, name)
    finally:
        signal.signal(signal.SIGTERM, before)
    if failures:
        sys.exit(1)


class PointFailed(Exception):
    """A point of a sweep failed and said why, perhaps in another process: Hydra's launcher hands it on."""


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


def _refuse_bases(name: str) -> None:
    """What options are made from composes, but is none."""
    for group, option in choices().items():
        if option is not None and is_base(option):
            raise L2VError(no_such_option(group.split("@")[0], option, search_path(sys.argv[1:], name)))


def _reader_is_gone() -> bool:
    """Whether nobody reads what is printed any more, as after ``| head``. No more is then tried to print."""
    out = sys.stdout.fileno()
    watch = select.poll()
    watch.register(out, 0)
    gone = any(event & select.POLLERR for _, event in watch.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out)
    return gone


def _tell(error: Exception, name: str, point: str = "") -> None:
    if isinstance(error, BrokenPipeError) and _reader_is_gone():
        return
    say(f"error: {f'at {point}: ' if point else ''}{one_line(error, search_path(sys.argv[1:], name))}", style="red")
