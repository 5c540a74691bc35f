"""Checkpoints laid out like those of the LLM2Vec authors.

``reference/llm2vec`` was saved by llm2vec 0.2.3 itself, and so were the vectors that it expects
(``benchmarks/parity/reference.py published``).
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launch import Tiny

from l2v.encoders.encoder import Encoder
from l2v.encoders.load import known_dimension, load_encoder
from l2v.errors import L2VError
from l2v.models.adapters import Lora
from l2v.models.backbone import Backbone
from l2v.models.settings import EncoderSettings
from l2v.runs.adapter_folders import adapter_folder, assemble
from l2v.runs.run import Run

FOLDER = Path(__file__).parents[1] / "reference" / "llm2vec"
INPUTS = json.loads((FOLDER / "texts.json").read_text(encoding="utf-8"))
LEAST_COSINE = 0.99999


@pytest.fixture(autouse=True)
def in_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapters name ./base as their base, as published ones name a hub id."""
    monkeypatch.chdir(FOLDER)


def load(*adapters: str, **settings: Any) -> Encoder:
    return Encoder.from_pretrained(FOLDER / "mntp", adapters=[FOLDER / name for name in adapters], **settings)


def least_cosine(found: np.ndarray, expected: str) -> float:
    with np.load(FOLDER / "expected.npz") as vectors:
        wanted = vectors[expected]
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(wanted, axis=-1)
    return float(((found * wanted).sum(axis=-1) / norms).min())


@pytest.mark.parametrize(("adapters", "expected"), [([], "mntp"), (["simcse"], "simcse")])
def test_vectors_are_those_of_the_reference(adapters: list[str], expected: str) -> None:
    encoder = load(*adapters)
    texts, instruction = INPUTS["texts"], INPUTS["instruction"]
    assert least_cosine(encoder.encode(texts), expected) >= LEAST_COSINE
    with_instruction = encoder.encode(texts, instruction=instruction)
    assert least_cosine(with_instruction, f"{expected}_instruction") >= LEAST_COSINE


@pytest.mark.parametrize(
    ("named", "template"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", "[INST] {text} [/INST]"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>"),
    ],
)
def test_the_template_that_the_reference_takes_from_the_decoders_name(tmp_path, named: str, template: str) -> None:
    shutil.copytree(FOLDER / "mntp", tmp_path / "mntp")
    config = json.loads((tmp_path / "mntp" / "config.json").read_text())
    (tmp_path / "mntp" / "config.json").write_text(json.dumps({**config, "_name_or_path": named}))
    encoder = Encoder.from_pretrained(tmp_path / "mntp", base=str(FOLDER / "base"))
    assert encoder.prompt.template == template
    expected = "mntp_llama2" if "2" in named else "mntp_llama3"
    assert least_cosine(encoder.encode(INPUTS["texts"]), expected) >= LEAST_COSINE
    with_instruction = encoder.encode(INPUTS["texts"], instruction=INPUTS["instruction"])
    assert least_cosine(with_instruction, f"{expected}_instruction") >= LEAST_COSINE


def test_an_adapter_on_an_adapter_is_not_put_on_the_bare_decoder(tmp_path: Path) -> None:
    (tmp_path / "x-mntp-unsup-simcse").symlink_to(FOLDER / "simcse")
    with pytest.raises(L2VError, match=r"this adapter was trained on .*x-mntp, which has to come first"):
        Encoder.from_pretrained(tmp_path / "x-mntp-unsup-simcse")


def test_one_folder_is_enough() -> None:
    assert least_cosine(Encoder.from_pretrained(FOLDER / "mntp").encode(INPUTS["texts"]), "mntp") >= LEAST_COSINE


def test_settings_are_those_of_the_last_adapter() -> None:
    mntp, simcse = load(), load("simcse")
    assert (mntp.pooling, mntp.max_length) == ("mean", 512)
    assert (simcse.pooling, simcse.max_length) == ("weighted_mean", 128)


