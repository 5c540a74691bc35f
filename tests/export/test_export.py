"""What is written of a run for others: weights, an adapter, a card, ONNX; and what they read."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from launch import ROOT, Tiny, composed
from safetensors.torch import load_file, save_file
from tiny import SENTENCES, make_tiny_decoder, make_tiny_model
from transformers import AutoModel, AutoTokenizer

from l2v import Encoder
from l2v.cli.export import _folder, main
from l2v.errors import L2VError
from l2v.export.export import Export, Merge, export
from l2v.export.merging import blend, stack_adapters
from l2v.models.adapters import Lora
from l2v.models.backbone import Backbone
from l2v.models.settings import EncoderSettings
from l2v.pooling import POOLINGS
from l2v.runs.hashes import folder_hash
from l2v.runs.lineage import Lineage, lineage_base
from l2v.runs.run import Run

WARM = ["stage.max_steps=3", "stage.learning_rate=0.05"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Run, Run]:
    """An MNTP run, and a SimCSE run on it."""
    with pytest.MonkeyPatch.context() as patch:
        tiny = Tiny(tmp_path_factory.mktemp("runs"), tiny_model, patch)
        first = tiny.train("mntp", "mntp", *WARM, "model.template='[ {text} ]'")
        second = tiny.train("simcse", "simcse", *WARM, f"init_from={first}", "model.template='[ {text} ]'")
    return Run(first), Run(second)


def vectors(source: str | Path, **settings) -> np.ndarray:
    return Encoder.from_pretrained(source, device="cpu", **settings).encode(SENTENCES)


def test_a_run_is_put_together_from_its_parts(runs: tuple[Run, Run], tmp_path: Path) -> None:
    _, run = runs
    export(run, tmp_path / "out")
    np.testing.assert_allclose(vectors(tmp_path / "out"), vectors(run.folder), atol=1e-5)
    assert Encoder.from_pretrained(tmp_path / "out", device="cpu").prompt.template == "[ {text} ]"


def test_merged_in_order_is_as_unmerged(runs: tuple[Run, Run], tiny_model: Path) -> None:
    _, run = runs
    [merged] = run.lineage().merged
    unmerged = Backbone.load(str(tiny_model), merge=[run.folder / merged.path])
    unmerged.load_adapter(run.adapter)
    encoder = Encoder.with_settings(unmerged, {"template": "[ {text} ]", "max_length": 32})
    difference = np.abs(encoder.encode(SENTENCES) - vectors(run.folder)).max()
    assert difference < 1e-5 < np.abs(vectors(run.folder) - vectors(tiny_model, template="[ {text} ]")).max()


def test_the_lineage_of_an_export_leads_to_the_run(runs: tuple[Run, Run], tmp_path: Path, tiny_model: Path) -> None:
    _, run = runs
    export(run, tmp_path / "deep" / "out", Export(merge=Merge(base_ratio=0.25)))
    lineage = Lineage.read(tmp_path / "deep" / "out" / "lineage.json")
    assert lineage.base_ratio == 0.25 and lineage.adapter is not None
    for record in (*lineage.merged, lineage.adapter):
        assert folder_hash(tmp_path / "deep" / "out" / record.path) == record.hash
    assert lineage_base(lineage, tmp_path / "deep" / "out").path == str(tiny_model)


def test_base_weights_are_mixed_back_in(runs: tuple[Run, Run], tmp_path: Path, tiny_model: Path) -> None:
    _, run = runs
    adapted = dict(export(run, tmp_path / "0").backbone.decoder.named_parameters())
    half = dict(export(run, tmp_path / "half", Export(merge=Merge(0.5))).backbone.decoder.named_parameters())
    base = dict(Backbone.load(str(tiny_model)).decoder.named_parameters())
    assert max((adapted[name] - base[name]).abs().max() for name in base) > 1e-3
    for name in base:
        torch.testing.assert_close(half[name], (adapted[name] + base[name]) / 2)
    np.testing.assert_allclose(
        export(run, tmp_path / "1", Export(merge=Merge(1.0))).encode(SENTENCES),
        vectors(tiny_model, template="[ {text} ]"),
        atol=1e-5,
    )


@pytest.fixture(scope="module")
def seeds(runs: tuple[Run, Run], tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> list[Run]:
    """Two more runs of the second stage, of other seeds, and one that is used otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        tiny = Tiny(tmp_path_factory.mktemp("seeds"), tiny_model, patch)
        given = [*WARM, f"init_from={runs[0].folder}", "model.template='[ {text} ]'"]
        made = [tiny.train(f"seed-{seed}", "simcse", *given, f"seed={seed}") for seed in (1, 2)]
        made.append(tiny.train("last", "simcse", *given, "model.pooling=last_token"))
    return [Run(folder) for folder in made]


