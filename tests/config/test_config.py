"""Every model x stage x trainer composes and is checked; a mistake ends in one line that names the override."""

import importlib
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from launch import ROOT, composed
from omegaconf import OmegaConf
from quick_folder import write_quick_folder
from taught_folder import write_taught_folder

from l2v import config as configs
from l2v.config import search
from l2v.config.compose import with_model_of_init
from l2v.config.messages import one_line
from l2v.errors import L2VError
from l2v.losses.contrastive import Contrastive

CONF = ROOT / "conf"


def options(group: str) -> list[str]:
    return list(search.options(group, [CONF]))


def build(*overrides: str) -> Any:
    return configs.build_training(configs.plain(composed("train", ["name=test", *overrides])))


ENCODERS = [
    model for model in options("model") if OmegaConf.load(CONF / f"model/{model}.yaml").get("kind") == "encoder"
]
DECODERS = [model for model in options("model") if model not in ENCODERS]
QUICK = ["smollm2-135m-embedded", "llama3-8b", ENCODERS[0]]
SHARDED = ["deepspeed_zero2", "deepspeed_zero3", "fsdp"]


def quick_and_slow(models: list[str]) -> list[Any]:
    """A few models for every run of the tests; the others, which take the same settings, are marked as slow."""
    return [pytest.param(model, marks=() if model in QUICK else pytest.mark.slow) for model in models]


