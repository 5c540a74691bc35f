"""What a suite, a training and the search for contamination ask of an evaluation: the base of every task."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from l2v.encoders.text_encoder import TextEncoder
from l2v.errors import L2VError
from l2v.evaluation.results import Entries, ResultStore, entry


class Task:
    """An evaluation of an encoder. A subclass is a dataclass, whose fields are the settings that its YAML may give.

    ``label``, ``metric`` and ``run`` are all that most tasks have; the other methods are for those that give several
    scores, or keep some of their own. ``label`` and the others here may be fields, constants or properties.

    Example:
        >>> from dataclasses import dataclass
        >>> from l2v import Encoder, Task
        >>> @dataclass(frozen=True)
        ... class Paraphrase(Task):
        ...     pair: tuple[str, str]
        ...     label: str = "paraphrase"
        ...     metric: str = "cosine"
        ...     def run(self, encoder, *, show=False):
        ...         first, second = encoder.encode(self.pair)
        ...         return {"cosine": float(encoder.similarity(first, second)[0, 0])}
        >>> task = Paraphrase(("A dog barks.", "A dog barks."))
        >>> round(task.run(Encoder.from_pretrained("model"))["cosine"], 3)
        1.0
    """

    label: str
    """In tables."""
    metric: str
    """The number of ``run`` that goes into tables."""
    higher_is_better: bool = True
    needs_head: bool = False
    """Whether the model's output head is loaded."""
    needs_backbone: bool = False
    """Whether it looks inside the model (states, tokens, poolings): an encoder of another library has vectors only."""

    def run(self, encoder: TextEncoder, *, show: bool = False) -> dict[str, float]:
        """Named numbers, among them ``metric``; all of them are in the result's details. ``show``: progress bars."""
        raise NotImplementedError(f"{type(self).__name__} has neither run nor evaluate")

    def check(self, store: ResultStore) -> None:
        """Raise an L2VError where something is missing; called before the encoder is loaded."""

    def parts(self, store: ResultStore) -> "Sequence[Task]":
        """What is left to score, in parts that processes can share."""
        return [self]

    def evaluate(self, name: str, encoder: TextEncoder, store: ResultStore, *, show: bool = False) -> Entries:
        """Entries of a suite's scores; ``name`` is the key of the first, and begins the others'."""
        details = self.run(encoder, show=show)
        if self.metric not in details:
            raise L2VError(f"{self.label}: metric={self.metric}: expected one of {', '.join(details)}")
        better = self.higher_is_better
        return {name: entry(self.label, self.metric, details[self.metric], details, higher_is_better=better)}

    def table(self, name: str, store: ResultStore, scored: Entries) -> Entries:
        """The entries that the suite's file gets, from those of all parts and from what is kept in ``store``."""
        return scored

    def evaluated_texts(self) -> Iterable[str] | None:
        """Every text that the score may depend on, to be looked for in training data; None: the task cannot tell."""
        return None

    def evaluated_texts_by_task(self, name: str) -> dict[str, tuple[str, Iterable[str]]]:
        """Labels and texts by key, which is ``name`` unless the task is made of several; empty: it cannot tell."""
        texts = self.evaluated_texts()
        return {} if texts is None else {name: (self.label, texts)}

    def data_fingerprint(self) -> Any:
        """What pins the data beside the settings, as a hash of its files does; None: the settings say it all."""
        return None

    def fingerprint(self) -> list[Any]:
        """What pins the scores of one encoder: the class, the settings, those of tasks and texts inside it, the data.

        The code is not among it: after a change of the code a result is reused, unless a setting has changed too.
        """
        settings = {field.name: _pinned(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        data = self.data_fingerprint()
        return [type(self).__name__, settings, *([] if data is None else [data])]


def _pinned(setting: Any) -> Any:
    if isinstance(setting, dict):
        return {key: _pinned(value) for key, value in setting.items()}
    return setting.fingerprint() if hasattr(setting, "fingerprint") else setting
