"""Folders of sentence-transformers: what their files say is done to 1e-5, by l2v or by that library, or one line."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SENTENCES

from l2v.encoders.encoder import Encoder
from l2v.encoders.load import load_encoder
from l2v.errors import L2VError
from l2v.models.settings import EncoderSettings

library = pytest.importorskip("sentence_transformers")
TEXTS = [*SENTENCES, "A CAT in CAPITALS", " ".join(SENTENCES)]
POOLING, GENERAL, LENGTHS = "1_Pooling/config.json", "config_sentence_transformers.json", "sentence_bert_config.json"
PROMPT = {"prompts": {"q": "query: "}, "default_prompt_name": "q"}
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "as it is": {},
    "newer pooling": {POOLING: {"pooling_mode_mean_tokens": None, "pooling_mode": "lasttoken"}},
    "first token": {POOLING: {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}},
    "with the prompt": {POOLING: {"include_prompt": True}},
    "shorter": {LENGTHS: {"max_seq_length": 9}},
    "no length": {LENGTHS: {"max_seq_length": None}},
    "a prompt that is empty": {GENERAL: {"prompts": {"q": ""}, "default_prompt_name": "q"}},
}
THEIRS: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "two poolings": ({POOLING: {"pooling_mode_max_tokens": True}}, "pooling mean[+]max"),
    "two, newer": ({POOLING: {"pooling_mode": ["cls", "mean"]}}, "pooling cls[+]mean"),
    "max": ({POOLING: {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}}, "pooling max"),
    "a default prompt": ({GENERAL: PROMPT}, "default_prompt_name=q"),
    "pooled": ({GENERAL: PROMPT, POOLING: {"include_prompt": True}}, "default_prompt_name=q"),
    "a setting of the model": ({LENGTHS: {"config_args": {"is_causal": False}}}, "config_args={'is_causal': False}"),
    "a setting of the tokenizer": (
        {LENGTHS: {"tokenizer_args": {"padding_side": "left"}}},
        "tokenizer_args={'padding_side': 'left'}",
    ),
    "lower case": ({LENGTHS: {"do_lower_case": True}}, "do_lower_case=true"),
    "fewer dimensions": ({GENERAL: {"truncate_dim": 8}}, "truncate_dim=8"),
}


@pytest.fixture(scope="module")
def saved(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the library, which says nothing of l2v."""
    folder = tmp_path_factory.mktemp("library") / "plain"
    Encoder.from_pretrained(tiny_model, device="cpu").save(folder)
    (folder / "l2v.json").unlink()
    return folder


def changed(saved: Path, folder: Path, files: dict[str, dict[str, Any]]) -> Path:
    shutil.copytree(saved, folder)
    for name, settings in files.items():
        before = json.loads((folder / name).read_text())
        after = {key: value for key, value in (before | settings).items() if value is not None}
        (folder / name).write_text(json.dumps(after))
    return folder


def theirs(folder: Path) -> np.ndarray:
    vectors: np.ndarray = library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    return vectors


@pytest.mark.parametrize("name", OWN)
def test_what_l2v_does_itself(saved: Path, tmp_path: Path, name: str) -> None:
    folder = changed(saved, tmp_path / "folder", OWN[name])
    assert np.abs(Encoder.from_pretrained(folder, device="cpu").encode(TEXTS) - theirs(folder)).max() < 1e-5


@pytest.mark.parametrize("name", THEIRS)
def test_what_the_library_does(saved: Path, tmp_path: Path, name: str) -> None:
    files, told = THEIRS[name]
    folder = changed(saved, tmp_path / "folder", files)
    wanted = theirs(folder)
    encoder = load_encoder(EncoderSettings(str(folder)), device="cpu")
    found = encoder.encode(TEXTS)
    assert found.shape == wanted.shape == (len(TEXTS), encoder.dimension) and np.abs(found - wanted).max() < 1e-5
    with pytest.raises(
        L2VError, match=rf"{told}: what l2v does not do; library=sentence-transformers loads it"
    ) as error:
        Encoder.from_pretrained(folder, device="cpu")
    assert "\n" not in str(error.value)


