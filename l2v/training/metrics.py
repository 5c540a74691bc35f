"""Metrics that survive a resume."""

import csv
import io
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from l2v.errors import L2VError
from l2v.runs.files import read_json_lines, write_text


class RunLogger(Logger):
    """Writes ``metrics.jsonl`` a line a logged step, and ``metrics.csv`` from it when training ends or stops.

    Times are seconds of training, summed over resumed parts.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.file = folder / "metrics.jsonl"
        self._rows = read_json_lines(self.file) if self.file.exists() else []
        if any(not {"step", "time"} <= row.keys() for row in self._rows):
            raise L2VError(f"{self.file}: a row has no step or no time; delete that line to go on")
        self._begin = time.monotonic()
        self.count_steps: Callable[[], int] = lambda: 0
        """Optimizer steps done: Lightning's own count is behind by one while it trains, and not after a resume."""

    @property
    def name(self) -> str:
        return "run"

    @property
    def version(self) -> str:
        return ""

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return time.monotonic() - self._begin

    @rank_zero_only
    def start(self, resumed_at: int | None) -> None:
        """Drop what was logged after the step that is resumed at (and is now trained again); None drops everything."""
        self._rows = [row for row in self._rows if resumed_at is not None and row["step"] <= resumed_at]
        spent = self._rows[-1]["time"] if self._rows else 0.0
        self._begin = time.monotonic() - spent
        write_text(self.file, "".join(json.dumps(row) + "\n" for row in self._rows))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        if not values:
            return
        row = {"step": self.count_steps(), "time": round(self.seconds, 3), **values}
        self._rows.append(row)
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise L2VError(f"{self.file}: cannot be written ({error.strerror}); checkpoints are kept") from error

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: ``config.yaml`` has them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if not self._rows:
            return
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns)
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.file.with_suffix(".csv"), table.getvalue())

    def has(self, step: int, name: str) -> bool:
        """Whether a metric of a step is logged."""
        return any(row["step"] == step and name in row for row in self._rows)

    def last(self) -> dict[str, float]:
        """The last value of every metric."""
        return {name: value for row in self._rows for name, value in row.items()}
