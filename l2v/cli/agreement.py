"""What the first process of a training decides and the others have to know, before they make a process group.

Processes that Lightning starts get it with their environment, since they are started after it. Those that torchrun or
SLURM started get it through the store at which they meet anyway.
"""

import functools
import json
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from l2v.config import process_rank
from l2v.errors import L2VError

_T = TypeVar("_T")
_VARIABLE = "L2V_AGREED_"
_AT_MOST = timedelta(hours=1)
"""To wait: the first process may download a model, or tokenize much, before it decides."""
_trainings = 0
"""Trainings of this process that are over: each has words of its own in the store."""


def agree(what: str, decide: Callable[[], _T]) -> _T:
    """What the first process decides; the others wait for it. Where it fails, they end without a word: it says why.

    Args:
        what: a name for it, once a training.
        decide: called by the first process; gives what JSON can hold.

    Raises:
        L2VError: the first process is gone, or SLURM does not say how many a node has.
    """
    variable, store = _VARIABLE + what, _store()
    if process_rank() > 0:
        if variable in os.environ:
            return json.loads(os.environ[variable])
        if store is None:
            raise L2VError("this process is not the first, and was started by neither Lightning, torchrun nor SLURM")
        found = _wait_for(store, _word(what))
        if found == _FAILED:
            raise SystemExit(1)
        return json.loads(found)
    try:
        decided = decide()
    except BaseException:
        if store is not None:
            store.set(_word(what), _FAILED)
        raise
    os.environ[variable] = json.dumps(decided)
    if store is not None:
        store.set(_word(what), json.dumps(decided))
    return decided


def forget() -> None:
    """The training is over: the next one in this process has decisions of its own."""
    global _trainings
    _trainings += 1
    for name in [name for name in os.environ if name.startswith(_VARIABLE)]:
        del os.environ[name]


_FAILED = "failed"


def _word(what: str) -> str:
    return f"l2v/{_trainings}/{what}"


def _wait_for(store: Any, word: str) -> str:
    try:
        return store.get(word).decode()
    except Exception as error:  # torch has a type for each way to lose a connection
        raise L2VError("the first process of the training is gone; its own message says why") from error


@functools.cache
def _store() -> Any:
    """Where processes meet that were started by torchrun or SLURM; None: there are none, or Lightning starts them.

    It is kept: the process group is made at the same place.
    """
    from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment

    environment: ClusterEnvironment
    if TorchElasticEnvironment.detect():
        environment = TorchElasticEnvironment()
    elif SLURMEnvironment.detect():
        if os.environ["SLURM_NTASKS"] != "1" and "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise L2VError(
                f"--ntasks={os.environ['SLURM_NTASKS']} of SLURM does not say how many processes a node has: give "
                "--ntasks-per-node, one a GPU, instead (examples/slurm/train.sbatch)"
            )
        environment = SLURMEnvironment()
    else:
        return None
    rank, number = environment.global_rank(), environment.world_size()
    if number == 1:
        return None
    from torch.distributed import rendezvous

    os.environ.update(MASTER_ADDR=environment.main_address, MASTER_PORT=str(environment.main_port))

    def meet() -> Any:
        return next(rendezvous("env://", rank, number, timeout=_AT_MOST))[0]

    store = meet()
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0":
        return store
    # torchrun's store has what the processes before the restart put there, their addresses too: take one of our own
    if rank == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            store.set(f"l2v/port/{attempt}", str(free.getsockname()[1]))
    port = store.get(f"l2v/port/{attempt}").decode()
    os.environ.update(MASTER_PORT=port, TORCHELASTIC_USE_AGENT_STORE="False")
    return meet()
