"""A pooling of one's own, with weights: saved and loaded with an encoder, and never imported unasked."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SENTENCES

from l2v import Encoder
from l2v.errors import L2VError
from l2v.pooling import Pooling, pool

SOURCE = '''
import torch
from l2v.pooling import Pooling


class AttentionPooling(Pooling):
    """A learned query decides how much each token counts."""

    def __init__(self, sharpness: float = 1.0):
        super().__init__()
        self.sharpness = sharpness

    def build(self, hidden_size):
        self.query = torch.nn.Linear(hidden_size, 1)

    def forward(self, hidden, pool_mask, attention_mask):
        scores = self.sharpness * self.query(hidden.float())[..., 0]
        weights = scores.masked_fill(pool_mask == 0, -torch.inf).softmax(dim=1)
        return torch.einsum("bl,blh->bh", weights, hidden.float())

    def settings(self):
        return {"sharpness": self.sharpness}
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Pooling]:
    """A class of a package outside of l2v, imported."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "my_poolings.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "my_poolings", raising=False)
    yield importlib.import_module("my_poolings").AttentionPooling
    sys.modules.pop("my_poolings", None)


def with_pooling(tiny_model: Path, pooling: Pooling) -> Encoder:
    plain = Encoder.from_pretrained(tiny_model, device="cpu")
    pooling.build(plain.dimension)
    plain.backbone.add_pooling(pooling)
    return Encoder(plain.backbone, pooling=pooling)


def test_an_encoder_comes_back_with_its_pooling_and_weights(tiny_model, tmp_path, own):
    encoder = with_pooling(tiny_model, own(sharpness=2.0))
    encoder.save(tmp_path / "saved")
    again = Encoder.from_pretrained(tmp_path / "saved", device="cpu")
    assert type(again.pooling) is own and again.pooling.sharpness == 2.0
    np.testing.assert_allclose(again.encode(SENTENCES), encoder.encode(SENTENCES), atol=1e-6)
    assert not np.allclose(again.encode(SENTENCES), Encoder.from_pretrained(tiny_model, device="cpu").encode(SENTENCES))


def test_its_weights_are_among_those_that_are_trained(tiny_model, own):
    encoder = Encoder.from_pretrained(tiny_model, device="cpu")
    pooling = own()
    pooling.build(encoder.dimension)
    encoder.backbone.requires_grad_(False).add_pooling(pooling, trainable=True)
    trained = [name for name, weight in encoder.backbone.named_parameters() if weight.requires_grad]
    assert trained == ["pooling.query.weight", "pooling.query.bias"]


@pytest.mark.parametrize("how", ["nothing", "named"])
def test_the_module_of_a_strangers_pooling_is_imported_only_if_the_user_names_it(
    tiny_model, tmp_path, own, monkeypatch, how
):
    with_pooling(tiny_model, own()).save(tmp_path / "saved")
    sys.modules.pop("my_poolings")
    if how == "named":
        monkeypatch.setenv("L2V_ALLOW_MODULES", "another, my_poolings")
        assert Encoder.from_pretrained(tmp_path / "saved", device="cpu").encode(SENTENCES).shape[0] == len(SENTENCES)
        return
    with pytest.raises(L2VError, match="my_poolings.AttentionPooling is code of another package; .*L2V_ALLOW_MODULES"):
        Encoder.from_pretrained(tmp_path / "saved", device="cpu")
    assert "my_poolings" not in sys.modules


def test_a_module_inside_a_package_can_be_named_alone(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "poolings.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    with_pooling(tiny_model, importlib.import_module("my_package.poolings").AttentionPooling()).save(tmp_path / "saved")
    for name in ("my_package", "my_package.poolings"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("L2V_ALLOW_MODULES", "my_package.others")
    with pytest.raises(L2VError, match=r"my_package\.poolings\.AttentionPooling is code of another package"):
        Encoder.from_pretrained(tmp_path / "saved", device="cpu")
    monkeypatch.setenv("L2V_ALLOW_MODULES", "my_package.poolings")
    assert Encoder.from_pretrained(tmp_path / "saved", device="cpu").encode(SENTENCES).shape[0] == len(SENTENCES)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"_target_": "subprocess.getoutput", "cmd": "touch ran"}, "is no l2v.pooling.Pooling"),
        ({"_target_": "l2v.errors.L2VError"}, "is no l2v.pooling.Pooling"),
        ({"_target_": "l2v.pooling.Nothing"}, "cannot be imported"),
        ({"_target_": "l2v.pooling.Mean", "more": 1}, "more"),
        ({}, "code of another package"),
    ],
)
def test_a_record_that_names_something_else_is_refused(tiny_model, tmp_path, record, told):
    Encoder.from_pretrained(tiny_model, device="cpu").save(tmp_path)
    settings = json.loads((tmp_path / "l2v.json").read_text())
    (tmp_path / "l2v.json").write_text(json.dumps(settings | {"pooling": record}))
    with pytest.raises(L2VError, match=told):
        Encoder.from_pretrained(tmp_path, device="cpu")
    assert not Path("ran").exists()


@pytest.mark.parametrize("damage", ["missing", "misshapen"])
def test_weights_that_do_not_fit_are_told(tiny_model, tmp_path, own, damage):
    with_pooling(tiny_model, own()).save(tmp_path / "saved")
    file = tmp_path / "saved" / "1_Pooling" / "pooling.safetensors"
    if damage == "missing":
        file.unlink()
    else:
        from safetensors.torch import save_file

        save_file({"query.weight": torch.zeros(1, 3), "query.bias": torch.zeros(1)}, file)
    with pytest.raises(L2VError, match="pooling.safetensors"):
        Encoder.from_pretrained(tmp_path / "saved", device="cpu")


def test_sentence_transformers_gives_the_same_vectors(tiny_model, tmp_path, own):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    encoder = with_pooling(tiny_model, own())
    encoder.save(tmp_path / "saved")
    model = sentence_transformers.SentenceTransformer(
        str(tmp_path / "saved"), device="cpu", trust_remote_code=True, local_files_only=True
    )
    np.testing.assert_allclose(model.encode(SENTENCES), encoder.encode(SENTENCES), atol=1e-5)


def test_a_pooling_sees_the_states_and_both_masks():
    class Shape(Pooling):
        def forward(self, hidden, pool_mask, attention_mask):
            return (hidden * (pool_mask & attention_mask)[..., None]).sum(dim=1)

    mask = torch.tensor([[0, 1, 1]])
    hidden = torch.arange(6.0).view(1, 3, 2)
    torch.testing.assert_close(
        pool(hidden, mask, torch.ones(1, 3, dtype=torch.long), Shape()), hidden[:, 1:].sum(dim=1)
    )
