"""A backbone that is split layer by layer is the whole one: FSDP2 with a single process, which gathers from itself."""

from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import torch
from tiny import make_tiny_decoder, make_tiny_tokenizer
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from l2v.errors import L2VError
from l2v.models.adapters import Lora, trainable_parameters
from l2v.models.backbone import Backbone
from l2v.models.families import FAMILIES, tiny_model
from l2v.models.sharding import shard

IDS = torch.arange(3, 15).view(2, 6)
MASK = torch.ones_like(IDS)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,), mesh_dim_names=("data_parallel",))
    torch.distributed.destroy_process_group()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    make_tiny_decoder(tied=False).to(torch.bfloat16).save_pretrained(folder, max_shard_size="10KB")
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


def adapter_of(model: Path, folder: Path) -> Path:
    backbone = Backbone.load(str(model))
    backbone.add_adapter(Lora(rank=4))
    for weight in trainable_parameters(backbone).values():
        nn.init.normal_(weight, std=0.1)
    backbone.save_adapter(folder)
    return folder


KINDS = {
    "lora": Lora(rank=2),
    "dora": peft.LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "o_proj"]),
    "pissa": peft.LoraConfig(r=2, init_lora_weights="pissa", target_modules=["q_proj", "o_proj"]),
}


@pytest.mark.parametrize(
    ("dtype", "adapter"), [("bfloat16", "lora"), ("float32", "lora"), ("float32", "dora"), ("float32", "pissa")]
)
def test_what_is_merged_and_split_layer_by_layer_is_the_whole(mesh, model, tmp_path, dtype, adapter):
    merge = [adapter_of(model, tmp_path / name) for name in ("first", "second")]
    whole, split = (
        Backbone.load(str(model), merge=merge, dtype=dtype, with_head=True, device=device) for device in ("cpu", "meta")
    )
    for backbone in (whole, split):
        with torch.random.fork_rng():
            backbone.add_adapter(KINDS[adapter])
    shard(split, mesh)
    assert split.proof.attn_implementation == whole.proof.attn_implementation and not split.proof.causal_layers
    assert split.proof.backward_change == pytest.approx(whole.proof.backward_change, rel=1e-5)
    ours, theirs = dict(split.named_parameters()), dict(whole.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert isinstance(ours[name], DTensor) and ours[name].dtype == weight.dtype
        assert torch.equal(ours[name].full_tensor(), weight), name
    with torch.no_grad():
        assert torch.equal(split.eval()(IDS, MASK), whole.eval()(IDS, MASK))


def test_the_proof_of_a_split_model_can_fail(mesh, tmp_path):
    family = next(family for family in FAMILIES if family.name == "mamba")
    tiny_model(family, "eager").save_pretrained(tmp_path / "mamba")
    make_tiny_tokenizer().save_pretrained(tmp_path / "mamba")
    backbone = Backbone.load(str(tmp_path / "mamba"), device="meta")
    with pytest.raises(L2VError, match="cannot be made fully bidirectional"):
        shard(backbone, mesh)