def test_own_settings_go_before_saved_ones() -> None:
    encoder = load("simcse", pooling="mean", max_length=64)
    assert (encoder.pooling, encoder.max_length) == ("mean", 64)
    assert least_cosine(encoder.encode(INPUTS["texts"]), "simcse") < 0.999


def test_a_saved_encoder_gives_the_same_vectors(tmp_path: Path) -> None:
    load("simcse").save(tmp_path / "encoder")
    saved = Encoder.from_pretrained(tmp_path / "encoder")
    assert least_cosine(saved.encode(INPUTS["texts"]), "simcse") >= LEAST_COSINE
    with_instruction = saved.encode(INPUTS["texts"], instruction=INPUTS["instruction"])
    assert least_cosine(with_instruction, "simcse_instruction") >= LEAST_COSINE


def test_training_goes_on_from_published_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Tiny(tmp_path, FOLDER / "base", monkeypatch)
    adapters = f"init_from=[{FOLDER / 'mntp'},{FOLDER / 'simcse'}]"
    still = ["stage.max_steps=1", "stage.learning_rate=1e-12", "model.pooling=weighted_mean"]
    run = Run(tiny.train("on", "simcse", adapters, *still, "model.max_length=128", "model.pooled_tokens=text"))
    assert [record.stage for record in run.lineage().merged] == ["mntp", "simcse"]
    assert least_cosine(Encoder.from_pretrained(run.folder).encode(INPUTS["texts"]), "simcse") >= LEAST_COSINE