@pytest.fixture(scope="session")
def e5(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Override: a folder with the names of the E5 files."""
    folder = tmp_path_factory.mktemp("e5")
    for name in yaml.safe_load((CONF / "data" / "e5.yaml").read_text())["sets"]:
        (folder / f"{name}.jsonl").write_text("{}\n")
    return f"data.folder={folder}"


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides: texts, and a folder of vectors of them."""
    folder = tmp_path_factory.mktemp("taught")
    (folder / "texts.txt").write_text("a text\n")
    return write_taught_folder(folder / "vectors", folder / "texts.txt")


@pytest.mark.parametrize("model", quick_and_slow(DECODERS))
def test_every_model_stage_and_trainer_composes(model: str, e5: str, taught: list[str]) -> None:
    embedded = model.endswith("embedded")
    texts = "WikipediaExcerpt" if embedded else "HubTexts"
    sources = {"supervised": ("TripletMix", "data=e5", [e5]), "distillation": ("TaughtTexts", "data=taught", taught)}
    for stage, trainer in itertools.product([s for s in options("stage") if s != "word"], options("trainer")):
        if stage == "distillation" and trainer in ("fsdp", "deepspeed_zero3"):
            continue
        kind, chosen, given = sources.get(stage, (texts, "", []))
        data = [chosen, *given] if embedded and given else given
        training = build(f"model={model}", f"stage={stage}", f"trainer={trainer}", *data)
        assert training.stage.name == stage
        assert type(training.train).__name__ == kind
        assert training.adapter is not None and training.adapter.rank == 16


@pytest.mark.slow
@pytest.mark.parametrize("model", quick_and_slow(options("model")))
def test_every_model_task_and_trainer_composes(model: str) -> None:
    for task, trainer in itertools.product(options("task"), options("trainer")):
        if trainer in SHARDED:
            continue
        training = build(f"model={model}", f"task={task}", f"trainer={trainer}")
        assert training.stage.name == "word" and training.stage.task == task
        assert type(training.train).__name__ == type(training.test).__name__ == "HubWords"
        assert training.adapter is None and (training.model.kind == "encoder") == (model in ENCODERS)


@pytest.mark.parametrize("model", ENCODERS)
def test_an_encoder_is_for_the_word_stage_only(model: str) -> None:
    for stage in ("mntp", "simcse"):
        with pytest.raises(L2VError, match=f"model.kind=encoder: stage={stage} makes encoders of decoders"):
            build(f"model={model}", f"stage={stage}")


@pytest.mark.parametrize("model", DECODERS)
def test_a_model_chooses_its_trainer(model: str) -> None:
    assert build(f"model={model}").trainer["accelerator"] == ("cpu" if model.endswith("embedded") else "gpu")


@pytest.mark.parametrize("group", ["adapter", "data", "logger", "quirks"])
def test_every_other_option_composes(group: str, tmp_path: Path, e5: str, taught: list[str]) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a text\n")
    words = {"conll": "a X I-NP O\n", "conllu": "1\ta\ta\tX\tX\n"}
    for option, line in words.items() if group == "data" else ():
        texts.with_suffix(f".{option}").write_text(line)
        files = [f"data.{part}.files={texts.with_suffix(f'.{option}')}" for part in ("train", "validation", "test")]
        assert type(build(f"data={option}", "task=pos", *files).test).__name__ == "ColumnWords"
    data = {
        "files": [f"data.{part}.files={texts}" for part in ("train", "validation")],
        "e5": ["stage=supervised", e5],
        "triplets": ["stage=supervised", e5],
        "taught": ["stage=distillation", *taught],
        "languages": ["data.languages=[de,en]"],
    }
    for option in options(group):
        if option in ("conll", "conllu", "conll2003"):
            continue  # of stage=word
        training = build(f"{group}={option}", f"runs_dir={tmp_path}", *data.get(option, []))
        assert (training.adapter is None) == (group == "adapter" and option == "none")
        assert len(training.loggers) == (1 if group == "logger" and option != "csv" else 0)


@pytest.mark.parametrize("name", [name for name in options("experiment")])
def test_every_experiment_composes(name: str, e5: str) -> None:
    more = {"word_level": ["task=ner", "row=uni"], "sample_efficiency": ["data=e5", e5]}
    build(f"experiment={name}", *more.get(name, []))


@pytest.mark.parametrize("name", options("recipe"))
def test_every_stage_of_every_recipe_composes(name: str, tmp_path: Path) -> None:
    config = composed("recipe", [f"recipe={name}"])
    (tmp_path / "triplets.jsonl").write_text('{"query": "a", "positive": "b", "negative": ["c"]}\n')
    (tmp_path / "texts.txt").write_text("a\nb\n")
    write_taught_folder(tmp_path / "vectors", tmp_path / "texts.txt")
    for key, place in (("triplets", "."), ("texts", "texts.txt"), ("vectors", "vectors")):
        if OmegaConf.is_missing(config, key):
            config[key] = str(tmp_path / place)
    recipe = configs.plain(config)
    for stage, overrides in recipe["stages"].items():
        few = ["data.held_out=5"] if "data=taught" in overrides else []
        assert build(*recipe["overrides"], *overrides, *few).stage.name == stage


@pytest.mark.parametrize("name", options("evaluation"))
def test_every_evaluation_suite_is_built(name: str, tmp_path: Path) -> None:
    from_files = ("quick", "quick_whole", "demo_sts", "sts_dev", "sts_languages")
    data = [f"evaluation.folder={write_quick_folder(tmp_path)}"] if name in from_files else []
    suite = configs.plain(composed("evaluate", [f"evaluation={name}", "encoder=none", *data]))["evaluation"]
    for task in configs.build(suite["tasks"], "evaluation.tasks").values():
        assert task.label and task.metric


def test_a_suite_of_several_languages_is_run_in_those_that_are_chosen(tmp_path: Path) -> None:
    given = ["evaluation=sts_languages", "encoder=none", f"evaluation.folder={write_quick_folder(tmp_path)}"]

    def tasks(*overrides: str) -> dict[str, Any]:
        return configs.build_tasks(configs.plain(composed("evaluate", [*given, *overrides]))["evaluation"])

    assert list(tasks()) == ["en", "de", "fr", "zh"]
    assert list(tasks("evaluation.languages=[zh,de]")) == ["zh", "de"]
    assert tasks("evaluation.instructions.de=Suche")["de"].instruction == "Suche"
    assert len({task.instruction for task in tasks().values()}) == 4
    with pytest.raises(L2VError, match="evaluation.languages: no es here; the suite has en, de, fr, zh"):
        tasks("evaluation.languages=[es]")


def test_the_papers_settings_are_the_defaults_of_full_size_models(e5: str) -> None:
    mntp, simcse = build("model=llama3-8b", "stage=mntp").stage, build("model=llama3-8b", "stage=simcse").stage
    assert (mntp.max_steps, mntp.batch_size, mntp.block_length, mntp.learning_rate) == (1000, 32, 512, 5e-5)
    assert (mntp.masking_strategy, mntp.masking_probability, mntp.mask_token) == ("bert", 0.2, "_")
    assert (simcse.max_steps, simcse.batch_size, simcse.max_length, simcse.learning_rate) == (1000, 128, 128, 3e-5)
    assert (simcse.temperature, simcse.attention_dropout) == (0.05, 0.3)
    word = build("model=llama3-8b", "task=ner").stage
    assert (word.max_steps, word.batch_size, word.learning_rate, word.dropout) == (1500, 8, 5e-4, 0.1)
    assert (word.schedule, word.warmup_steps, word.layers) == ("linear", 0, -1)
    supervised = build("model=llama3-8b", "stage=supervised", e5).stage
    assert (supervised.max_steps, supervised.batch_size, supervised.max_length) == (1000, 64, 512)
    assert (supervised.learning_rate, supervised.warmup_steps, supervised.negatives) == (2e-4, 300, 1)
    assert supervised.loss == Contrastive(temperature=0.02)


def test_settings_of_a_stage_come_with_the_model_and_yield_to_the_command_line() -> None:
    mistral = build("model=mistral-7b", "stage=mntp").stage
    assert (mistral.masking_strategy, mistral.masking_probability) == ("all", 0.8)
    assert build("model=mistral-7b", "stage=mntp", "stage.masking_probability=0.2").stage.masking_probability == 0.2
    assert build("model=s-llama-1.3b", "stage=simcse").stage.batch_size == 32
    assert build("model=s-llama-1.3b", "stage=simcse", "quirks=llm2vec").stage.batch_size == 128


def test_a_step_has_as_many_rows_on_any_number_of_processes() -> None:
    def rows(processes: int, batches: int, *overrides: str) -> int:
        stage = build("model=llama3-8b", "stage=simcse", *overrides).stage
        stage.share_batch(processes, batches)
        return stage.batch_size

    assert rows(1, 1) == 128 and rows(8, 2) == 8 and rows(64, 1) == 2
    assert rows(64, 1, "stage.batch_size=128") == 128
    for processes in (3, 128):
        with pytest.raises(
            L2VError, match=f"global_batch_size=128: {processes} processes x 1 batches a step need a mul"
        ):
            rows(processes, 1)


@pytest.mark.parametrize("stage", ["mntp", "simcse", "supervised"])
@pytest.mark.parametrize(
    ("overrides", "gpu", "passes"),
    [
        ([], False, (1024, 2048)),
        (["trainer=ddp", "trainer.accelerator=cpu"], False, (1024, 2048)),
        (["trainer.precision=32-true"], False, (1024, 1024)),
        (["trainer=cpu"], True, (1024, 2048)),
        (["trainer=gpu"], True, None),
        (["trainer=ddp"], True, None),
        (["trainer=fsdp", "trainer.accelerator=cpu"], False, None),
        (["trainer=deepspeed_zero2", "trainer.accelerator=cpu"], False, (1024, 2048)),
        (["trainer=deepspeed_zero3", "trainer.accelerator=cpu"], False, None),
        (["stage.micro_batch_tokens=64"], False, (64, 64)),
        (["stage.micro_batch_tokens=null"], False, None),
    ],
)
def test_passes_of_a_cpu_are_small(
    stage: str,
    overrides: list[str],
    gpu: bool,
    passes: tuple[int, int] | None,
    e5: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MNTP keeps the activations of one pass, contrastive stages those of all, unless by GradCache. bf16 takes half."""
    importlib.import_module("peft")  # with bitsandbytes, which looks for a GPU when it is imported
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    data = ["data=e5", e5] if stage == "supervised" else []
    short, long = passes or (None, None)
    assert build(f"stage={stage}", *data, *overrides).stage.micro_batch_tokens == (short if stage == "mntp" else long)
    if stage != "mntp" and passes:
        assert build(f"stage={stage}", "stage.grad_cache=true", *data, *overrides).stage.micro_batch_tokens == short


def test_the_quirks_of_the_reference_are_opt_in(e5: str) -> None:
    assert build("stage=mntp").stage.schedule_epochs is None
    quirky = build("stage=mntp", "quirks=llm2vec").stage
    assert (quirky.schedule_epochs, quirky.padding_side) == (3, "left")
    word = build("task=ner", "quirks=llm2vec").stage
    assert (word.schedule_epochs, word.max_steps) == (10, 3000)
    supervised = build("stage=supervised", "data=e5", e5, "quirks=llm2vec")
    assert supervised.stage.separator == "; " and not supervised.train.symmetric_documents


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: file.relative_to(CONF).as_posix())
def test_every_config_says_what_it_is(file: Path) -> None:
    assert file.read_text().startswith("#") or file.parent.name == "help"
    assert OmegaConf.load(file) is not None


MISTAKES = [
    (["stage.max_steps=abc"], "stage.max_steps=abc: .*integer"),
    (["stage.learning_rate=-1"], "stage.learning_rate=-1: .*greater than 0"),
    (["stage.masking_probability=1.5"], "stage.masking_probability=1.5"),
    (["stage.masking_strategy=foo"], "stage.masking_strategy=foo: .*'bert' or 'all'"),
    (["+stage.max_step=3"], r"stage.max_step: no such setting \(did you mean max_steps\?\)"),
    (["+trainer.max_stepz=3"], r"trainer.max_stepz: no such setting \(did you mean max_steps\?\)"),
    (["+trainer.max_steps=3"], "trainer.max_steps: set by l2v; use stage.max_steps"),
    (["+trainer.max_epochs=3"], "trainer.max_epochs: set by l2v; use stage.max_steps"),
    (["+trainer.limit_train_batches=2"], "trainer.limit_train_batches: set by l2v; use stage.max_steps and data="),
    (["+trainer.fast_dev_run=true"], "trainer.fast_dev_run: set by l2v; use stage.max_steps"),
    (["+trainer.enable_checkpointing=false"], "trainer.enable_checkpointing: set by l2v; use keep_checkpoints="),
    (["+trainer.max_time=soon"], "trainer.max_time=soon: expected days, hours, minutes and seconds"),
    (["trainer.strategy=ddp_spawn"], "trainer.strategy=ddp_spawn: hands the model to .*; choose trainer=ddp"),
    (["trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches=0: .*greater than or equal to 1"),
    (["trainer.precision=bf16-true"], "trainer.precision=bf16-true: .*choose bf16-mixed"),
    (["seed=4294967296"], "seed=4294967296: .*less than or equal to 4294967295"),
    (["+data.worker=1"], r"data.worker: no such setting \(did you mean workers\?\)"),
    (["+adapter.rank=3"], "adapter.rank: no such setting"),
    (["trainer.precision=bf17"], "trainer.precision=bf17"),
    (["model.quantization=int3"], "model.quantization=int3: .*'nf4'"),
    (["model.quantization=nf4", "trainer=fsdp"], "model.quantization: weights in 4 bits cannot be sharded"),
    (["model.quantization=nf4", "adapter=none"], "model.quantization: weights in 4 bits cannot be trained"),
    (["adapter.lora.rank=0"], "adapter.lora.rank must be at least 1"),
    (["adapter.init=old"], "adapter.init=old: expected new, continue or simcse"),
    (["model.dtype=float8"], "model.dtype=float8"),
    (["+model.stages.mntp.batch=3"], r"model.stages.mntp.batch: no such setting \(did you mean batch_size\?\)"),
    (["data=files"], "data.train.files: must be given"),
    (["data=triplets"], "data.train.files: must be given"),
    (["data=e5"], "data.folder: must be given"),
    (
        ["stage=supervised", "data=triplets", "data.train.hub=a/b", "data.held_out=0"],
        "data.held_out=0: nothing to validate on",
    ),
    (
        ["stage=supervised", "data=triplets", "data.train.hub=a/b", "data.validation.hub=a/c"],
        "data.validation has .*set data.held_out=0",
    ),
    (["stage=supervised", "data=triplets", "data.train.hub=a/b", "data.train.alpha=2"], "data.train.alpha=2"),
    (["data=triplets", "+data.sets.a.shar=1"], r"sets.a.shar: no such setting \(did you mean share\?\)"),
    (["data=triplets", "+data.sets.a.share=2"], "sets.a.share=2: .*less than or equal to 1"),
    (["stage=simcse", "stage.batch_size=1"], "stage.batch_size must be at least 2"),
    (
        ["stage=simcse", "trainer=deepspeed_zero3", "stage.micro_batch_tokens=100"],
        "stage.micro_batch_tokens: ZeRO-3 takes the weights apart again .* choose trainer=fsdp or deepspeed_zero2",
    ),
    (["trainer.strategy=deepspeed_stage_3"], "trainer.strategy=deepspeed_stage_3: choose trainer=deepspeed_zero2 or"),
    (["trainer.strategy=fsdp"], "trainer.strategy=fsdp: choose trainer=fsdp"),
    (
        ["trainer=ddp", "trainer.strategy._target_=lightning.pytorch.strategies.DeepSpeedStrategy"],
        "DeepSpeedStrategy: choose trainer=deepspeed_zero2 or deepspeed_zero3",
    ),
    (["trainer=deepspeed_zero2", "trainer.strategy.stage=1"], "trainer.strategy.stage=1"),
    (["trainer=fsdp", "+trainer.strategy.tensor_parallel_size=2"], "tensor_parallel_size: no such setting"),
    (["stage.batch_size=null", "stage.global_batch_size=null"], "stage.global_batch_size, stage.batch_size: give one"),
    (["stage.micro_batch_tokens=atuo"], "stage.micro_batch_tokens=atuo: .*number of tokens, null .* or auto"),
    (["quirks=llm2vec", "stage.schedule_steps=100"], "exclude each other"),
    (
        ["stage=simcse", "stage.grad_cache=true", "stage.micro_batch_tokens=null"],
        "stage.grad_cache=true needs stage.micro_batch_tokens",
    ),
    (["stage=supervised"], "data=: stage=supervised trains on triplets, as data=triplets"),
    (["model=llama3-8b", "stage=supervised"], "data.folder: must be given"),
    (
        ["stage=mntp", "data=triplets", "data.train.hub=owner/name"],
        "data=: stage=mntp trains on texts, as data=files",
    ),
    (["stage=supervised", "stage.adapter_init=old"], "adapter.init=old: expected new, continue or simcse"),
    (["stage=supervised", "stage.loss.temperature=0"], "stage.loss.temperature=0: .*greater than 0"),
    (["stage=supervised", "stage.loss.hard_negatives=some"], "stage.loss.hard_negatives=some: .*'all' or 'own'"),
    (["stage=supervised", "stage.loss.directions=[query-doc]"], "stage.loss.directions=.*'document-query'"),
    (["stage=supervised", "stage.loss.dimensions=[0]"], "stage.loss.dimensions=.*greater than or equal to 1"),
    (["stage=mntp", "stage.max_steps=true"], "stage.max_steps=true: expected a number"),
    (["stage=mntp", "model.layers=true"], "model.layers=true: expected a number"),
    (["stage=mntp", "model.layers=0"], "model.layers=0: expected a number of layers"),
    (["stage=supervised", "stage.loss.dimension_weights=[1]"], "stage.loss.dimension_weights: expected one for each"),
    (["stage=supervised", "+stage.loss.scale=50"], "stage.loss.scale: no such setting"),
    (["stage=supervised", "stage.sts.file=no.csv"], "no.csv: no such file of scored sentence pairs"),
    (
        ["stage=supervised", "stage.grad_cache=true", "stage.micro_batch_tokens=null"],
        "stage.grad_cache=true needs stage.micro_batch_tokens",
    ),
    (["seed=-1"], "seed=-1"),
    (["data.workers=-1"], "data.workers=-1"),
    (["stage._target_=l2v.stages.mntp.MTNP"], "l2v.stages.mntp has no MTNP"),
    (["stage._target_=l2v.stages.nope.MNTP"], "cannot be imported"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=[" ".join(o) for o, _ in MISTAKES])
def test_a_wrong_setting_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(L2VError, match=message) as error:
        build(*overrides)
    assert "\n" not in str(error.value)


TYPOS = [
    (["stage.max_step=3"], "stage.max_step: no such setting (did you mean stage.max_steps?)"),
    (
        ["stage=simcs"],
        "stage=simcs: no such option (did you mean simcse?); there are distillation, mntp, simcse, supervised",
    ),
    (["model=llama3-8"], "model=llama3-8: no such option (did you mean llama3-8b?)"),
    (["trainr=gpu"], "trainr: no such setting (did you mean trainer"),
    (
        ["data.folder=x"],
        "data.folder: not a setting of the chosen options; it is one of data=conll2003, data=e5, data=triplets",
    ),
    (["debgu=true"], "debgu: no such setting (did you mean debug?)"),
    (["foo"], "foo: cannot be read; an override is key=value"),
    (["stage.max_steps="], "stage.max_steps"),
]


@pytest.mark.parametrize(("overrides", "line"), TYPOS, ids=[" ".join(o) for o, _ in TYPOS])
def test_a_typo_is_told_in_one_line(overrides: list[str], line: str) -> None:
    with pytest.raises(Exception) as error:
        build(*overrides)
    told = one_line(error.value, [CONF])
    assert told.startswith(line)
    assert "\n" not in told


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


_OF_A_GPU = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139.80 GiB of which 15.38 MiB is "
    "free. Process 1308 has 66.00 MiB memory in use. Process 1357 has 6.21 GiB memory in use. Including non-PyTorch "
    "memory, this process has 11.72 GiB memory in use. Of the allocated memory 9.96 GiB is allocated by PyTorch."
)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            torch.OutOfMemoryError(_OF_A_GPU),
            "(20.00 MiB were asked for, of GPU 0's 139.80 GiB 15.38 MiB were free; other processes hold 6.3 GiB)",
        ),
        (
            torch.OutOfMemoryError(_OF_A_GPU.replace("6.21 GiB", "9.00 MiB")),
            "(20.00 MiB were asked for, of GPU 0's 139.80 GiB 15.38 MiB were free)",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "(CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`)",
        ),
        (MemoryError("Unable to allocate 8.00 GiB for an array"), "(Unable to allocate 8.00 GiB for an array)"),
    ],
)
def test_a_shortage_of_memory_is_told_with_what_takes_less(error: Exception, told: str) -> None:
    line = one_line(error, [CONF])
    assert line.startswith(f"out of memory {told}. For training, `l2v plan`") and "\n" not in line


def test_what_torch_says_when_the_machine_has_no_more_is_a_shortage_of_memory() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.int8)
    assert one_line(error.value, [CONF]).startswith("out of memory (")


def test_an_error_on_the_command_line_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    done = command("train.py", f"runs_dir={tmp_path}", "model.source=/no/such/model")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip() == (
        "error: model.source=/no/such/model: no such file or folder (and not a hub id of the form owner/name)"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = command("train.py", f"runs_dir={tmp_path}", "model.source=/no/such/model", "debug=true")
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize("name", ["train.py", "recipe.py", "evaluate.py"])
def test_help_shows_groups_and_imports_no_torch(name: str) -> None:
    code = f"import sys, runpy; sys.argv = ['{name}', '--help']\ntry: runpy.run_path('{name}', run_name='__main__')\n"
    code += "finally: assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    done = command("-c", code)
    assert done.returncode == 0, done.stderr
    assert "Groups" in done.stdout and "Examples" in done.stdout


def test_init_from_a_run_takes_its_model(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"overrides": ["model=llama3-8b", "model.dtype=float16", "seed=3"]}')
    arguments = ["stage=simcse", f"init_from={tmp_path}"]
    assert with_model_of_init(arguments) == [*arguments, "model=llama3-8b", "model.dtype=float16"]
    given = [*arguments, "model=mistral-7b"]
    assert with_model_of_init(given) == given


def test_overrides_on_resume_change_the_saved_config() -> None:
    saved = {"stage": {"max_steps": 10, "batch_size": 3}, "trainer": {"devices": 1}}
    new = OmegaConf.create({"stage": {"max_steps": 20, "batch_size": 32}, "trainer": {"devices": 4, "strategy": "ddp"}})
    merged = configs.merge_overrides(
        saved, new, ["resume=runs/x", "stage.max_steps=20", "trainer=ddp"], Path("runs/x"), "resume=runs/x"
    )
    assert merged == {"stage": {"max_steps": 20, "batch_size": 3}, "trainer": {"devices": 4, "strategy": "ddp"}}