def test_vectors_of_length_one_stay_so(saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "folder", {})
    modules = json.loads((folder / "modules.json").read_text())
    kind = "sentence_transformers.models.Normalize"
    (folder / "modules.json").write_text(json.dumps([*modules, {"idx": 2, "name": "2", "path": "2_N", "type": kind}]))
    (folder / "2_N").mkdir()
    encoder = Encoder.from_pretrained(folder, device="cpu")
    assert np.abs(encoder.encode(TEXTS) - theirs(folder)).max() < 1e-5
    assert np.allclose(np.linalg.norm(encoder.encode(TEXTS), axis=1), 1)
    encoder.save(tmp_path / "again")
    again = Encoder.from_pretrained(tmp_path / "again", device="cpu").encode(TEXTS)
    assert np.abs(again - theirs(tmp_path / "again")).max() < 1e-5 and np.abs(again - theirs(folder)).max() < 1e-5


def test_prompts_are_pooled_as_the_folder_says(saved: Path, tmp_path: Path) -> None:
    for pooled in (True, False):
        folder = changed(saved, tmp_path / str(pooled), {POOLING: {"include_prompt": pooled}})
        model = library.SentenceTransformer(str(folder), device="cpu")
        encoder = Encoder.from_pretrained(folder, device="cpu")
        wanted = model.encode(TEXTS, prompt="Find the same:\n")
        assert np.abs(encoder.encode(TEXTS, instruction="Find the same") - wanted).max() < 1e-5


@pytest.fixture
def adapted(tmp_path: Path, tiny_model: Path) -> Path:
    """An adapter on a causal model, as the library saves one: settings of its own beside it, and no config.json."""
    peft = pytest.importorskip("peft")
    base = tmp_path / "base"
    Encoder.from_pretrained(tiny_model, attention="causal", device="cpu").save(base)
    for name in ("l2v.json", "modules.json", *(GENERAL, LENGTHS, POOLING)):
        (base / name).unlink()
    modules = importlib.import_module("sentence_transformers.models")
    model = library.SentenceTransformer(
        modules=[
            modules.Transformer(str(base), max_seq_length=9),
            modules.Pooling(32, "lasttoken"),
            modules.Normalize(),
        ],
        device="cpu",
    )
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(str(tmp_path / "adapter"))
    assert not (tmp_path / "adapter" / "config.json").exists()
    return tmp_path / "adapter"


def test_an_adapter_that_the_library_saved(adapted: Path, tmp_path: Path) -> None:
    for encoder in (Encoder.from_pretrained(adapted, device="cpu"), load_encoder(EncoderSettings(str(adapted)))):
        assert isinstance(encoder, Encoder)
        assert np.abs(encoder.encode(TEXTS) - theirs(adapted)).max() < 1e-5
    assert (encoder.pooling, encoder.max_length, encoder.backbone.attention) == ("last_token", 9, "causal")
    for name in (LENGTHS, "tokenizer_config.json"):
        (adapted / name).unlink()
    positions = json.loads((adapted.parent / "base" / "config.json").read_text())["max_position_embeddings"]
    assert Encoder.from_pretrained(adapted, device="cpu").max_length == positions


def test_an_adapter_of_the_library_with_what_l2v_does_not_do(adapted: Path) -> None:
    file = adapted / GENERAL
    file.write_text(json.dumps(json.loads(file.read_text()) | PROMPT))
    assert np.abs(load_encoder(EncoderSettings(str(adapted))).encode(TEXTS) - theirs(adapted)).max() < 1e-5


def test_code_that_came_with_a_folder_is_not_run(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = changed(saved, tmp_path / "folder", {})
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {**modules[1], "idx": 2, "type": "custom_thing.Evil"}]))
    (folder / "custom_thing.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(folder)
    with pytest.raises(L2VError, match="its modules.json names custom_thing.Evil, code that may have come with it"):
        load_encoder(EncoderSettings(str(folder)), device="cpu")
    assert not (tmp_path / "ran").exists()
