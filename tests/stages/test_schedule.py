"""The learning rate's way: a constant stretch, and a decay at the end."""

from pathlib import Path

import pytest
import torch
from launch import Tiny, assert_same_training, metrics

from l2v.errors import L2VError
from l2v.stages.mntp import MNTP

SETTINGS = {"name": "mntp", "batch_size": 2, "learning_rate": 0.5, "schedule": "warmup_stable_decay"}


def rates(steps: int, **settings: object) -> list[float]:
    """The learning rate of each optimizer step."""
    stage = MNTP(**(SETTINGS | settings))  # type: ignore[arg-type]
    stage.weight = torch.nn.Parameter(torch.zeros(()))
    made = stage.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_the_rate_warms_up_stays_and_decays_in_a_straight_line() -> None:
    expected = [0, 0.25, 0.5, 0.75] + [1] * 10 + [1 - step / 6 for step in range(6)]
    assert rates(20, max_steps=20, warmup_steps=4, decay_steps=6) == pytest.approx(
        [0.5 * factor for factor in expected]
    )


def test_the_decay_is_a_tenth_of_the_schedule_where_nothing_else_is_said() -> None:
    found = rates(40, max_steps=40)
    assert found[:37] == [0.5] * 37 and found[37:] == pytest.approx([0.375, 0.25, 0.125])


def test_the_decay_ends_with_the_schedule_and_not_with_the_training() -> None:
    assert rates(10, max_steps=10, schedule_steps=8, decay_steps=4)[4:] == pytest.approx(
        [0.5, 0.375, 0.25, 0.125, 0, 0]
    )


def test_a_constant_rate_warms_up_too() -> None:
    assert rates(6, schedule="constant", max_steps=6, warmup_steps=4) == pytest.approx(
        [0, 0.125, 0.25, 0.375, 0.5, 0.5]
    )
    assert rates(3, schedule="constant", max_steps=3) == [0.5] * 3


def test_a_schedule_is_longer_than_its_warm_up() -> None:
    linear = {**SETTINGS, "schedule": "linear", "max_steps": 12}
    with pytest.raises(L2VError, match=r"stage\.warmup_steps=8 leaves nothing of stage\.schedule_steps=4"):
        MNTP(**linear, warmup_steps=8, schedule_steps=4)  # type: ignore[arg-type]
    with pytest.raises(L2VError, match=r"stage\.warmup_steps=12 leaves nothing of stage\.max_steps=12"):
        MNTP(**linear, warmup_steps=12, schedule_steps=40)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay_steps": 7}, r"stage\.decay_steps=7: stage\.warmup_steps=4 leaves 6 of the schedule's 10 steps"),
        ({"schedule_steps": 5, "decay_steps": 2}, r"stage\.decay_steps=2: .* leaves 1 of the schedule's 5 steps"),
        ({"schedule_epochs": 3}, r"stage\.schedule=warmup_stable_decay .*stage\.schedule_epochs"),
        ({"schedule": "cosine", "decay_steps": 2}, r"stage\.decay_steps is for stage\.schedule=warmup_stable_decay"),
    ],
)
def test_a_decay_that_does_not_fit_is_refused_in_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(L2VError, match=message) as error:
        MNTP(**{**SETTINGS, "max_steps": 10, "warmup_steps": 4, **settings})  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_run_resumed_in_its_decay_is_the_run_that_never_stopped(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Tiny(tmp_path, tiny_model, monkeypatch)
    settings = ["stage.schedule=warmup_stable_decay", "stage.schedule_steps=20", "stage.decay_steps=10"]
    straight = tiny.train("straight", "mntp", "stage.max_steps=20", *settings)
    parts = tiny.train("parts", "mntp", "stage.max_steps=15", *settings)
    tiny.resume(parts, "stage.max_steps=20")
    assert_same_training(straight, parts)
    found = [row["learning_rate"] for row in metrics(parts) if "learning_rate" in row]
    peak = found[0]
    assert found == pytest.approx([peak * min(1, (20 - step) / 10) for step in range(1, 21)])
