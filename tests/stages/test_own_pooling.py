"""A pooling with weights is trained, resumed, gone on with, exported; adapters of any kind come from a YAML file."""

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import SignalAt, Tiny, assert_equal, checkpoint, composed, script
from safetensors.torch import load_file
from tiny import SENTENCES

from l2v import Encoder
from l2v.errors import L2VError, Stopped

POOLING = """
import torch

from l2v.pooling import Pooling


class AttentionPooling(Pooling):
    def __init__(self, heads: int = 1):
        super().__init__()
        self.heads = heads

    def build(self, hidden_size):
        self.query = torch.nn.Linear(hidden_size, self.heads)

    def forward(self, hidden, pool_mask, attention_mask):
        scores = self.query(hidden.float()).masked_fill(pool_mask[..., None] == 0, -torch.inf)
        return torch.einsum("blk,blh->bh", scores.softmax(dim=1) / self.heads, hidden.float())

    def settings(self):
        return {"heads": self.heads}
"""
ADAPTERS = {
    "dora": "_target_: peft.LoraConfig\n  r: 4\n  use_dora: true\n  target_modules: all-linear\n",
    "rslora": "_target_: peft.LoraConfig\n  r: 4\n  use_rslora: true\n  target_modules: [q_proj]\n",
    "vera": "_target_: peft.VeraConfig\n  r: 4\n  target_modules: [q_proj, o_proj]\n",
    "ia3": "_target_: peft.IA3Config\n  target_modules: [k_proj, down_proj]\n  feedforward_modules: [down_proj]\n",
}
OWN = "model.pooling={_target_: my_poolings.AttentionPooling, heads: 2}"
WEIGHTS = Path("encoder") / "1_Pooling" / "pooling.safetensors"


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    (tmp_path / "my_poolings.py").write_text(POOLING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("L2V_ALLOW_MODULES", "my_poolings")
    (tmp_path / "conf" / "adapter").mkdir(parents=True)
    for name, text in ADAPTERS.items():
        (tmp_path / "conf" / "adapter" / f"{name}.yaml").write_text(f"peft:\n  {text}init: new\n")
    yield Tiny(tmp_path, tiny_model, monkeypatch)
    sys.modules.pop("my_poolings", None)


def test_its_weights_are_trained_saved_and_come_back(tiny):
    run = tiny.train("own", "simcse", OWN, "stage.max_steps=4", "stage.learning_rate=1e-2")
    names = {name for name in checkpoint(run)["state_dict"] if "pooling" in name}
    assert names == {"backbone.pooling.query.weight", "backbone.pooling.query.bias"}
    begun = tiny.train("begun", "simcse", OWN, "stage.max_steps=1", "stage.learning_rate=1e-12")
    trained, untrained = load_file(run / WEIGHTS), load_file(begun / WEIGHTS)
    assert (trained["query.weight"] - untrained["query.weight"]).abs().max() > 1e-3
    torch.testing.assert_close(trained["query.weight"], checkpoint(run)["state_dict"]["backbone.pooling.query.weight"])
    encoder = Encoder.from_pretrained(run, device="cpu")
    assert encoder.pooling.heads == 2
    mean = Encoder.from_pretrained(run, device="cpu", pooling="mean")
    assert np.abs(encoder.encode(SENTENCES) - mean.encode(SENTENCES)).max() > 1e-3


def test_a_stopped_run_goes_on_as_if_it_never_had(tiny):
    more = (OWN, "stage.max_steps=6", "stage.learning_rate=1e-2")
    straight = tiny.train("straight", "simcse", *more)
    with pytest.raises(Stopped):
        tiny.train("stopped", "simcse", *more, callbacks=[SignalAt(3, signal.SIGTERM)])
    stopped = tiny.resume(tiny.folder / "runs" / "stopped")
    assert_equal(checkpoint(straight)["state_dict"], checkpoint(stopped)["state_dict"])
    assert_equal(load_file(straight / WEIGHTS), load_file(stopped / WEIGHTS))


def test_the_next_stage_goes_on_with_it_and_mntp_leaves_it_as_it_is(tiny):
    mntp = tiny.train("mntp", "mntp", OWN, "stage.max_steps=2")
    assert not any("pooling" in name for name in checkpoint(mntp)["state_dict"])
    still = (OWN, "stage.max_steps=1", "stage.learning_rate=1e-12")
    simcse = tiny.train("simcse", "simcse", *still, f"init_from={mntp}")
    supervised = tiny.train("supervised", "supervised", *still, f"init_from={simcse}", "stage.warmup_steps=0")
    for run in (simcse, supervised):
        torch.testing.assert_close(load_file(run / WEIGHTS), load_file(mntp / WEIGHTS), atol=1e-8, rtol=0)
        assert json.loads((run / "lineage.json").read_text())["pooling"]
    (supervised / "initial_pooling" / "pooling.safetensors").write_bytes(b"other")
    with pytest.raises(L2VError, match="not the pooling of lineage.json"):
        tiny.resume(supervised, "stage.max_steps=2")


def test_it_is_exported_with_the_encoder(tiny):
    run = tiny.train("own", "simcse", OWN, "stage.max_steps=2", "stage.learning_rate=1e-2")
    script("export").main(composed("export", [f"run={run}", f"output={tiny.folder / 'out'}"]))
    ours = Encoder.from_pretrained(run, device="cpu").encode(SENTENCES)
    np.testing.assert_allclose(
        Encoder.from_pretrained(tiny.folder / "out", device="cpu").encode(SENTENCES), ours, atol=1e-5
    )


def test_grad_cache_reaches_its_weights(tiny):
    more = (OWN, "stage.max_steps=2", "stage.learning_rate=1e-2", "model.gradient_checkpointing=false")
    plain = tiny.train("plain", "simcse", *more, "stage.micro_batch_tokens=64")
    cached = tiny.train("cached", "simcse", *more, "stage.micro_batch_tokens=64", "stage.grad_cache=true")
    for name, value in load_file(plain / WEIGHTS).items():
        torch.testing.assert_close(load_file(cached / WEIGHTS)[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "ia3" else pytest.mark.slow) for kind in ADAPTERS]
)
def test_an_adapter_of_another_kind_trains_exports_and_is_gone_on_from(tiny, kind):
    given = (f"hydra.searchpath=[file://{tiny.folder / 'conf'}]", f"adapter={kind}", "stage.max_steps=2")
    first = tiny.train("first", "mntp", *given, "stage.learning_rate=1e-2")
    second = tiny.train("second", "simcse", *given, f"init_from={first}")
    assert json.loads((first / "adapter" / "adapter_config.json").read_text())["peft_type"]
    encoded = Encoder.from_pretrained(first, device="cpu").encode(SENTENCES)
    plain = Encoder.from_pretrained(tiny.model, device="cpu", max_length=32).encode(SENTENCES)
    assert np.abs(encoded - plain).max() > 1e-4
    script("export").main(composed("export", [f"run={second}", f"output={tiny.folder / 'out'}"]))
    ours = Encoder.from_pretrained(second, device="cpu").encode(SENTENCES)
    np.testing.assert_allclose(
        Encoder.from_pretrained(tiny.folder / "out", device="cpu").encode(SENTENCES), ours, atol=1e-4
    )


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["+adapter.peft={_target_: peft.LoraConfig}"], "adapter.lora and adapter.peft exclude each other"),
        (
            ["adapter.lora=null", "+adapter.peft={_target_: l2v.models.adapters.Lora}"],
            "expected a configuration of PEFT",
        ),
        (["+model.adapters=[x]"], "model.adapters: training begins with the adapters of init_from="),
        (["model.pooling={_target_: my_poolings.AttentionPooling, heads: many}"], "model.pooling.heads=many"),
        (["model.pooling={_target_: my_poolings.Nothing}"], "my_poolings has no Nothing"),
        (["model.pooling=max"], "model.pooling=max"),
    ],
)
def test_mistakes_are_told_in_one_line(tiny, overrides, told):
    with pytest.raises(L2VError, match=told):
        tiny.train("wrong", "mntp", *overrides)