def decoder_of(encoder: Encoder) -> dict[str, torch.Tensor]:
    return dict(encoder.backbone.decoder.named_parameters())


def test_runs_are_averaged(runs: tuple[Run, Run], seeds: list[Run], tmp_path: Path) -> None:
    mine = decoder_of(export(runs[1], tmp_path / "mine"))
    others = [decoder_of(export(run, tmp_path / run.folder.name)) for run in seeds[:2]]
    paths = tuple(str(run.folder) for run in seeds[:2])
    found = decoder_of(export(runs[1], tmp_path / "out", Export(merge=Merge(runs=paths))))
    weighted = export(runs[1], tmp_path / "weighted", Export(merge=Merge(runs=paths, weights=(2.0, 1.0, 5.0))))
    assert max((mine[name] - others[0][name]).abs().max() for name in mine) > 1e-3
    for name in mine:
        torch.testing.assert_close(found[name], (mine[name] + others[0][name] + others[1][name]) / 3)
        expected = (2 * mine[name] + others[0][name] + 5 * others[1][name]) / 8
        torch.testing.assert_close(decoder_of(weighted)[name], expected)
    lineage = Lineage.read(tmp_path / "weighted" / "lineage.json")
    assert [(one["run"], one["share"], one["method"]) for one in lineage.others] == [
        ("seed-1", 0.125, "average"),
        ("seed-2", 0.625, "average"),
    ]
    assert [one["hash"] for one in lineage.others] == [folder_hash(run.adapter) for run in seeds[:2]]
    card = (tmp_path / "weighted" / "README.md").read_text()
    assert "Weights of other runs are merged with them (average); the share of these is 0.25." in card
    assert "| `seed-2` | 0.625 |" in card
    np.testing.assert_allclose(vectors(tmp_path / "weighted"), weighted.encode(SENTENCES), atol=1e-6)


@pytest.mark.slow
def test_runs_are_merged_along_the_arc(runs: tuple[Run, Run], seeds: list[Run], tmp_path: Path) -> None:
    mine, other = (decoder_of(export(run, tmp_path / run.folder.name)) for run in (runs[1], seeds[0]))
    merge = Merge(runs=(str(seeds[0].folder),), weights=(3.0, 1.0), method="slerp")
    found = decoder_of(export(runs[1], tmp_path / "out", Export(merge=merge)))
    for name, a in mine.items():
        b = other[name]
        angle = torch.arccos((a.double() * b).sum() / a.double().norm() / b.double().norm()).item()
        if angle < 1e-4:  # norms, which nothing trains
            torch.testing.assert_close(found[name], a)
            continue
        expected = (np.sin(0.75 * angle) * a + np.sin(0.25 * angle) * b) / np.sin(angle)
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5)


def test_right_angles_keep_their_length() -> None:
    a, b = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    a.weight.data, b.weight.data = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    blend(a, b, 0.5, what="b", method="slerp")
    torch.testing.assert_close(a.weight.data, torch.full((1, 2), 2**-0.5))