def test_an_evaluation_knows_its_adapters() -> None:
    alone, both = EncoderSettings("mntp").fingerprint(), EncoderSettings("mntp", adapters=("simcse",)).fingerprint()
    assert len(alone[2]) == 1 and len(both[2]) == 2 and alone[0] == both[0]


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("mntp", {"adapters": ["base"]}, "adapters=base: no adapter_config.json, so it holds no adapter"),
        ("mntp", {"adapters": ["nowhere/no"]}, "adapters=nowhere/no: |model.source=nowhere/no: not found"),
        ("mntp", {"base": "gone/"}, "base=gone/: no such file or folder"),
        ("simcse", {"base": "mntp/llm2vec_config.json"}, "base=mntp/llm2vec_config.json: expected a model folder"),
        (
            "base",
            {"base": "base"},
            "base=base: the model of an adapter .* but model.source=base is no adapter",
        ),
    ],
)
def test_what_is_not_there_is_told_in_one_line(source: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(L2VError, match=message) as error:
        Encoder.from_pretrained(source, **settings)
    assert "\n" not in str(error.value)


def test_an_adapter_that_is_not_there_is_told_with_the_override_that_named_it() -> None:
    with pytest.raises(L2VError, match="^init_from=runs/nope: not found on the hub or the hub cannot be reached"):
        adapter_folder("runs/nope", override="init_from")


def test_an_adapter_that_was_moved_away_from_its_base_says_so(tmp_path: Path) -> None:
    shutil.copytree("mntp", tmp_path / "mntp")
    os.chdir(tmp_path)
    with pytest.raises(L2VError, match=r"its base model ./base is not there; give base="):
        Encoder.from_pretrained("mntp")
    encoder = Encoder.from_pretrained("mntp", base=str(FOLDER / "base"))
    assert least_cosine(encoder.encode(INPUTS["texts"]), "mntp") >= LEAST_COSINE


def test_the_revision_of_its_base_that_an_adapter_names_is_taken(tmp_path: Path) -> None:
    shutil.copytree("mntp", tmp_path / "mntp")
    config = json.loads((tmp_path / "mntp" / "adapter_config.json").read_text())
    named = {"base_model_name_or_path": "owner/decoder", "revision": "a1b2c3"}
    (tmp_path / "mntp" / "adapter_config.json").write_text(json.dumps({**config, **named}))
    base = assemble(str(tmp_path / "mntp")).base
    assert (base.path, base.revision) == ("owner/decoder", "a1b2c3")


def test_a_run_is_not_put_on_another_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Tiny(tmp_path, FOLDER / "base", monkeypatch)
    for export in ("encoder", "adapter"):
        run = tiny.train(export, "mntp", "stage.max_steps=1", f"export={export}")
        with pytest.raises(L2VError, match=f"base=base: .* but model.source={run} is a run, which says itself"):
            Encoder.from_pretrained(run, base="base")


@pytest.mark.parametrize("source", ["mntp", "simcse"])
def test_every_program_takes_the_folder_of_an_adapter(tmp_path: Path, source: str) -> None:
    """One of PEFT's own, which has no config.json."""
    shutil.copytree(FOLDER / source, tmp_path / "adapter", ignore=shutil.ignore_patterns("config.json"))
    settings = EncoderSettings(str(tmp_path / "adapter"), base="base")
    encoder = load_encoder(settings, device="cpu")
    assert encoder.dimension == known_dimension(settings)


def test_a_whole_model_that_llm2vec_saved_is_used_as_its_file_says(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "whole")
    written = {"pooling_mode": "eos_token", "max_length": 64, "doc_max_length": 32, "skip_instruction": True}
    (tmp_path / "whole" / "llm2vec_config.json").write_text(json.dumps(written))
    encoder = Encoder.from_pretrained(tmp_path / "whole", device="cpu")
    assert (encoder.pooling, encoder.max_length, encoder.text_max_length) == ("last_token", 64, 32)
    assert (encoder.prompt.separator, encoder.prompt.pooled_tokens) == (" ", "text")


def test_an_export_of_ones_own_may_have_any_name(tiny_model: Path, tmp_path: Path) -> None:
    backbone = Backbone.load(str(tiny_model))
    backbone.add_adapter(Lora(2))
    for name, written in (("own-mntp-simcse", True), ("theirs-mntp-simcse", False)):
        backbone.save_adapter(tmp_path / name)
        if written:
            Encoder(backbone).save_own_settings(tmp_path / name)
    assert assemble(str(tmp_path / "own-mntp-simcse")).adapters == [tmp_path / "own-mntp-simcse"]
    with pytest.raises(L2VError, match="was trained on .*theirs-mntp, which has to come first"):
        assemble(str(tmp_path / "theirs-mntp-simcse"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"separator": None}, "separator: expected str, found None"),
        ({"pooling": ["mean"]}, r"pooling: expected str or dict, found \['mean'\]"),
        ({"max_length": "512"}, "max_length: expected int, found '512'"),
        ({"text_max_length": True}, "text_max_length: expected int or null, found True"),
        ({"normalize": "no"}, "normalize: expected bool, found 'no'"),
    ],
)
def test_settings_of_another_type_are_told_with_their_file(
    tiny_model: Path, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    Encoder.from_pretrained(tiny_model, device="cpu").save(tmp_path / "saved")
    file = tmp_path / "saved" / "l2v.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(L2VError, match=f"l2v.json: {told}"):
        Encoder.from_pretrained(tmp_path / "saved")


def test_settings_of_other_types_than_texts(tiny_model: Path) -> None:
    assert EncoderSettings(tiny_model).source == str(tiny_model)  # type: ignore[arg-type]
    with pytest.raises(L2VError, match=r"adapters=mine: expected a list of folders or hub ids, as \[mine\]"):
        EncoderSettings(str(tiny_model), adapters="mine")  # type: ignore[arg-type]


def test_code_and_other_weights_beside_a_model_are_pinned(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "2_Dense").mkdir()
    found = []
    for name in ("modeling_own.py", "2_Dense/pytorch_model.bin", "2_Dense/own.py"):
        for content in ("one", "two"):
            (tmp_path / "model" / name).write_text(content)
            found.append(str(EncoderSettings(str(tmp_path / "model")).fingerprint()))
    assert len(set(found)) == len(found)
