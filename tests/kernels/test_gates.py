"""Gated MLPs: the very numbers of each family's own class, forward and backward, and less kept in between."""

import copy

import pytest
import torch
from devices import DEVICES
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from transformers import Gemma2Config, Gemma3nTextConfig, LlamaConfig, Phi3Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextMLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.phi3.modeling_phi3 import Phi3MLP

from l2v.kernels.devices import planned_for
from l2v.kernels.gates import FastGate, Gated, speed_up_gates
from l2v.kernels.linear import LeanLora, keep_products, speed_up_linears

WIDTH, INNER = 32, 48


def _mlp(family: str, activation: str = "silu") -> nn.Module:
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER}
    torch.manual_seed(0)
    if family == "gemma2":
        return Gemma2MLP(Gemma2Config(**sizes, hidden_activation=activation))
    if family == "phi3":
        return Phi3MLP(Phi3Config(**sizes, hidden_act=activation))
    return LlamaMLP(LlamaConfig(**sizes, hidden_act=activation))


def _fast(own: nn.Module) -> nn.Module:
    model = nn.Sequential(copy.deepcopy(own))
    speed_up_gates(model)
    return model[0]


@pytest.mark.parametrize(
    ("family", "activation"),
    [("llama", "silu"), ("phi3", "silu"), ("gemma2", "gelu_pytorch_tanh"), ("llama", "gelu")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_it_is_the_familys_own(family: str, activation: str, dtype: torch.dtype, autocast: bool, device: str) -> None:
    own = _mlp(family, activation).to(device, dtype)
    fast = _fast(own)
    assert isinstance(fast, FastGate) and isinstance(fast, type(own))
    given = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    found = []
    for mlp in (own, fast):
        x = given.clone().requires_grad_()
        with torch.autocast(device, enabled=autocast, dtype=torch.bfloat16):
            y = mlp(x)
        y.float().square().sum().backward()
        found.append([y.detach(), x.grad, *(weight.grad for weight in mlp.parameters())])
    for mine, theirs in zip(found[1], found[0], strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)


def _kept(mlp: nn.Module, rows: int) -> int:
    """Bytes of a float32 input and of what is made of it that wait for the backward pass."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = mlp(torch.randn(rows, WIDTH, requires_grad=True))
    weights = {weight.data_ptr() for weight in mlp.parameters()}
    size = sum(x.untyped_storage().nbytes() for place, x in kept.items() if place not in weights)
    y.sum().backward()
    return size


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_the_activated_gate_is_not_kept(family: str) -> None:
    own = _mlp(family)
    # the input, the gate, what it is multiplied by, their product, which the last layer keeps
    fast = 7 * 4 * (WIDTH + 3 * INNER)
    assert _kept(_fast(own), 7) == fast
    assert _kept(own, 7) == fast + 7 * 4 * INNER


def _with_lora(mlp: nn.Module, fast: bool, dropout: float = 0.1, **options: object) -> nn.Module:
    """With LoRA that is not at its beginning, on all layers."""
    model = nn.Sequential(copy.deepcopy(mlp))
    layers = [name for name, layer in model[0].named_children() if isinstance(layer, nn.Linear)]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=layers, lora_dropout=dropout, **options)
    LoraModel(model, config, "default")
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    speed_up_linears(model)
    if fast:
        speed_up_gates(model)
    assert isinstance(model[0].down_proj, LeanLora) and isinstance(model[0], FastGate) == fast
    return model.train()


def _trained(
    model: nn.Module, autocast: bool = False, checkpointing: bool = False, device: str = "cpu"
) -> list[Tensor]:
    x = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
    torch.manual_seed(2)  # of dropout
    with torch.autocast(device, enabled=autocast, dtype=torch.bfloat16):
        y = checkpoint(model, x, use_reentrant=False, context_fn=keep_products) if checkpointing else model(x)
    y.float().square().sum().backward()
    trained = [weight.grad for weight in model.parameters() if weight.requires_grad]
    assert x.grad is not None and trained and all(gradient is not None for gradient in trained)
    return [y.detach(), x.grad, *trained]


@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_a_lora_after_the_gate(family: str, autocast: bool, checkpointing: bool, device: str) -> None:
    """The same numbers, with what dropout draws, where its layer computes the product of the two again."""
    plain, fast = (_with_lora(_mlp(family), fast).to(device) for fast in (False, True))
    expected = _trained(plain, autocast, checkpointing, device)
    for mine, theirs in zip(_trained(fast, autocast, checkpointing, device), expected, strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)


def test_a_lora_after_the_gate_keeps_no_product() -> None:
    plain, fast = (_kept(_with_lora(_mlp("llama"), fast, dropout=0.0), 7) for fast in (False, True))
    assert plain - fast == 7 * 4 * 2 * INNER  # the activated gate, the product


def test_what_is_not_plain_lora_gets_the_product() -> None:
    """PEFT's own ways: an adapter that is off, or merged."""
    plain, fast = (_with_lora(_mlp("llama"), fast, dropout=0.0) for fast in (False, True))
    x = torch.randn(3, WIDTH)
    for change in (
        lambda layer: layer.enable_adapters(False),
        lambda layer: (layer.enable_adapters(True), layer.merge()),
    ):
        for model in (plain, fast):
            for layer in model.modules():
                if isinstance(layer, LeanLora):
                    change(layer)
        assert torch.equal(fast(x), plain(x))


def test_a_hook_on_the_last_layer_sees_a_tensor() -> None:
    model = _with_lora(_mlp("llama"), fast=True)
    expected = _trained(model)
    seen = []
    model[0].down_proj.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    model.zero_grad()
    found = _trained(model)
    assert [type(x) for x in seen] == [Tensor] and not isinstance(seen[0], Gated)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_hook_on_the_activation_sees_the_gate() -> None:
    model = _fast(_mlp("llama"))
    expected = model(torch.ones(1, WIDTH))
    seen = []
    model.act_fn.register_forward_hook(lambda layer, given, result: seen.append(given[0]))
    assert torch.equal(model(torch.ones(1, WIDTH)), expected)
    assert torch.equal(*seen, model.gate_proj(torch.ones(1, WIDTH)))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_plan_goes_its_way(device: str) -> None:
    with FakeTensorMode(), planned_for(device):
        model = nn.Sequential(_mlp("llama"))
        speed_up_gates(model)
        y = model(torch.ones(2, WIDTH, requires_grad=True))
    assert isinstance(model[0], FastGate) and y.shape == (2, WIDTH)


def test_looking_draws_no_random_numbers() -> None:
    mlp = _mlp("llama")
    before = torch.get_rng_state()
    _fast(mlp)
    assert torch.equal(torch.get_rng_state(), before)


class _Dropping(LlamaMLP):
    """Drops numbers, in training only."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(nn.functional.dropout(y, 0.1, self.training))


class _Clipping(LlamaMLP):
    """Clips large gates."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)).clamp(max=100) * self.up_proj(x))


class _Normed(LlamaMLP):
    """Has a layer more than a gated MLP."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.norm = nn.RMSNorm(INNER)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.norm(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))


class _Routed(LlamaMLP):
    """Is called with more than its input."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return super().forward(x) * weights


@pytest.mark.parametrize("kind", [_Dropping, _Clipping, _Normed, _Routed])
def test_another_kind_of_mlp_is_left_alone(kind: type[LlamaMLP]) -> None:
    mlp = kind(LlamaConfig(hidden_size=WIDTH, intermediate_size=INNER)).eval()
    assert type(_fast(mlp)) is kind


@pytest.mark.parametrize("activation", ["relu", "quick_gelu"])
def test_another_activation_is_left_alone(activation: str) -> None:
    assert type(_fast(_mlp("llama", activation))) is LlamaMLP


def test_each_layer_is_looked_at() -> None:
    """Gemma 3n's first layers drop all but the largest gates, its last ones are plain."""
    config = Gemma3nTextConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=2, activation_sparsity_pattern=[0.9, 0.0]
    )
    sparse, plain = (_fast(Gemma3nTextMLP(config, layer_idx=layer)) for layer in (0, 1))
    assert type(sparse) is Gemma3nTextMLP and isinstance(plain, FastGate)