def test_what_cannot_be_merged_is_told(runs: tuple[Run, Run], seeds: list[Run], tmp_path: Path) -> None:
    for overrides, message in (
        ([f"merge.runs=[{seeds[2].folder}]"], "its encoder is used otherwise: pooling=last_token instead of mean"),
        (["merge.runs=[nowhere]"], "merge.runs=nowhere: no such folder"),
        ([f"merge.runs=[{seeds[0].folder}]", "merge.weights=[1]"], r"merge.weights: expected 2, .* found 1"),
        ([f"merge.runs=[{seeds[0].folder}]", "merge.weights=[1,0]"], "merge.weights=.*greater than 0"),
        ([f"merge.runs=[{seeds[0].folder}]", "merge.method=ties"], "merge.method=ties: .*'average' or 'slerp'"),
        ([f"merge.runs=[{seeds[0].folder}]", "form=adapter"], "merged runs have no adapter in common"),
    ):
        with pytest.raises(L2VError, match=message):
            main(composed("export", [f"run={runs[1].folder}", f"output={tmp_path / 'out'}", *overrides]))
    assert not (tmp_path / "out").exists()


def test_a_fully_trained_run_is_mixed_with_its_original_model(tmp_path: Path, tiny_model: Path, monkeypatch) -> None:
    tiny = Tiny(tmp_path, tiny_model, monkeypatch)
    run = Run(tiny.train("full", "mntp", *WARM, "adapter=none"))
    base = dict(Backbone.load(str(tiny_model)).decoder.named_parameters())
    trained = dict(Backbone.load(str(run.encoder)).decoder.named_parameters())
    half = dict(export(run, tmp_path / "half", Export(merge=Merge(0.5))).backbone.decoder.named_parameters())
    for name in base:
        torch.testing.assert_close(half[name], (trained[name] + base[name]) / 2)


def test_weights_are_written_in_the_dtype_that_was_asked_for(runs: tuple[Run, Run], tmp_path: Path) -> None:
    export(runs[1], tmp_path / "16", Export(dtype="bfloat16"))
    assert Backbone.load(str(tmp_path / "16"), dtype="bfloat16").config.dtype == torch.bfloat16
    a, b = vectors(tmp_path / "16"), vectors(runs[1].folder)
    assert np.abs(a - b).max() > 0 and np.linalg.norm(a - b) / np.linalg.norm(b) < 0.03


def test_the_command_writes_into_the_run(runs: tuple[Run, Run]) -> None:
    main(composed("export", [f"run={runs[1].folder}", "merge.base_ratio=0.5"]))
    lineage = Lineage.read(runs[1].folder / "exported-base0.5" / "lineage.json")
    assert lineage.base_ratio == 0.5


