"""The same tasks under each pooling (paper, figure 3 and table 5), with one forward pass a text."""

from dataclasses import dataclass
from typing import Any, cast

import torch

from l2v.encoders.encoder import Encoder
from l2v.encoders.text_encoder import TextEncoder, with_backbone
from l2v.errors import L2VError
from l2v.evaluation.results import Entries, ResultStore, entry
from l2v.evaluation.task import Task
from l2v.pooling import PoolingName, pool
from l2v.text.tokenization import Tokens, pad

_NAMES = {"last_token": "last token", "mean": "mean", "weighted_mean": "weighted mean", "bos": "first token"}


@dataclass(frozen=True)
class PoolingAblation(Task):
    """The average over tasks under each pooling, and each task's score.

    Attributes:
        tasks: name -> task, of any suite. Those that pool nothing (masked-token accuracy) are left out.
        poolings: to compare; None: last_token, mean and weighted_mean, and bos where the tokenizer puts such a token
            first and the attention is bidirectional (a causal model's first state is the same for all texts).
    """

    tasks: dict[str, Task]
    poolings: tuple[PoolingName, ...] | None = None

    label = "Pooling"
    metric = "average of the tasks"
    needs_backbone = True

    def __post_init__(self) -> None:
        if not self.chosen:
            raise L2VError("evaluation.tasks.pooling.tasks: no task with vectors; expected one or more")
        for name, task in self.chosen.items():
            if isinstance(task, PoolingAblation):
                raise L2VError(f"evaluation.tasks.pooling.tasks.{name}: a comparison of poolings inside another")
            if not task.higher_is_better:
                raise L2VError(
                    f"evaluation.tasks.pooling.tasks.{name}: lower is better for it, so it cannot be averaged with the "
                    "others; leave it out"
                )

    @property
    def chosen(self) -> dict[str, Task]:
        """The tasks that need vectors."""
        return {name: task for name, task in self.tasks.items() if not task.needs_head}

    def check(self, store: ResultStore) -> None:
        """Raise an L2VError where a task misses something."""
        for task in self.chosen.values():
            task.check(store)

    def evaluated_texts(self) -> list[str] | None:
        """Of all tasks that can tell theirs."""
        found = [texts for task in self.chosen.values() if (texts := task.evaluated_texts()) is not None]
        return list(dict.fromkeys(text for texts in found for text in texts)) if found else None

    def evaluate(self, name: str, encoder: TextEncoder, store: ResultStore, *, show: bool = False) -> Entries:
        """``<name>_<pooling>`` is the average over the tasks; the first of them has ``plot``, with all scores."""
        model = with_backbone(encoder, self.label)
        poolings = self.poolings or default_poolings(model)
        tasks: list[dict[str, Any]] = []
        for key, task in self.chosen.items():
            every = EveryPooling(model, poolings)
            values = {}
            for pooling in poolings:
                every.pooling = pooling
                under = store.under(pooling)
                scored = task.evaluate(key, every, under, show=show)
                values[pooling] = task.table(key, under, scored)[key]["value"]
            alike = sum(other.label == task.label for other in self.chosen.values()) > 1
            label = f"{task.label} ({key})" if alike else task.label
            tasks.append({"label": label, "metric": task.metric, "values": values})
        named = [[pooling, _NAMES[pooling]] for pooling in poolings]
        plot = {"kind": "pooling", "task": name, "poolings": named, "tasks": tasks}
        entries = {}
        for pooling in poolings:
            details = {task["label"]: task["values"][pooling] for task in tasks}
            average = sum(details.values()) / len(details)
            entries[f"{name}_{pooling}"] = entry(f"Pooling: {_NAMES[pooling]}", self.metric, average, details)
        first = next(iter(entries))
        entries[first] |= {"plot": plot}
        return entries


class EveryPooling(Encoder):
    """An encoder that keeps the vectors of all poolings, so that a text is run once though each of them asks for it.

    Its ``pooling`` can be changed between calls. What it keeps grows with the texts: 4 bytes a dimension, pooling and
    text.
    """

    def __init__(self, encoder: Encoder, poolings: tuple[PoolingName, ...]) -> None:
        super().__init__(
            encoder.backbone,
            pooling=poolings[0],
            max_length=encoder.max_length,
            text_max_length=encoder.text_max_length,
            prompt=encoder.prompt,
            padding_side=encoder.padding_side,
            normalized=encoder.normalized,
        )
        self.poolings = poolings
        self._kept: dict[tuple[int, ...], dict[PoolingName, torch.Tensor]] = {}

    def _embed(self, tokens: list[Tokens]) -> torch.Tensor:
        keys = [(text.text_begin, *text.input_ids) for text in tokens]
        if new := {key: text for key, text in zip(keys, tokens, strict=True) if key not in self._kept}:
            batch = pad(list(new.values()), self.backbone.tokenizer.pad_token_id, self.padding_side)
            on_device = {key: value.to(self.device) for key, value in batch.items()}  # type: ignore[attr-defined]
            pool_mask = on_device.pop("pool_mask")
            states = self.backbone(**on_device)
            vectors = {kind: pool(states, pool_mask, on_device["attention_mask"], kind).cpu() for kind in self.poolings}
            if self.normalized:
                vectors = {kind: torch.nn.functional.normalize(found, dim=-1) for kind, found in vectors.items()}
            for row, key in enumerate(new):
                self._kept[key] = {kind: found[row] for kind, found in vectors.items()}
        return torch.stack([self._kept[key][cast(PoolingName, self.pooling)] for key in keys])


def default_poolings(encoder: Encoder) -> tuple[PoolingName, ...]:
    """All that make sense for an encoder."""
    poolings: tuple[PoolingName, ...] = ("last_token", "mean", "weighted_mean")
    tokenizer = encoder.backbone.tokenizer
    first = tokenizer("a").input_ids[:1]
    starts_alike = bool(first) and first[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id)
    return (*poolings, "bos") if starts_alike and encoder.backbone.attention == "bidirectional" else poolings
