"""Fast linear layers and lean LoRA give what torch and PEFT give."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import DEVICES
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as PeftLinear
from tiny import make_tiny_decoder
from torch import nn

from l2v.kernels import linear
from l2v.kernels.devices import planned_for
from l2v.kernels.linear import FastLinear, LeanLora, speed_up_linears
from l2v.kernels.speed import speed_up


@pytest.fixture(params=[False, True], ids=["default", "onednn"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Either library, whatever the processor."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: request.param)
    return request.param


def _gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    assert x.grad is not None
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **found}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 12), (2, 5, 12)])
def test_a_fast_linear_layer_is_a_linear_layer(library: bool, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(12, 7, bias=bias)
    fast = copy.deepcopy(plain)
    speed_up(fast)
    assert type(fast) is FastLinear
    x = torch.randn(shape)
    expected, found = _gradients(plain, x), _gradients(fast, x)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("shape", [(5, 12), (2, 5, 12)])
def test_what_a_layer_gives_may_be_changed_in_place(library: bool, shape: tuple[int, ...]) -> None:
    """As OLMo does, which clips its queries, keys and values."""
    fast = FastLinear(12, 7)
    fast(torch.randn(shape)).clamp_(-1, 1).sum().backward()
    assert fast.weight.grad is not None


@pytest.mark.parametrize(
    ("of_default", "of_onednn", "faster"), [(2.0, 1.0, True), (1.1, 1.0, False), (1.0, 2.0, False)]
)
def test_the_faster_library_is_measured(
    of_default: float, of_onednn: float, faster: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever made the processor, not for a difference that may be noise, and once for all processes of a machine."""
    now = [0.0]

    def lasts(seconds: float) -> Callable[..., torch.Tensor]:
        def call(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            now[0] += seconds
            return x

        return call

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(linear.nn.functional, "linear", lasts(of_default))
    monkeypatch.setattr(linear, "_by_onednn", lasts(of_onednn))
    monkeypatch.setattr(linear.time, "perf_counter", lambda: now[0])
    monkeypatch.setenv("L2V_CACHE", str(tmp_path))
    assert linear.onednn_is_faster.__wrapped__() == faster
    # another process, whose measuring would come out otherwise
    monkeypatch.setattr(linear.nn.functional, "linear", lasts(of_onednn))
    monkeypatch.setattr(linear, "_by_onednn", lasts(of_default))
    assert linear.onednn_is_faster.__wrapped__() == faster
    # a cache that is damaged, or cannot be written, is none
    (kept,) = (tmp_path / "cpu").iterdir()
    kept.write_text("{")
    assert linear.onednn_is_faster.__wrapped__() == (of_onednn > of_default)
    monkeypatch.setenv("L2V_CACHE", "/proc/nowhere")
    assert linear.onednn_is_faster.__wrapped__() == (of_onednn > of_default)


def test_the_copy_of_a_frozen_weight_follows_the_weight() -> None:
    """Under autocast it is cast once; written to, merged into, or trained, it is cast again."""
    lean = _adapted(0.0)
    speed_up(lean)
    ids = torch.arange(8)[None]

    def states() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            return lean(ids)[0].float()

    layers = [module.base_layer for module in lean.modules() if isinstance(module, LeanLora)]
    first = states()
    copies = [layer.__dict__["_copy"].copy for layer in layers]
    assert all(copy.dtype == torch.bfloat16 for copy in copies) and len(copies) > 4
    assert torch.equal(states(), first)
    assert all(layer.__dict__["_copy"].copy is copy for layer, copy in zip(layers, copies, strict=True))
    with torch.no_grad():
        layers[0].weight.mul_(2)
    assert not torch.equal(states(), first)
    for module in lean.modules():
        if isinstance(module, LeanLora):
            torch.nn.init.normal_(module.lora_B["default"].weight)
    before = states()
    lean.merge_adapter()
    merged = states()
    assert (merged - before).norm() < 0.1 * before.norm() and not torch.equal(merged, first)
    lean.unmerge_adapter()
    assert (states() - before).norm() < 0.1 * before.norm()


def test_layers_on_one_input_share_its_copy() -> None:
    x = torch.randn(3, 4)
    copy = linear._shared_cast(x, torch.bfloat16)
    assert (
        linear._shared_cast(x, torch.bfloat16) is copy
        and linear._shared_cast(x, torch.float32).data_ptr() == x.data_ptr()
    )
    x.mul_(2)
    assert torch.equal(linear._shared_cast(x, torch.bfloat16), x.bfloat16())
    assert linear._shared_cast(torch.zeros(3, 4), torch.bfloat16).sum() == 0


def test_compiled_in_one_graph(library: bool) -> None:
    """With the operations that torch's compiler knows."""
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(12, 7), nn.Linear(7, 3)), LoraConfig(r=2, target_modules=["0"]))  # type: ignore[arg-type]
    speed_up(model)
    layers = model.base_model.model
    assert (type(layers[0]), type(layers[1])) == (LeanLora, FastLinear)
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(torch.compile(layers, backend="eager", fullgraph=True)(x), layers(x))


