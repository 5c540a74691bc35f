"""What a process holds of a model, measured in one of its own, beside one that does the same with a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_tiny_decoder, make_tiny_tokenizer
from torch import nn

from l2v.models.adapters import Lora, trainable_parameters
from l2v.models.backbone import Backbone

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc"
)
LARGE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 8}
LARGE |= {"num_key_value_heads": 8, "head_dim": 64, "initializer_range": 0.02}
"""96M parameters, none of the matrices more than a hundredth of them."""
MEASURE = """
import json, sys
from pathlib import Path
from l2v.process import set_up_process
set_up_process()
from l2v import Encoder
from l2v.models.backbone import Backbone
from l2v.models.sharding import split

def peak():
    return 1024 * int(next(l for l in Path("/proc/self/status").open() if l.startswith("VmHWM")).split()[1])

model, adapter, dtype, out = sys.argv[1:]
Path("/proc/self/clear_refs").write_text("5")
found = {}
"""
WHOLE = """
encoder = Encoder(Backbone.load(model, merge=[Path(adapter)], dtype=dtype))
found["loaded, merged and proven"] = peak()
encoder.encode(["A cat sat on the mat."])
encoder.save(Path(out))
found["exported"] = peak()
print(json.dumps(found))
"""
SHARE = """
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

torch.distributed.init_process_group("fake", store=FakeStore(), rank=3, world_size=8)
backbone = Backbone.load(model, merge=[Path(adapter)], dtype=dtype, device="meta")
split(backbone, init_device_mesh("cpu", (8,), mesh_dim_names=("data_parallel",)))
found["split"] = peak()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A tiny and a large model in bfloat16, and an adapter of each beside it."""
    folder = tmp_path_factory.mktemp("models")
    made = []
    for name, settings in {"tiny": {}, "large": LARGE}.items():
        model = folder / name
        make_tiny_decoder(**settings).to(torch.bfloat16).save_pretrained(model, max_shard_size="50MB")
        make_tiny_tokenizer().save_pretrained(model)
        backbone = Backbone.load(str(model), dtype="bfloat16")
        backbone.add_adapter(Lora(rank=2))
        for weight in trainable_parameters(backbone).values():
            nn.init.normal_(weight, std=0.1)
        backbone.save_adapter(folder / f"{name}-adapter")
        made.append(model)
    return made


def peaks(models: list[Path], program: str, dtype: str) -> dict[str, float]:
    """Bytes beyond those of the tiny model, in sizes of the large one's weights in ``dtype``."""
    found = []
    for model in models:
        arguments = [str(model), f"{model}-adapter", dtype, str(model.with_name(f"{model.name}-{dtype}"))]
        command = [sys.executable, "-c", MEASURE + program, *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    size = sum(file.stat().st_size for file in models[1].glob("*.safetensors")) * (2 if dtype == "float32" else 1)
    return {step: (found[1][step] - found[0][step]) / size for step in found[0]}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_process_holds_the_weights_once(models: list[Path], dtype: str) -> None:
    for step, sizes in peaks(models, WHOLE, dtype).items():
        assert 0.9 < sizes <= 1.2, f"{step}: {sizes:.2f} times the weights"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_one_of_eight_processes_holds_its_share_and_a_layer(models: list[Path], dtype: str) -> None:
    [sizes] = peaks(models, SHARE, dtype).values()
    assert 0.12 < sizes <= 0.3, f"{sizes:.2f} times the weights"
