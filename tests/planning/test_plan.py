"""Plans: the real stage on shapes, beside real trainings, and what the program says."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import ROOT, composed
from transformers import AutoModel, AutoModelForCausalLM

from l2v import config as configs
from l2v.errors import L2VError
from l2v.models.depth import with_layers
from l2v.planning.fit import first_that_fits, fits, largest, remedies
from l2v.planning.layers import quick_needs
from l2v.planning.measure import measure
from l2v.planning.plan import plan, refuse
from l2v.planning.room import GIB, Room
from l2v.planning.setup import Setup
from l2v.planning.sizes import SIZES, model_config

sys.path.insert(0, str(ROOT / "benchmarks" / "plan"))
from specification import Specification

MODELS = sorted(file.stem for file in (ROOT / "conf" / "model").glob("*.yaml") if file.stem != "base")
TINY = {"hidden": 64, "layers": 2, "vocabulary": 96, "rows": 2, "length": 8}


def planned(*overrides: str) -> tuple[Setup, Room]:
    return configs.build_plan(configs.plain(composed("plan", list(overrides)), without=("data", "logger")))


@pytest.mark.parametrize("model", MODELS)
def test_the_sizes_of_every_model_are_here_and_make_as_many_parameters_as_its_config_says(model: str) -> None:
    text = (ROOT / "conf" / "model" / f"{model}.yaml").read_text()
    source = re.search(r"^source: (\S+)", text, re.MULTILINE)
    said = re.search(r"\(([\d.]+)([BM]) parameters", text)
    assert source and said
    config = model_config(source[1])
    kind = AutoModelForCausalLM if "kind: encoder" not in text else AutoModel
    with torch.device("meta"):
        whole = kind.from_config(config, dtype=torch.bfloat16)
    count = sum(weight.numel() for weight in whole.parameters()) / {"B": 1e9, "M": 1e6}[said[2]]
    digits = len(said[1].partition(".")[2])
    assert abs(count - float(said[1])) <= max(0.51 * 10**-digits, 0.005 * count)


def test_no_sizes_are_left_of_a_model_that_is_gone() -> None:
    assert sorted(file.stem for file in SIZES.glob("*.json")) == MODELS


def test_a_folder_of_ones_own_is_planned_and_an_unknown_model_is_not(tiny_model: Path) -> None:
    assert model_config(str(tiny_model)).hidden_size == 32
    with pytest.raises(L2VError, match="model.source=somebody/new: its sizes are not in l2v; name a folder"):
        model_config("somebody/new")


@pytest.mark.parametrize("stage", ["mntp", "simcse", "supervised"])
@pytest.mark.parametrize("sharing", ["one", "ddp", "fsdp"])
@pytest.mark.parametrize("lora", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_stage_runs_on_shapes(stage: Any, sharing: Any, lora: bool) -> None:
    specification = Specification(**TINY, stage=stage, sharing=sharing, lora=lora)
    needs = measure(dataclasses.replace(specification.setup(), on_gpu=True))
    share = 2 if sharing == "fsdp" else 1
    assert needs.memory["weights"] == pytest.approx(4 * needs.parameters / share, rel=0.1, abs=6e4)
    assert needs.training >= needs.memory["weights"] and needs.flops > 0 and needs.tokens > 0
    assert (needs.sent > 0) == (sharing != "one")
    assert (needs.memory["gathers"] > 0) == (sharing == "fsdp")
    assert (needs.trained < needs.parameters) or not lora


def test_nothing_is_left_of_a_plan_in_the_process() -> None:
    resize, attention = torch.UntypedStorage.resize_, torch.nn.functional.scaled_dot_product_attention
    measure(dataclasses.replace(Specification(**TINY, sharing="fsdp").setup(), on_gpu=True))
    assert torch.UntypedStorage.resize_ is resize and not torch.distributed.is_initialized()
    assert torch.nn.functional.scaled_dot_product_attention is attention
    assert torch.empty(3).sum().isfinite() and type(torch.empty(3)) is torch.Tensor


@pytest.mark.slow
def test_checkpointing_passes_and_the_gradient_cache_save_what_they_save() -> None:
    large = TINY | {"layers": 4, "rows": 8, "length": 32}
    plain = measure(Specification(**large).setup())
    selective = measure(Specification(**large, checkpointing="selective").setup())
    checkpointed = measure(Specification(**large, checkpointing=True).setup())
    passes = measure(Specification(**large, pass_tokens=64).setup())
    assert checkpointed.training < selective.training < plain.training and passes.training < plain.training
    assert checkpointed.flops > plain.flops == pytest.approx(passes.flops, rel=0.01)
    cached = measure(Specification(**large, stage="supervised", pass_tokens=64).setup())
    assert cached.training < 0.6 * measure(Specification(**large, stage="supervised").setup()).training


def test_a_process_that_splits_its_model_never_holds_the_whole() -> None:
    """Each layer is whole only until it is split."""
    setup = Specification(**TINY | {"layers": 10, "lora": False}, sharing="fsdp").setup()
    needs = measure(setup)
    assert needs.weights / setup.processes < needs.loading < 0.75 * needs.weights
    alone = measure(Specification(**TINY | {"layers": 10, "lora": False}).setup())
    assert alone.loading >= alone.weights


@pytest.mark.parametrize("sharing", ["one", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_tall_model_takes_what_short_ones_say(sharing: Any) -> None:
    setup = Specification(**TINY | {"layers": 10}, sharing=sharing).setup()
    whole, quick = measure(setup), quick_needs(setup)
    assert quick.memory == pytest.approx(whole.memory, rel=1e-3, abs=64)
    assert (quick.flops, quick.parameters, quick.sent) == pytest.approx((whole.flops, whole.parameters, whole.sent))
    assert with_layers(model_config("google/gemma-3-1b-it"), 6).layer_types[-1] == "full_attention"


@pytest.mark.slow
def test_a_tall_model_trained_at_several_depths_takes_what_short_ones_say() -> None:
    setup = Specification(**TINY | {"layers": 16}, stage="supervised").setup()
    plain = quick_needs(setup)
    setup.stage.layers, setup.stage.layer_weights = (5, 0.5), (1.0, 1.0)  # type: ignore[attr-defined]
    whole, quick = measure(setup), quick_needs(setup)
    assert quick.training == pytest.approx(whole.training, rel=1e-2)
    assert (quick.flops, quick.parameters) == pytest.approx((whole.flops, whole.parameters))
    assert plain.training < quick.training < 1.2 * plain.training


@pytest.mark.slow
def test_the_largest_pass_fits_and_the_next_does_not() -> None:
    setup = Specification(**TINY | {"rows": 64}).setup()
    everything = measure(setup).training
    room = Room(memory_gib=0.6 * everything / GIB, tflops=None, utilisation=1)
    found = largest(setup, room)
    assert found is not None and found.setting == "stage.micro_batch_tokens" and not found.whole
    for tokens, fitting in ((found.value, True), (2 * found.value, False)):
        changed = Specification(**TINY | {"rows": 64}, pass_tokens=tokens).setup()
        # the search's batches have two passes; token ids of all rows are 1% here
        assert fits(measure(changed), dataclasses.replace(room, memory_gib=1.02 * room.memory_gib)) == fitting
    assert largest(setup, dataclasses.replace(room, memory_gib=10)).whole
    assert largest(setup, dataclasses.replace(room, memory_gib=1e-6)) is None


def test_a_command_that_trains_can_be_planned_as_it_is() -> None:
    own_of_runs = {"run_dir", "resume", "experiment"}
    assert set(composed("train", ["evaluation=demo"])) - set(composed("plan", ["evaluation=demo"])) <= own_of_runs


@pytest.mark.slow
def test_what_does_not_fit_is_told_with_the_setting_that_makes_it_fit() -> None:
    setup = Specification(**TINY | {"layers": 6, "rows": 8, "length": 64}).setup()
    plain, checkpointed = (
        measure(Specification(**TINY | {"layers": 6, "rows": 8, "length": 64}, checkpointing=one).setup()).training
        for one in (False, True)
    )
    room = Room(memory_gib=(plain + checkpointed) / 2 / GIB, tflops=None, utilisation=1)
    assert first_that_fits(setup, room) == "model.gradient_checkpointing=true"


def test_what_is_said_to_fit_fits_as_it_is_said() -> None:
    """Checkpointing is among the overrides where it was counted on."""
    model = Specification(**TINY | {"layers": 6, "rows": 8, "length": 64}).setup()
    for checkpointing, processes in ((False, 2), ("selective", 1)):
        setup = dataclasses.replace(
            model.with_model(dataclasses.replace(model.model, gradient_checkpointing=checkpointing)),
            devices=processes,
            sharing="ddp" if processes > 1 else model.sharing,
            adapter=model.adapter if processes == 1 else None,
        )
        for overrides, changed in remedies(setup, Room(memory_gib=1000, tflops=None, utilisation=1)):
            counted_on = changed.model.gradient_checkpointing is True
            assert counted_on == ("model.gradient_checkpointing=true" in overrides), overrides


def test_more_processes_share_the_batch_that_one_had() -> None:
    setup = Specification(**TINY | {"rows": 8}).setup()
    setup.stage.global_batch_size = 16
    shared = [
        changed.stage.batch_size * changed.processes
        for overrides, changed in remedies(setup, Room(memory_gib=1000, tflops=None, utilisation=1))
        if "trainer.num_nodes" in overrides
    ]
    assert shared == [16, 16]  # 8 and 16 processes; more than 16 cannot share it


@pytest.mark.slow
def test_the_program_prints_a_table_and_writes_the_numbers(tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "plan.json"
    arguments = [f"model.source={tiny_model}", "stage=mntp", "trainer=fsdp", "trainer.devices=8", f"output={output}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "plan.py"), *arguments, "search=false"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stderr
    assert "activations" in done.stdout and "steps an hour at 40% of 989 TFLOP/s" in done.stdout
    found = json.loads(output.read_text())
    assert found["fits"] and found["needs"]["tokens"] == 32 * 512  # stage.global_batch_size, over eight devices


def test_what_does_not_fit_ends_in_one_line(tiny_model: Path) -> None:
    setup, room = planned(f"model.source={tiny_model}", "trainer=gpu", "gpu.memory_gib=1.51")
    made = plan(setup, room, search=False)
    assert not made.fits
    message = str(refuse(setup, made, search=False))
    assert re.match(r"does not fit: [\d.]+ GiB a device at the peak, and it has 1.5 GiB; search=true", message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer=fsdp"], "trainer.devices=auto: say how many there will be"),
        (["task=ner"], "plans are of stages that train a model"),
        (["trainer=gpu", "utilisation=2"], "utilisation=2: "),
        (["trainer=gpu", "trainer.devices=4"], "trainer.strategy=auto: for 4 processes choose trainer=ddp or fsdp"),
        (["trainer=gpu", "+gpu.memory=4"], "gpu.memory: no such setting"),
    ],
)
def test_settings_that_cannot_be_planned_are_told(overrides: list[str], message: str) -> None:
    with pytest.raises(L2VError, match=re.escape(message)):
        planned("model=llama3-8b", *overrides)


def test_zero_keeps_shares_of_what_is_trained() -> None:
    from l2v.planning.zero import needs_of

    setup = Specification(**TINY, lora=False).setup()
    two, three = (
        needs_of(dataclasses.replace(setup, sharing=sharing, devices=8, on_gpu=True)) for sharing in ("zero2", "zero3")
    )
    assert two.memory["weights"] == 2 * two.parameters and three.memory["weights"] == two.parameters // 4
    assert two.memory["optimizer"] == three.memory["optimizer"] == 12 * two.trained // 8
    assert two.loading == three.loading == two.weights == 4 * two.parameters  # as they are trained without an adapter


def test_processes_that_accumulate_batches_share_gradients_once_a_step() -> None:
    setup = Specification(**TINY, sharing="ddp").setup()
    once, twice, four = (
        measure(dataclasses.replace(setup, trainer={**setup.trainer, "accumulate_grad_batches": batches})).sent
        for batches in (1, 2, 4)
    )
    assert [twice, four] == pytest.approx([once, once], rel=0.01) and once > 0


def test_what_is_trained_without_an_adapter_is_written_in_float32() -> None:
    setup = Specification(**TINY, lora=False).setup()
    setup = dataclasses.replace(setup, model=dataclasses.replace(setup.model, dtype="bfloat16"))
    made = plan(setup, Room(80, None, 1), search=False)
    assert made.encoder == 4 * made.needs.parameters


def test_a_stage_whose_rows_are_not_known_is_told() -> None:
    setup, room = planned("model=llama3-8b", "trainer=gpu", "stage=distillation", "data.train.vectors=x")
    with pytest.raises(L2VError, match="plans are of mntp, simcse and supervised"):
        plan(setup, room, search=False)


@pytest.mark.slow
def test_planned_and_real_memory_agree(tmp_path: Path) -> None:
    """benchmarks/plan has more of them; here one of which the libraries' own 10 to 20 MB are little."""
    specification = Specification(hidden=256, layers=4, vocabulary=2000, rows=48, length=128)
    (tmp_path / "specification.json").write_text(json.dumps(dataclasses.asdict(specification)))
    memory = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system does not tell the most memory of a process (Linux does)")
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "plan" / "real.py")),
            *(str(tmp_path / "specification.json"), str(tmp_path / "result.json")),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **memory, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    real = json.loads((tmp_path / "result.0.json").read_text())["peak"]
    assert measure(specification.setup()).training == pytest.approx(real, rel=0.1)