def test_autocast_keeps_its_own_way(library: bool) -> None:
    fast = FastLinear(12, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast(torch.randn(3, 12)).dtype == torch.bfloat16


def _adapted(dropout: float) -> nn.Module:
    torch.manual_seed(0)
    settings = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", bias="none")
    model = get_peft_model(make_tiny_decoder().base_model, settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return model.train()


def _step(model: nn.Module, seed: int = 1) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)
    ids = torch.randint(384, (3, 9))
    states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    # not the sum of squares: a normalised vector's is constant
    (states * torch.randn(states.shape)).sum().backward()
    return {"states": states.detach(), **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}


def test_lean_lora_is_lora(library: bool) -> None:
    plain, lean = _adapted(0.0), _adapted(0.0)
    speed_up(lean)
    assert sum(isinstance(module, LeanLora) for module in lean.modules()) == 14
    assert plain.state_dict().keys() == lean.state_dict().keys()
    expected, found = _step(plain), _step(lean)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_lean_lora_is_lora_under_autocast(library: bool, weights: torch.dtype) -> None:
    """As far from float32 as PEFT's is, in the dtypes of PEFT's."""
    exact, plain, lean = _adapted(0.0), _adapted(0.0), _adapted(0.0)
    speed_up(lean)
    for model in (plain, lean):
        for name, parameter in model.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.to(weights)
    theirs, ours = [], []
    for seed in range(6):
        reference = _step(exact, seed)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected, found = _step(plain, seed), _step(lean, seed)
        for name, value in reference.items():
            assert found[name].dtype == expected[name].dtype, name
            theirs.append((expected[name].float() - value).norm() / value.norm())
            ours.append((found[name].float() - value).norm() / value.norm())
    assert 0 < sum(ours) < 1.2 * sum(theirs)
    assert max(ours) < 1.5 * max(theirs)


def test_lean_lora_keeps_nothing_for_its_dropout() -> None:
    """Beside the layer's input, which its neighbours keep too, and tensors of the rank: masks are made again."""

    def kept(lean: bool) -> dict[torch.dtype, int]:
        torch.manual_seed(0)
        settings = LoraConfig(r=4, lora_dropout=0.05, target_modules=["0"], bias="none")
        model = get_peft_model(nn.Sequential(nn.Linear(64, 96)), settings).train()  # type: ignore[arg-type]
        model.base_model.model[0].base_layer.to(torch.bfloat16)
        if lean:
            speed_up(model)
        tensors: dict[int, torch.Tensor] = {}
        x = torch.randn(100, 64, dtype=torch.bfloat16, requires_grad=True)
        weights = {p.data_ptr() for p in model.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.numel() == x.numel():
                tensors[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu"):
            model(x)
        found = [tensor for pointer, tensor in tensors.items() if pointer not in weights | {x.data_ptr()}]
        return {dtype: sum(tensor.dtype == dtype for tensor in found) for dtype in {t.dtype for t in found}}

    assert kept(lean=True) == {}
    assert kept(lean=False)[torch.float32] >= 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_small_steps_are_not_lost_in_bfloat16(device: str, bias: bool, compiled: bool) -> None:
    """A first step changes what a layer gives by less than half of the last digit of a bfloat16 number. On average it
    is there, since it is added before what the layer gives is rounded; PEFT adds it afterwards, and most is lost."""
    layer, x, exact, step = _small_step(bias)
    layer.to(device)
    assert abs(_arriving(layer, x, exact, step, device)) < 0.5
    speed_up_linears(layer)
    if compiled:
        layer.compile(backend="aot_eager", fullgraph=True)
    assert abs(_arriving(layer, x, exact, step, device) - 1) < 0.3


def _small_step(bias: bool) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A layer, its input, and in float32 what it gives before and what a step adds."""
    torch.manual_seed(0)
    settings = LoraConfig(r=4, lora_dropout=0.0, target_modules=["0"], bias="none")
    model = get_peft_model(nn.Sequential(nn.Linear(64, 512, bias=bias)), settings)  # type: ignore[arg-type]
    layer: Any = model.base_model.model[0]
    x = torch.randn(2000, 64)
    layer.lora_B["default"].weight.data.normal_(std=1e-4)
    exact = layer.base_layer(x).detach()
    step = (layer(x) - exact).detach()
    assert 0 < step.abs().mean() < exact.abs().mean() * 2**-9
    return layer, x, exact, step


def _arriving(layer: nn.Module, x: torch.Tensor, exact: torch.Tensor, step: torch.Tensor, device: str) -> float:
    """The share of the step under autocast to bfloat16."""
    with torch.autocast(device, dtype=torch.bfloat16):
        found = layer(x.to(device)).detach().float().cpu() - exact
    return float((found * step).sum() / step.square().sum())


def test_small_steps_are_not_lost_where_a_library_rounds_a_product_before_it_adds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As cuBLAS does on an H200: seen by trying it out, and training goes another way."""

    def twice(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return y.add_(x @ weight.T)

    shape = (96, 64)
    seen = linear._is_seen_rounding.__wrapped__
    assert not seen(torch.device("cpu"), torch.bfloat16, *shape)
    monkeypatch.setattr(linear, "added_to", twice)
    assert seen(torch.device("cpu"), torch.bfloat16, *shape) and seen(torch.device("cpu"), torch.float16, *shape)
    monkeypatch.setattr(linear, "kind_of", lambda device: "cuda")
    monkeypatch.setattr(linear, "is_planned", lambda: False)
    for bias in (False, True):
        layer, x, exact, step = _small_step(bias)
        speed_up_linears(layer)
        assert abs(_arriving(layer, x, exact, step, "cpu") - 1) < 0.3
    layer, x, exact, step = _small_step(bias=False)
    speed_up_linears(layer)
    with torch.no_grad():
        assert abs(_arriving(layer, x, exact, step, "cpu")) < 0.5  # an encoder is spared the copies


def test_lean_lora_leaves_several_dtypes_to_peft() -> None:
    """Weights in bfloat16 and an adapter in float32 without autocast: PEFT casts to and fro."""
    plain, lean = _adapted(0.0), _adapted(0.0)
    speed_up_linears(lean)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        for model in (plain, lean):
            for name, parameter in model.named_parameters():
                if "lora_" not in name:
                    parameter.data = parameter.data.to(torch.bfloat16)
        torch.testing.assert_close(lean(ids)[0], plain(ids)[0], rtol=0, atol=0)


def test_lean_lora_drops_what_peft_would_drop(library: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same masks it is the same step."""

    def mask_of(shape: torch.Size, probability: float) -> torch.Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(shape.numel())) >= probability

    class Dropout(nn.Dropout):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * mask_of(x.shape, self.p) / (1 - self.p)

    plain, lean = _adapted(0.25), _adapted(0.25)
    speed_up(lean)
    for module in plain.modules():
        if type(module) is nn.Dropout and module.p:
            module.__class__ = Dropout
    monkeypatch.setattr(linear, "draw_keys", lambda count: [0])  # torch's generator is where the other model leaves it
    monkeypatch.setattr(linear, "mask_of", lambda shape, p, *_: -mask_of(shape, p).int())
    monkeypatch.setattr(linear, "dropout_scale", lambda p: 1 / (1 - p))
    expected, found = _step(plain), _step(lean)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_lean_lora_leaves_merging_switching_off_and_evaluation_to_peft(library: bool) -> None:
    plain, lean = _adapted(0.5), _adapted(0.5)
    speed_up(lean)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(lean.eval()(ids)[0], plain.eval()(ids)[0])
        with plain.disable_adapter(), lean.disable_adapter():
            torch.testing.assert_close(lean(ids)[0], plain(ids)[0])
        merged = lean.merge_and_unload()
        assert not any(isinstance(module, LeanLora) for module in merged.modules())
        torch.testing.assert_close(merged(ids)[0], plain(ids)[0], rtol=1e-4, atol=1e-4)


def test_lean_lora_works_in_inference_mode_under_autocast() -> None:
    """Lightning validates in it; its tensors do not say whether they were written to."""
    model = _adapted(0.5).eval()
    speed_up(model)
    ids = torch.arange(16).view(2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            expected = model(ids)[0]
        with torch.inference_mode():
            torch.testing.assert_close(model(ids)[0], expected, rtol=0, atol=0)
            within = _adapted(0.5).eval()
            speed_up(within)
            torch.testing.assert_close(within(ids)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_lean_lora_in_bfloat16_is_as_near_float32_as_pefts(device: str) -> None:
    """Whose rounding differs, so the two differ by as much from each other."""

    def gradients(*, lean: bool, bfloat16: bool) -> torch.Tensor:
        model = _adapted(0.0).to(device)
        if lean:
            speed_up(model)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bfloat16):
            model(torch.arange(16, device=device).view(2, 8))[0].float()[..., 0].sum().backward()
        found = [p.grad for p in model.parameters() if p.grad is not None]
        return torch.cat([(gradient / gradient.norm()).flatten() for gradient in found])

    exact = gradients(lean=False, bfloat16=False)
    assert (gradients(lean=True, bfloat16=False) - exact).norm() < 1e-4 * exact.norm()
    of_peft, of_ours = ((gradients(lean=lean, bfloat16=True) - exact).norm() for lean in (False, True))
    assert 0 < of_ours < 1.2 * of_peft < 0.1 * exact.norm()


def test_the_products_of_a_gpu_are_those_of_a_cpu() -> None:
    """The backward pass of a LoRA has an order of its own there."""
    found = []
    for device in ("cpu", "cuda"):
        model = _adapted(0.0)
        speed_up(model)
        with planned_for(device):
            model(torch.arange(16).view(2, 8))[0][..., 0].sum().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_dropout_of_a_gpu_is_torchs() -> None:
    """What a layer gives there, and its gradients, are those of the plain formula with the same numbers dropped."""
    layer = next(module for module in _adapted(0.25).modules() if isinstance(module, PeftLinear))
    layer.__class__, layer.base_layer.__class__ = LeanLora, FastLinear
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(b)
    x, weights = torch.randn(2, 5, layer.in_features), torch.randn(2, 5, layer.out_features)

    def gradients(given: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        start = x.clone().requires_grad_()
        torch.manual_seed(3)
        y = given(start)
        return [y.detach(), *torch.autograd.grad((y * weights).sum(), [start, a, b])]

    def plain(start: torch.Tensor) -> torch.Tensor:
        dropped, _ = torch.native_dropout(start, 0.25, True)
        return start @ layer.base_layer.weight.T + layer.scaling["default"] * (dropped @ a.T @ b.T)

    with planned_for("cuda"):
        found = gradients(layer)
    for mine, expected in zip(found, gradients(plain), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_biases_that_peft_trains_are_trained(bias: str) -> None:
    """Those of Qwen2's projections."""
    model = make_tiny_decoder("qwen2").model
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"], bias=bias))
    speed_up(adapted)
    adapted(torch.randint(2, 300, (2, 9)), use_cache=False).last_hidden_state.square().sum().backward()
    trained = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    assert any(name.endswith("bias") for name in trained) and all(grad is not None for grad in trained.values())


@pytest.mark.parametrize("layers", [["up_proj", "down_proj"], ["gate_proj", "down_proj"], ["down_proj"]])
def test_gradients_reach_what_a_gated_product_is_made_of(layers: list[str]) -> None:
    """Where only one of gate and up is trained, too."""
    found = []
    for fast in (True, False):
        torch.manual_seed(0)
        adapted = get_peft_model(make_tiny_decoder().model, LoraConfig(r=2, target_modules=layers, lora_dropout=0.0))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.1)
        if fast:
            speed_up(adapted)
        states = adapted(torch.arange(2, 20).view(2, 9), use_cache=False).last_hidden_state
        (states * torch.linspace(-1, 1, states.shape[-1])).sum().backward()
        found.append({name: p.grad for name, p in adapted.named_parameters() if p.requires_grad})
    for name, expected in found[1].items():
        assert expected.norm() > 0 and (found[0][name] - expected).norm() < 1e-5 * expected.norm(), name