def by_transformers(folder: Path, texts: list[str] = SENTENCES, **settings: Any) -> np.ndarray:
    """Vectors of plain AutoModel for a batch, each the float32 mean over a text's tokens."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, **settings).eval()
    model.config.is_causal = False  # says what config.json says already, but for an adapter
    rows = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**rows).last_hidden_state.float()
    mask = rows.attention_mask[..., None]
    return ((states * mask).sum(1) / mask.sum(1)).numpy()


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Run:
    """MNTP, SimCSE on it, supervised training that goes on with SimCSE's adapter; with scores."""
    with pytest.MonkeyPatch.context() as patch:
        tiny = Tiny(tmp_path_factory.mktemp("plain"), tiny_model, patch)
        first = tiny.train("mntp", "mntp", *WARM)
        second = tiny.train("simcse", "simcse", *WARM, f"init_from={first}")
        third = tiny.train("sup", "supervised", *WARM, f"init_from={second}")
    score = {"label": "News", "metric": "Spearman", "value": 0.51234, "higher_is_better": True, "details": {}}
    (third / "evaluation").mkdir()
    (third / "evaluation" / "demo.json").write_text(json.dumps({"suite": "demo", "scores": {"news": score}}))
    return Run(third)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_plain_transformers_gives_the_same_vectors(
    plain_run: Run, tmp_path: Path, dtype: Any, attn_implementation: Any
) -> None:
    export(plain_run, tmp_path / "out", Export(dtype=dtype))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["is_causal"] is False and config["dtype"] == dtype
    settings = {"dtype": dtype, "attn_implementation": attn_implementation}
    encoder = Encoder.from_pretrained(tmp_path / "out", device="cpu", **settings)
    model = AutoModel.from_pretrained(tmp_path / "out", **settings)
    assert model.config.is_causal is False
    # in 16 bits a batch of other shape rounds otherwise, here as in the encoder
    for texts in [SENTENCES] if dtype == "float32" else [[text] for text in SENTENCES[:3]]:
        theirs = by_transformers(tmp_path / "out", texts, **settings)
        np.testing.assert_allclose(theirs, encoder.encode(texts), atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("bos", [False, True])
def test_sentence_transformers_gives_the_same_vectors(tmp_path: Path, pooling: Any, bos: bool) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    encoder = Encoder.from_pretrained(make_tiny_model(tmp_path / "model", bos=bos), pooling=pooling, device="cpu")
    encoder.save(tmp_path / "out", prompts={"query": "Given a question, retrieve its answer"})
    model = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert model.similarity_fn_name == "cosine"
    np.testing.assert_allclose(model.encode_document(SENTENCES), encoder.encode(SENTENCES), atol=1e-5)
    assert model.prompts["STSBenchmark"] == "Retrieve semantically similar text:\n"
    assert model.prompts["SciFact-query"].endswith("refute the claim:\n") and "SciFact" not in model.prompts
    theirs = model.encode_query([*SENTENCES, "cat"])
    ours = encoder.encode([*SENTENCES, "cat"], instruction="Given a question, retrieve its answer")
    equal = bool(np.abs(theirs - ours).max() < 1e-5)
    assert equal is (pooling != "weighted_mean")  # which is told when it is saved


def test_an_adapter_holds_all_of_the_lineage(plain_run: Run, tmp_path: Path, tiny_model: Path) -> None:
    encoder = export(plain_run, tmp_path / "out", Export(form="adapter"))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (32, 32)  # those of MNTP, and of SimCSE and what went on with it
    assert config["base_model_name_or_path"] == str(tiny_model)
    assert not list((tmp_path / "out").glob("model*"))
    expected = vectors(plain_run.folder)
    np.testing.assert_allclose(encoder.encode(SENTENCES), expected, atol=1e-5)
    np.testing.assert_allclose(vectors(tmp_path / "out"), expected, atol=1e-5)
    assert Encoder.from_pretrained(tmp_path / "out", device="cpu").max_length == 32
    np.testing.assert_allclose(by_transformers(tmp_path / "out"), expected, atol=1e-5)
    lineage = Lineage.read(tmp_path / "out" / "lineage.json")
    assert lineage.adapter is not None and folder_hash(plain_run.adapter) == lineage.adapter.hash


def test_sentence_transformers_loads_an_adapter_with_the_right_attention_or_not_at_all(
    plain_run: Run, tmp_path: Path
) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    export(plain_run, tmp_path / "out", Export(form="adapter"))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    model = library.SentenceTransformer(str(tmp_path / "out"), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(model.encode(SENTENCES), vectors(plain_run.folder), atol=1e-5)


def test_a_causal_adapter_needs_no_class_of_l2v(tmp_path: Path, tiny_model: Path, monkeypatch) -> None:
    tiny = Tiny(tmp_path, tiny_model, monkeypatch)
    run = Run(tiny.train("causal", "simcse", *WARM, "model.attention=causal"))
    export(run, tmp_path / "out", Export(form="adapter"))
    assert "l2v" not in (tmp_path / "out" / "modules.json").read_text()
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    model = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(model.encode(SENTENCES), vectors(run.folder), atol=1e-5)


def lora(folder: Path, base: Path, seed: int, rank: int, targets: list[str]) -> Path:
    """A random adapter."""
    backbone = Backbone.load(str(base))
    backbone.add_adapter(Lora(rank=rank, alpha=3 * rank, dropout=0.0, target_modules=targets))
    torch.manual_seed(seed)
    for name, parameter in backbone.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    backbone.save_adapter(folder)
    return folder


def change(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))


def test_adapters_of_other_ranks_scales_and_modules_add_up(tmp_path: Path, tiny_model: Path) -> None:
    first = lora(tmp_path / "1", tiny_model, 1, 4, ["q_proj", "v_proj"])
    second = lora(tmp_path / "2", tiny_model, 2, 3, ["v_proj", "down_proj"])
    change(first, use_rslora=True)  # a scale of alpha / sqrt(rank)
    (tmp_path / "both").mkdir()
    stack_adapters([first, second], tmp_path / "both")
    one = Encoder(Backbone.load(str(tiny_model), merge=[first, second])).encode(SENTENCES)
    both = Encoder(Backbone.load(str(tiny_model), merge=[tmp_path / "both"])).encode(SENTENCES)
    np.testing.assert_allclose(both, one, atol=1e-5)
    assert np.abs(Encoder(Backbone.load(str(tiny_model), merge=[second])).encode(SENTENCES) - one).max() > 1e-2


@pytest.mark.parametrize("odd", ["use_dora", "bias", "rank_pattern", "lora_embedding_A"])
def test_adapters_that_are_more_than_plain_lora_do_not_add_up(tmp_path: Path, tiny_model: Path, odd: str) -> None:
    folders = [lora(tmp_path / str(n), tiny_model, n, 2, ["q_proj"]) for n in (1, 2)]
    if odd == "lora_embedding_A":
        weights = load_file(folders[0] / "adapter_model.safetensors")
        save_file(
            weights | {"embed_tokens.lora_embedding_A": torch.zeros(2, 2)}, folders[0] / "adapter_model.safetensors"
        )
    else:
        change(folders[0], **{odd: {"use_dora": True, "bias": "all", "rank_pattern": {"q_proj": 1}}[odd]})
    with pytest.raises(L2VError, match=f"more than plain LoRA .*{odd}.*choose form=merged"):
        stack_adapters(folders, tmp_path)


def test_what_an_adapter_cannot_be_is_refused(
    runs: tuple[Run, Run], tmp_path: Path, tiny_model: Path, monkeypatch
) -> None:
    for wanted in (Export(form="adapter", dtype="bfloat16"), Export(form="adapter", merge=Merge(0.5))):
        with pytest.raises(L2VError, match="form=adapter leaves the base as it is"):
            export(runs[1], tmp_path / "out", wanted)
    run = Run(Tiny(tmp_path, tiny_model, monkeypatch).train("full", "mntp", *WARM, "adapter=none"))
    with pytest.raises(L2VError, match="it trained all weights; choose form=merged"):
        export(run, tmp_path / "out", Export(form="adapter"))


def test_the_card_tells_lineage_data_settings_and_scores(plain_run: Run, tmp_path: Path) -> None:
    export(plain_run, tmp_path / "out", Export(prompts={"query": "Find"}))
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "sentence-transformers" and front["pipeline_tag"] == "sentence-similarity"
    assert "base_model" not in front and "license" not in front  # a local base; nobody said
    lineage = plain_run.lineage()
    assert lineage.adapter is not None and lineage.initial is not None
    for found in (lineage.base_hash, lineage.merged[0].hash, lineage.initial.hash, lineage.adapter.hash):
        assert f"`{found}`" in text
    places = [text.index(f"### {stage}") for stage in ("mntp", "simcse", "supervised")]
    assert places == sorted(places)
    assert "max_steps=3" in text and "files=train.txt" in text and "lora.rank=16" in text
    assert "| demo | News | Spearman | 0.5123 |" in text
    assert str(tmp_path) not in text and str(plain_run.folder.parent.parent) not in text
    prompts = json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())["prompts"]
    assert prompts["query"] == "Find:\n" and prompts["document"] == ""


