"""Folders of sentence-transformers: what their files say is done to 1e-5, by l2v or by that library, or one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
