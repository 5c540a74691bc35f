"""The word stage: a probe on states that are computed once."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import SignalAt, Tiny, assert_same_training, checkpoint
from tiny import SENTENCES, make_tiny_model, make_tiny_tokenizer
from transformers import BertConfig, BertModel

from l2v import config as configs
from l2v.errors import L2VError, Stopped
from l2v.models.backbone import Backbone
from l2v.probing import states as states_module
from l2v.probing.alignment import align
from l2v.probing.stage import LinearProbe, WordProbe, load_probe
from l2v.probing.states import FrozenModel, States, compute_states
from l2v.runs.run import Run

TAGS = {"cat": "I-PET", "dog": "I-PET", "mat": "I-THING", "house": "I-THING", "sentence": "I-THING"}

LEARNS = ["stage.max_steps=300", "stage.validate_every=300", "stage.dropout=0", "stage.normalize=true"]


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """With labelled words: what a word is labelled with can be told from its token."""
    monkeypatch.setenv("L2V_CACHE", str(tmp_path / "cache"))
    for part, shift in (("train", 0), ("validation", 1), ("test", 2)):
        sentences = SENTENCES[shift:] + SENTENCES[:shift]
        lines = [[f"{w} {w[0].upper()} {TAGS.get(w, 'O')}" for w in s.replace(",", " ,").split()] for s in sentences]
        (tmp_path / f"{part}.conll").write_text("\n\n".join("\n".join(rows) for rows in lines) + "\n")
    return Tiny(tmp_path, tiny_model, monkeypatch)


def overrides(tiny: Tiny, *more: str, task: str = "ner") -> list[str]:
    settings = [o for o in tiny.overrides("word") if not o.startswith("data")]
    files = [f"data.{part}.files={tiny.folder / part}.conll" for part in ("train", "validation", "test")]
    columns = "data.train.columns={word: 0, pos: 1, ner: 2}"
    return [*settings, f"task={task}", "data=conll", columns, *files, "stage.max_steps=20", *more]


def probe(tiny: Tiny, name: str, *more: str, task: str = "ner", callbacks: Any = None) -> Path:
    tiny.main([*overrides(tiny, *more, task=task), f"name={name}"], callbacks)
    return tiny.folder / "runs" / name


def result(run: Path, task: str = "ner") -> dict[str, Any]:
    return json.loads((run / "evaluation" / f"{task}.json").read_text())


def test_a_probe_learns_and_its_run_holds_scores_and_weights(tiny: Tiny) -> None:
    run = probe(tiny, "ner", *LEARNS)
    scores = result(run)
    words = sum(len(s.replace(",", " ,").split()) for s in SENTENCES)
    for part in ("validation", "test"):  # every labelled word is scored, once
        assert scores["words"]["scores"][part]["words"] == words
        assert sum(map(sum, scores["words"]["scores"][part]["confusion"])) == words
    assert scores["scores"]["ner_f1"]["value"] > 0.8 and scores["scores"]["ner_accuracy"]["value"] > 0.9
    assert scores["words"]["scores"]["test"]["labels"] == ["B-PET", "B-THING", "O"]
    assert scores["words"]["shift"] == "same_token" and scores["words"]["layer"] == 2
    record = Run(run).record()
    assert record["status"] == "finished" and record["proof"]["attention"] == "bidirectional"
    assert not (run / "encoder").exists() and not (run / "adapter").exists()
    (loaded,), settings = load_probe(run / "probe")
    weights = checkpoint(run)["state_dict"]
    assert torch.equal(loaded.classifier.weight, weights["probes.0.classifier.weight"])
    assert settings.labels == ["B-PET", "B-THING", "O"] and settings.layers == [2]


@pytest.mark.slow
def test_all_tasks_and_shifts_share_one_pass(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    probe(tiny, "ner")

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(Backbone, "load", fail)
    run = probe(tiny, "pos", task="pos")
    assert result(run, "pos")["scores"].keys() == {"pos_accuracy"}
    probe(tiny, "shifted", "stage.shift=next_token", task="pos")
    with pytest.raises(AssertionError, match="loaded again"):
        probe(tiny, "causal", "model.attention=causal")


def test_stopped_and_resumed_equals_straight_through(tiny: Tiny) -> None:
    straight = probe(tiny, "straight", "stage.dropout=0.3")
    with pytest.raises(Stopped):
        probe(tiny, "stopped", "stage.dropout=0.3", callbacks=[SignalAt(13, signal.SIGTERM)])
    stopped = tiny.resume(tiny.folder / "runs" / "stopped")
    assert_same_training(straight, stopped)
    one, two = result(straight), result(stopped)
    assert one["scores"] == two["scores"] and one["words"] == two["words"]


def test_reuse_and_the_config_hash(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    run = probe(tiny, "ner", "reuse=true")
    finished = Run(run).record()["finished"]
    probe(tiny, "ner", "reuse=true")
    assert Run(run).record()["finished"] == finished and "it is reused" in capsys.readouterr().err
    (tiny.folder / "test.conll").write_text("a A O\n")
    with pytest.raises(L2VError, match="finished; choose another name"):
        probe(tiny, "ner", "reuse=true")


def test_several_layers_are_probed_as_each_would_be_alone(tiny: Tiny) -> None:
    settings = ["stage.dropout=0", "trainer.gradient_clip_val=0.1"]
    both = probe(tiny, "both", "stage.layers=[0,2]", *settings)
    by_layer = result(both)["words"]["by_layer"]
    assert [row["layer"] for row in by_layer] == [0, 2]
    weights = checkpoint(both)["state_dict"]
    # the second probe begins with other weights than a probe alone does, the first with the same
    alone = probe(tiny, "alone", "stage.layers=0", *settings)
    assert torch.equal(
        weights["probes.0.classifier.weight"], checkpoint(alone)["state_dict"]["probes.0.classifier.weight"]
    )
    assert {k: v for k, v in result(alone)["words"]["by_layer"][0].items()} == by_layer[0]


def test_a_layer_that_is_named_twice_is_probed_once(tiny: Tiny) -> None:
    """The tiny model has two."""
    found = probe(tiny, "twice", "stage.layers=[2,-1,0]")
    assert [row["layer"] for row in result(found)["words"]["by_layer"]] == [2, 0]


def test_gradients_are_clipped_as_the_trainer_says(tiny: Tiny) -> None:
    clipped = [f"trainer.gradient_clip_val={1e-12}", "+trainer.gradient_clip_algorithm=value", "stage.max_steps=1"]
    by_value, by_norm = probe(tiny, "value", *clipped), probe(tiny, "norm", *clipped[:1], *clipped[2:])
    by_value, by_norm = (checkpoint(run)["state_dict"]["probes.0.classifier.weight"] for run in (by_value, by_norm))
    assert not torch.equal(by_value, by_norm)


def test_a_learned_mix_weights_its_layers(tiny: Tiny) -> None:
    run = probe(tiny, "mix", "stage.layers=all", "stage.mix=true", "stage.normalize=true")
    words = result(run)["words"]
    assert words["layer"] == "mix" and words["mix"].keys() == {"0", "1", "2"}
    assert sum(words["mix"].values()) == pytest.approx(1) and len(set(words["mix"].values())) == 3
    mixed = LinearProbe(4, 2, mixed=3)
    torch.nn.init.normal_(mixed.mix)
    vectors = torch.randn(3, 5, 4)
    expected = sum(w * v for w, v in zip(mixed.mix.softmax(0), vectors, strict=True))
    assert torch.allclose(mixed(vectors), mixed.classifier(expected), atol=1e-6)


def test_the_shift_follows_the_lineage(tiny: Tiny) -> None:
    texts = [
        f"data.{part}.files={tiny.folder / name}.txt" for part, name in (("train", "train"), ("validation", "held_out"))
    ]
    tiny.main([*tiny.overrides("mntp", "stage.max_steps=1"), *texts, "name=mntp"])
    run = probe(tiny, "probe", f"init_from={tiny.folder / 'runs' / 'mntp'}")
    assert result(run)["words"]["shift"] == "next_token"
    assert [record.stage for record in Run(run).lineage().merged] == ["mntp"] and Run(run).lineage().adapter is None


# states


def frozen(folder: Path, bos: bool = False) -> FrozenModel:
    backbone = Backbone.load(str(make_tiny_model(folder, bos=bos)))
    return FrozenModel(["tiny", bos], backbone.tokenizer, 2, 64, lambda: backbone)


@pytest.mark.parametrize("bos", [True, False])
def test_states_are_those_of_each_sentence_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bos: bool) -> None:
    monkeypatch.setenv("L2V_CACHE", str(tmp_path / "cache"))
    model = frozen(tmp_path / "model", bos)
    aligned = align([s.split() for s in SENTENCES], model.tokenizer, 64)
    states = States.of(model, aligned, "float32")
    compute_states(model, [(aligned, states)], [0, 1, 2], batch_tokens=50, show=False)
    backbone = model.load()
    for row in range(len(SENTENCES)):
        begin, end = aligned.rows[row], aligned.rows[row + 1]
        ids = torch.from_numpy(aligned.ids[begin:end])[None].long()
        with torch.inference_mode():
            alone = backbone(ids, torch.ones_like(ids))[0]
            layers = backbone.decoder(input_ids=ids, output_hidden_states=True).hidden_states
        assert torch.allclose(states.open(2)[begin:end], alone, atol=1e-5)
        assert torch.allclose(states.open(1)[begin:end], layers[1][0], atol=1e-5)
        assert torch.equal(states.open(0)[begin:end], layers[0][0])


def test_the_key_changes_with_what_changes_the_states(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    model = FrozenModel(["a"], tokenizer, 2, 64, lambda: None)  # type: ignore[arg-type,return-value]
    other = FrozenModel(["b"], tokenizer, 2, 64, lambda: None)  # type: ignore[arg-type,return-value]
    words = [s.split() for s in SENTENCES]
    aligned = align(words, tokenizer, 64)
    keys = {
        "base": States.of(model, aligned, "float32").folder,
        "model": States.of(other, aligned, "float32").folder,
        "dtype": States.of(model, aligned, "float16").folder,
        "words": States.of(model, align(words[1:], tokenizer, 64), "float32").folder,
        "length": States.of(model, align(words, tokenizer, 8), "float32").folder,
        "borders": States.of(model, replace(aligned, rows=np.delete(aligned.rows, 1)), "float32").folder,
    }
    assert len(set(keys.values())) == len(keys)
    assert States.of(model, align(words, tokenizer, 64), "float32").folder == keys["base"]


def broken_off(folder: Path, monkeypatch: pytest.MonkeyPatch, layers: list[int]) -> tuple[Any, ...]:
    """A pass whose third batch was interrupted: model, tokens, states, those of a whole pass, batches."""
    monkeypatch.setenv("L2V_CACHE", str(folder / "cache"))
    model = frozen(folder / "model")
    aligned = align([s.split() for s in SENTENCES], model.tokenizer, 64)
    states = States.of(model, aligned, "float32")
    straight = States(folder / "straight", states.tokens, "float32")
    compute_states(model, [(aligned, straight)], layers, batch_tokens=50, show=False)
    runs: list[int] = []
    original = states_module.hidden_states

    def breaking(*arguments: Any) -> Any:
        runs.append(len(runs))
        if len(runs) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(states_module, "hidden_states", breaking)
    with pytest.raises(KeyboardInterrupt):
        compute_states(model, [(aligned, states)], layers, batch_tokens=50, show=False)
    assert states.missing(layers) == layers
    return model, aligned, states, straight, runs


def test_a_pass_that_broke_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, aligned, states, straight, runs = broken_off(tmp_path, monkeypatch, [1, 2])
    compute_states(model, [(aligned, states)], [1, 2], batch_tokens=50, show=False)
    batches = len(runs) - 1  # the broken one ran twice
    assert not list(states.folder.glob("draft*"))
    assert all(torch.equal(states.open(layer), straight.open(layer)) for layer in (1, 2))
    runs[:] = [0] * 10
    compute_states(model, [(aligned, straight)], [0], batch_tokens=50, show=False)
    assert len(runs) - 10 == batches  # as many as a whole pass has: none was repeated


def test_a_pass_that_broke_off_begins_anew_with_other_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, aligned, states, straight, _ = broken_off(tmp_path, monkeypatch, [1])
    compute_states(model, [(aligned, states)], [1], batch_tokens=30, show=False)
    torch.testing.assert_close(states.open(1), straight.open(1))


@pytest.mark.parametrize(
    ("task", "metric", "other"), [("ner", "f1", "paper_accuracy"), ("pos", "paper_accuracy", "words")]
)
def test_validation_chooses_the_layer_and_the_test_part_is_only_scored(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, task: str, metric: str, other: str
) -> None:
    """The layer with the best F1 of spans, where there are any, and not with the best accuracy."""
    original = WordProbe._score

    def score(self: WordProbe, probes: Any, rows: Any, part: str, show: bool) -> list[dict[str, Any]]:
        found = original(self, probes, rows, part, show)
        values = [0.9, 0.1] if part == "validation" else [0.2, 0.8]
        return [one | {metric: value, other: 1 - value} for one, value in zip(found, values, strict=True)]

    monkeypatch.setattr(WordProbe, "_score", score)
    found = result(probe(tiny, "run", "stage.layers=[0,2]", task=task), task)
    assert found["words"]["layer"] == 0
    name = f"{task}_f1" if task == "ner" else f"{task}_accuracy"
    assert found["scores"][name]["value"] == 0.2


def test_states_that_the_dtype_cannot_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L2V_CACHE", str(tmp_path / "cache"))
    model = frozen(tmp_path / "model")
    aligned = align([["a", "cat"]], model.tokenizer, 64)
    monkeypatch.setattr(states_module, "hidden_states", lambda *_: [torch.full((1, 3, 32), 1e6)] * 3)
    with pytest.raises(
        L2VError, match=r"stage\.states_dtype=float16: cannot hold the states of layer 2 \(up to 1e\+06\)"
    ):
        compute_states(model, [(aligned, States.of(model, aligned, "float16"))], [2], batch_tokens=50, show=False)


def test_a_disk_that_is_too_small_is_told_before_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L2V_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(states_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    model = frozen(tmp_path / "model")
    aligned = align([["a", "cat"]], model.tokenizer, 64)
    with pytest.raises(L2VError, match=r"GB are free; name fewer layers \(stage\.layers\)"):
        compute_states(model, [(aligned, States.of(model, aligned, "float16"))], [2], batch_tokens=50, show=False)


# encoders


def make_tiny_bert(folder: Path) -> Path:
    config = BertConfig(
        vocab_size=384, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    make_tiny_tokenizer(bos=True).save_pretrained(folder)
    return folder


def test_an_encoder_is_probed_and_not_trained(tiny: Tiny, tmp_path: Path) -> None:
    tiny.model = make_tiny_bert(tmp_path / "bert")
    run = probe(tiny, "bert", "+model.kind=encoder", *LEARNS)
    assert result(run)["scores"]["ner_f1"]["value"] > 0.4
    with pytest.raises(L2VError, match=r"an encoder \(bert\); expected a decoder"):
        probe(tiny, "decoder", task="pos")
    with pytest.raises(L2VError, match=r"model\.kind=encoder: stage=mntp makes encoders of decoders") as error:
        tiny.train("mntp", "mntp", "+model.kind=encoder")
    assert "\n" not in str(error.value)


def test_a_decoder_is_no_encoder(tiny_model: Path) -> None:
    with pytest.raises(L2VError, match=r"a decoder \(llama\); expected an encoder"):
        Backbone.load(str(tiny_model), kind="encoder")


MISTAKES = [
    (["stage=word"], "task: must be given with stage=word"),
    (["task=ner", "stage=mntp"], "data=: stage=mntp trains on texts, as data=files"),
    (["task=ner", "data=wikipedia"], "stage=word needs labelled words: data=conll2003"),
    (["task=ner", "adapter=lora"], "adapter=lora: stage=word leaves the model as it is"),
    (["task=ner", "trainer=fsdp"], "stage=word trains one linear layer, which is not sharded"),
    (["task=ner", "task.column=upos"], "task.column=upos: the data has the columns pos, chunk, ner"),
    (["task=ner", "data.folder=/no"], r"data\.folder=/no: no eng\.train"),
    (["task=ner", "stage.mix=true"], r"stage\.mix=true: needs several layers"),
    (["task=ner", "stage.layers=last"], r"stage\.layers=last"),
    (["task=ner", "stage.shift=previous"], r"stage\.shift=previous"),
    (["task=ner", "stage.dropout=1"], r"stage\.dropout=1"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES, ids=[" ".join(given) for given, _ in MISTAKES])
def test_a_wrong_setting_is_named(given: list[str], message: str) -> None:
    from launch import composed

    with pytest.raises(L2VError, match=message) as error:
        configs.build_training(configs.plain(composed("train", ["name=test", *given])))
    assert "\n" not in str(error.value)


def test_a_layer_that_is_not_there_is_told(tiny: Tiny) -> None:
    with pytest.raises(L2VError, match=r"stage\.layers=3: the model has layers 0 \(embeddings\) to 2"):
        probe(tiny, "ner", "stage.layers=3")


def test_without_a_test_part_the_validation_part_is_scored(tiny: Tiny) -> None:
    scores = result(probe(tiny, "ner", "data.test=null"))
    assert scores["words"]["part"] == "validation" and scores["scores"]["ner_f1"]["label"] == "ner F1 (validation)"


def test_a_name_says_the_task(tiny: Tiny) -> None:
    tiny.main(overrides(tiny))
    assert [run.name for run in (tiny.folder / "runs").iterdir()] == ["smollm2-135m-embedded-word-ner"]


def test_states_that_were_damaged_are_computed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L2V_CACHE", str(tmp_path / "cache"))
    model = frozen(tmp_path / "model")
    aligned = align([s.split() for s in SENTENCES], model.tokenizer, 64)
    states = States.of(model, aligned, "float32")
    compute_states(model, [(aligned, states)], [1, 2], batch_tokens=50, show=False)
    before = states.open(1).clone()
    damaged = bytearray(states.file(1).read_bytes())
    damaged[100] ^= 64
    states.file(1).write_bytes(damaged)
    assert states.missing([1, 2]) == [1]
    compute_states(model, [(aligned, states)], [1, 2], batch_tokens=50, show=False)
    assert torch.equal(states.open(1), before) and not states.missing([1, 2])
