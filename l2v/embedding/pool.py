"""Actors of a Ray cluster that do jobs: one that dies is replaced, and what it had is done by others."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from l2v.embedding.inputs import Row
from l2v.errors import L2VError, first_line
from l2v.progress import say

_AHEAD = 2
"""Jobs that an actor has: one that it does, and one that waits, so that it does not."""
_MOST_DEATHS = 3
"""Of actors, over one job: then it is the job."""
_PATIENCE = 60.0
"""Seconds without an actor until the user is told."""


@dataclass(eq=False)
class Job:
    """Rows of one shard, or of a sample."""

    number: int
    chunk: list[Row]
    deaths: int = 0
    """Actors that died while they had it."""

    @property
    def texts(self) -> list[str]:
        return [row.text for row in self.chunk]


@dataclass(eq=False)
class _Actor:
    handle: Any
    deaths: int
    """Of those before it, which it replaces, while they loaded the encoder."""
    jobs: int = 0
    loaded: bool = False


class Pool:
    """Actors, each with an encoder.

    Args:
        start: starts an actor and returns its handle, of :class:`~l2v.embedding.actor.ShardEncoder`.
        count: of actors. Those that find no room in the cluster yet are not waited for.
    """

    def __init__(self, start: Callable[[], Any], count: int) -> None:
        self._start = start
        self._actors: list[_Actor] = []
        self._running: dict[Any, tuple[_Actor, Job | None]] = {}
        """By what Ray calls the result; None: the actor loads its encoder."""
        self.dimension: int | None = None
        """Of the vectors; None until an actor has loaded the encoder."""
        self._told = False
        for _ in range(count):
            self._add(deaths=0)

    def run(self, jobs: Iterable[Job], call: Callable[[Any, Job], Any]) -> Iterator[tuple[Job, Any]]:
        """Do jobs, and give their results as they come. Held are two jobs for each actor.

        Args:
            jobs: taken as actors become free.
            call: calls a method of an actor's handle with a job.

        Raises:
            L2VError: of an actor; or three of them died over one job.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        coming, again = iter(jobs), deque[Job]()
        exhausted = False
        while True:
            for actor in self._free():
                job = again.popleft() if again else next(coming, None)
                if job is None:
                    exhausted = True
                    break
                self._running[call(actor.handle, job)] = actor, job
                actor.jobs += 1
            if exhausted and not again and not any(job for _, job in self._running.values()):
                return
            for result in ray.wait(list(self._running), timeout=_PATIENCE)[0]:
                actor, job = self._running[result]
                try:
                    value = ray.get(result)
                except RayTaskError as error:
                    raise error.cause from None
                except RayError as error:
                    again.extend(self._bury(actor, error))
                    continue
                del self._running[result]
                if job is None:
                    actor.loaded, self.dimension = True, value
                else:
                    actor.jobs -= 1
                    yield job, value
            if self.dimension is None and not self._told:
                self._tell()

    def _free(self) -> Iterator[_Actor]:
        """Actors that can take a job more, first those that have none."""
        for have, actor in itertools.product(range(_AHEAD), self._actors):
            if actor.loaded and actor.jobs == have:
                yield actor

    def _add(self, deaths: int) -> None:
        actor = _Actor(self._start(), deaths)
        self._actors.append(actor)
        self._running[actor.handle.load.remote()] = actor, None

    def _bury(self, actor: _Actor, error: Exception) -> list[Job]:
        """Replace an actor that died; its jobs."""
        import ray

        jobs = [job for owner, job in self._running.values() if owner is actor and job is not None]
        deaths = 0 if actor.loaded else actor.deaths + 1
        for job in jobs:
            job.deaths += 1
        if max([deaths, *(job.deaths for job in jobs)]) >= _MOST_DEATHS:
            over = f"shard {jobs[0].number}" if actor.loaded else "loading the encoder"
            raise L2VError(f"engine=ray: {_MOST_DEATHS} actors died over {over}: {_reason(error)}")
        say(f"an actor of the cluster died; another takes its place: {_reason(error)}", style="yellow")
        self._actors.remove(actor)
        self._running = {result: owned for result, owned in self._running.items() if owned[0] is not actor}
        ray.kill(actor.handle)
        self._add(deaths)
        return jobs

    def _tell(self) -> None:
        self._told = True
        say(
            "engine=ray: no actor is ready yet; the encoder is being loaded, or the cluster has no room", style="yellow"
        )


def _reason(error: Exception) -> str:
    """What Ray says of a death, without the names and numbers of the actor that stand before it."""
    lines = [line for line in str(error).splitlines() if line.startswith("The actor is dead because ")]
    return lines[0].removeprefix("The actor is dead because ").split(". ")[0] if lines else first_line(error)