def test_the_card_does_not_invent_what_is_gone(plain_run: Run, tmp_path: Path) -> None:
    shutil.copytree(plain_run.folder, tmp_path / "runs" / "moved")
    config = yaml.safe_load((plain_run.folder / "config.yaml").read_text())
    (tmp_path / "runs" / "moved" / "config.yaml").write_text(yaml.safe_dump(config | {"init_from": "runs/gone"}))
    base = Path(plain_run.lineage().base)
    lineage = json.loads((plain_run.folder / "lineage.json").read_text())
    lineage["base"] = str((plain_run.folder / base).resolve())
    (tmp_path / "runs" / "moved" / "lineage.json").write_text(json.dumps(lineage))
    export(Run(tmp_path / "runs" / "moved"), tmp_path / "out", Export(dtype="bfloat16"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "### mntp\n\nData and settings are not known here" in text
    assert "These are the scores of the run's own encoder" in text


class FakeHub:
    """Stands for huggingface_hub.HfApi."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error = error

    def __call__(self) -> "FakeHub":
        return self

    def whoami(self) -> dict[str, Any]:
        if self.error:
            raise self.error
        return {"name": "me"}

    def create_repo(self, repository: str, **settings: Any) -> str:
        self.calls.append(("create", {"repo_id": repository, **settings}))
        return f"https://hub/{repository}"

    of_before = ("adapter_config.json", "adapter_model.safetensors", "model-00001-of-00002.safetensors", "l2v.json")
    of_the_user = ("LICENSE", "README.md", "picture.png", "own/notes.json", "own/onnx/model.onnx")

    def list_repo_files(self, repository: str) -> list[str]:
        return [*self.of_before, *self.of_the_user]

    def upload_folder(self, **settings: Any) -> None:
        assert (Path(settings["folder_path"]) / "model.safetensors").exists()
        self.calls.append(("upload", settings))


def test_what_a_run_ended_with_is_not_replaced(plain_run: Run) -> None:
    before = folder_hash(plain_run.encoder)
    with pytest.raises(L2VError, match="encoder: the run in .* ended with it; name another folder"):
        main(composed("export", [f"run={plain_run.folder}", f"output={plain_run.encoder}"]))
    assert folder_hash(plain_run.encoder) == before


def test_it_is_pushed_only_when_that_is_asked_for(plain_run: Run, tmp_path: Path, monkeypatch) -> None:
    hub = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    given = [f"run={plain_run.folder}", f"output={tmp_path / 'out'}"]
    main(composed("export", given))
    assert hub.calls == []
    main(composed("export", [*given, "push=me/my-encoder"]))
    assert hub.calls[0] == ("create", {"repo_id": "me/my-encoder", "private": True, "exist_ok": True})
    assert [name for name, _ in hub.calls] == ["create", "upload"]
    assert (hub.calls[1][1]["repo_id"], hub.calls[1][1]["folder_path"]) == ("me/my-encoder", tmp_path / "out")
    assert hub.calls[1][1]["delete_patterns"] == list(FakeHub.of_before)
    assert 'SentenceTransformer("me/my-encoder")' in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "token", "error", "message"),
    [
        (["push=me/mine"], None, None, "no token for the hub; log in with `hf auth login`"),
        (["push=mine"], "t", None, "push=mine: expected <owner>/<name>"),
        (["push=a/b/c"], "t", None, "push=a/b/c: .*expected <owner>/<name>"),
        (["push=me/mine"], "t", OSError("no network"), "push=me/mine: the hub cannot be written to \\(no network"),
        (["push=me/mine", "form=adapter"], "t", None, "others do not have the base .*choose form=merged"),
    ],
)
def test_what_cannot_be_pushed_is_told_before_anything_is_made(
    plain_run: Run, tmp_path: Path, monkeypatch, overrides: list[str], token: str | None, error: Any, message: str
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub(error))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    monkeypatch.setattr(Backbone, "load", lambda *given, **settings: pytest.fail("a model was loaded"))
    with pytest.raises(L2VError, match=message) as raised:
        main(composed("export", [f"run={plain_run.folder}", f"output={tmp_path / 'out'}", *overrides]))
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_onnx_without_its_packages_is_one_line(plain_run: Run, tmp_path: Path, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if "onnx" in name else find(name, *more))
    with pytest.raises(
        L2VError, match=r"onnx=true: onnx, onnxscript, onnxruntime are not installed; `pip install 'l2v\[onnx\]'`"
    ):
        export(plain_run, tmp_path / "out", Export(onnx=True))


@pytest.mark.slow
def test_onnx_attends_both_ways_and_ignores_padding(plain_run: Run, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the extra: pip install 'l2v[onnx]'")
    from l2v.export.onnx import run_onnx

    encoder = export(plain_run, tmp_path / "out", Export(onnx=True))
    file = tmp_path / "out" / "onnx" / "model.onnx"
    rows = encoder.backbone.tokenizer(SENTENCES, padding=True, return_tensors="np")
    ids, mask = rows["input_ids"].astype(np.int64), rows["attention_mask"].astype(np.int64)
    states = run_onnx(file, ids, mask)
    means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    np.testing.assert_allclose(means, vectors(plain_run.folder), atol=1e-4)
    alone = run_onnx(file, ids[:1, : mask[0].sum()], mask[:1, : mask[0].sum()])
    np.testing.assert_allclose(alone[0], states[0, : mask[0].sum()], atol=1e-4)
    ids[0, mask[0].sum() - 1] += 7
    assert np.abs(run_onnx(file, ids, mask)[0, 0] - states[0, 0]).max() > 1e-2
    assert "onnx/model.onnx" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_onnx_with_other_vectors_is_not_kept(plain_run: Run, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra: pip install 'l2v[onnx]'")
    from l2v.export import onnx

    monkeypatch.setattr(onnx, "run_onnx", lambda file, ids, mask: np.ones((*ids.shape, 32), dtype=np.float32))
    with pytest.raises(L2VError, match="onnxruntime gives other vectors"):
        export(plain_run, tmp_path / "out", Export(onnx=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_help_into_a_pipe_that_nobody_reads_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "l2v.cli.export", "--help"],
        cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(write)
    assert done.stderr == ""


def test_models_of_other_shapes_are_not_blended() -> None:
    with pytest.raises(L2VError, match="have not the same shapes"):
        blend(make_tiny_decoder(), make_tiny_decoder(hidden_size=64), 0.5, what="merge.base_ratio")


MISTAKES = [
    (["merge.base_ratio=1.5"], "merge.base_ratio=1.5: .*less than or equal to 1"),
    (["+merge.ratio=0.5"], "merge.ratio: no such setting"),
    (["dtype=float8"], "dtype=float8: expected one of float32, bfloat16, float16"),
    (["form=sliced"], "form=sliced: expected one of merged, adapter"),
    (["onnx=maybe"], "onnx=maybe: "),
    (["onnx=true", "dtype=bfloat16"], "onnx=true: expected dtype=float32 and form=merged"),
    (["run=nowhere"], "run=nowhere: no such folder"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=[mistake[0][0] for mistake in MISTAKES])
def test_a_mistake_is_told_before_anything_is_loaded(runs, overrides: list[str], message: str) -> None:
    with pytest.raises(L2VError, match=message):
        main(composed("export", [f"run={runs[1].folder}", *overrides]))


def test_two_ways_to_export_a_run_write_two_folders(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")

    def folder(merge: Merge | None = None, prompts: dict[str, str] | None = None, **encoder: Any) -> Path:
        settings = EncoderSettings(str(run.folder), **encoder)
        return _folder(run, Export(merge=merge or Merge(), prompts=prompts or {}, encoder=settings))

    folders = [
        folder(),
        folder(dtype="bfloat16"),
        folder(pooling="last_token"),
        folder(max_length=128),
        folder(template="chat"),
        folder(template="{text}!"),
        folder(prompts={"query": "Find it"}),
        folder(merge=Merge(runs=("a",))),
        folder(merge=Merge(runs=("b",))),
        folder(merge=Merge(runs=("b",), weights=(1, 2))),
        folder(merge=Merge(base_ratio=0.5)),
    ]
    assert folders[:4] == [
        run.folder / name
        for name in ("exported", "exported-bfloat16", "exported-last_token", "exported-max_length-128")
    ]
    assert len(set(folders)) == len(folders) and {place.parent for place in folders} == {run.folder}


def test_a_folder_with_something_else_in_it_is_left_alone(runs: tuple[Run, Run], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(L2VError, match="the folder exists and holds no encoder; name another one"):
        main(composed("export", [f"run={runs[1].folder}", f"output={tmp_path}"]))


def test_an_unfinished_run_is_refused(runs: tuple[Run, Run], tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.update(**runs[1].record() | {"status": "stopped"})
    with pytest.raises(L2VError, match="the run is not finished; go on with it first"):
        export(run, tmp_path / "out")
