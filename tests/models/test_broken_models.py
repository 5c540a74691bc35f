"""Models and adapters whose files say what nothing can be made of: one line, and soon."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest

from l2v import Encoder
from l2v.errors import L2VError
from l2v.models import adapters
from l2v.models.backbone import Backbone
from l2v.text import rendering


@pytest.fixture
def model(tmp_path: Path, tiny_model: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def changed(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_attention_heads": 0}, "its config.json does not make a model (ZeroDivisionError"),
        ({"num_attention_heads": 3}, "validate_architecture': ValueError: The hidden size (32) is not a multiple"),
        ({"rms_norm_eps": "x"}, "Validation error for field 'rms_norm_eps': TypeError: Field 'rms_norm_eps' expected"),
        ({"dtype": "x"}, "AttributeError"),
        ({"pad_token_id": 10**9}, "AssertionError"),
        ({"intermediate_size": 1}, "the shapes of its weights are not those of its config.json"),
        ({"num_hidden_layers": 10**9}, "config.json says num_hidden_layers=1000000000; expected 10000 at most"),
        ({"vocab_size": 10**12}, "config.json says hidden_size=32 and vocab_size=1000000000000, and the weights have"),
        ({"hidden_size": 10**9}, "config.json says hidden_size=1000000000 and vocab_size=384, and the weights have"),
    ],
)
def test_a_config_that_makes_no_model_is_one_line(model: Path, changes: dict[str, Any], told: str) -> None:
    changed(model / "config.json", **changes)
    with pytest.raises(L2VError) as error:
        Encoder.from_pretrained(model)
    assert told in str(error.value) and str(error.value).startswith(f"model.source={model}: ")
    assert "\n" not in str(error.value)


def test_a_pattern_of_a_tokenizer_that_backtracks_for_ever_is_told(model: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    changed(model / "tokenizer.json", pre_tokenizer=split)
    encoder = Encoder.from_pretrained(model)
    with pytest.raises(L2VError, match="the tokenizer cannot read a text: tokenizer.json is broken .*retry-limit"):
        encoder.encode(["a" * 40 + "!"])


@pytest.mark.parametrize(
    ("template", "seconds", "told"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            1,
            "came to no end within 1 s",
        ),
        ("{{ 'a' * 10**11 }}", 120, "MemoryError"),
        ("{{ x.y.z }}", 120, "'x' is undefined"),
    ],
)
def test_a_chat_template_that_does_not_end_is_told(
    model: Path, monkeypatch: pytest.MonkeyPatch, template: str, seconds: int, told: str
) -> None:
    (model / "chat_template.jinja").write_text(template)
    monkeypatch.setattr(rendering, "_SECONDS", seconds)
    with pytest.raises(L2VError, match=f"the tokenizer has no chat template that can be used .*{told}"):
        Encoder.from_pretrained(model, template="chat")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"r": 10**9}, "adapter_config.json says r=1000000000, and no tensor of the adapter is that large"),
        ({"rank_pattern": {"q_proj": 10**9}}, "says r=1000000000"),
        ({"target_modules": "(.*)*(.*)*(.*)*x"}, "has a pattern that cannot be used, one of (.*)*(.*)*(.*)*x"),
        ({"target_modules": "(a"}, "has a pattern that cannot be used, one of (a"),
        ({"rank_pattern": {"(": 2}}, "has a pattern that cannot be used"),
        ({"lora_alpha": "x"}, "the adapter does not fit llama: unsupported operand"),
    ],
)
def test_an_adapter_that_nothing_can_be_made_of_is_one_line(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], told: str
) -> None:
    backbone = Backbone.load(str(tiny_model))
    backbone.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    backbone.save_adapter(tmp_path / "theirs")
    changed(tmp_path / "theirs" / "adapter_config.json", **changes)
    monkeypatch.setattr(adapters, "_SECONDS", 2)
    with pytest.raises(L2VError) as error:
        Backbone.load(str(tiny_model)).load_adapter(tmp_path / "theirs")
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_pattern_of_an_adapter_that_can_be_used_is(tiny_model: Path, tmp_path: Path) -> None:
    backbone = Backbone.load(str(tiny_model))
    backbone.add_adapter(peft.LoraConfig(r=2, target_modules=r".*\.(q|v)_proj", rank_pattern={"q_proj": 4}))
    backbone.save_adapter(tmp_path / "theirs")
    again = Backbone.load(str(tiny_model))
    again.load_adapter(tmp_path / "theirs")
    assert {name for name, _ in again.named_parameters() if "lora" in name} == {
        name for name, _ in backbone.named_parameters() if "lora" in name
    }


def test_files_of_an_encoder_are_as_readable_as_others(tiny_model: Path, tmp_path: Path) -> None:
    Encoder.from_pretrained(tiny_model).save(tmp_path / "encoder")
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "encoder").rglob("*") if file.is_file()}
    assert modes == {(tmp_path / "encoder").stat().st_mode & 0o666}
