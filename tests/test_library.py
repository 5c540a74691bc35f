"""l2v as a library is a guest: it changes nothing for the rest of the process, and prints nothing."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launch import ROOT

from l2v.process import level_of

SNAPSHOT = """
import contextlib, csv, ctypes, json, logging, os, random, signal, sys, threading, warnings
# what these change is theirs
import datasets, huggingface_hub.utils, lightning, matplotlib, numpy, peft, pyarrow, torch, transformers, mteb
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as of_transformers
import transformers.integrations.sdpa_attention

model = sys.argv[1]
AutoModel.from_pretrained(model), AutoTokenizer.from_pretrained(model)
calls = []
real = ctypes.CDLL
class Library(real):
    def __getattr__(self, name):
        if name == "mallopt":
            calls.append(name)
        return super().__getattr__(name)
ctypes.CDLL = Library

def snapshot():
    loggers = {name: logger for name, logger in logging.root.manager.loggerDict.items() if hasattr(logger, "level")}
    return {
        "attention": {name: str(function) for name, function in AttentionInterface().items()},
        "levels": {name: logger.level for name, logger in loggers.items() if logger.level},
        "handlers": {name: str(logger.handlers) for name, logger in loggers.items() if logger.handlers},
        "root": [logging.root.level, str(logging.root.handlers), logging.root.manager.disable],
        "warnings": [str(one) for one in warnings.filters],
        "environment": dict(os.environ),
        "signals": {number.name: str(signal.getsignal(number)) for number in signal.valid_signals()
                    if isinstance(number, signal.Signals)},
        "csv": csv.field_size_limit(),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "torch": [torch.is_grad_enabled(), str(torch.get_default_dtype()), torch.get_float32_matmul_precision(),
                  torch.backends.cuda.matmul.allow_tf32, torch.are_deterministic_algorithms_enabled(),
                  torch.backends.mkldnn.flags.__name__],
        "random": [torch.get_rng_state().tolist(), str(random.getstate()), str(numpy.random.get_state())],
        "path": list(sys.path),
        "folder": os.getcwd(),
        "bars": [of_transformers.is_progress_bar_enabled(), huggingface_hub.utils.are_progress_bars_disabled()],
        "mallopt": list(calls),
        "hooks": [str(sys.excepthook), str(threading.excepthook), str(logging.getLoggerClass())],
    }

before = snapshot()
print("work begins", file=sys.stderr)
{work}
after = snapshot()
print(json.dumps([key for key in before if before[key] != after[key]]))
"""

WORK = {
    "encode": """
from l2v import Encoder
encoder = Encoder.from_pretrained(model, device="cpu")
encoder.encode(["A text.", "Another one."], show_progress_bar=False)
""",
    "bars that were off": """
from huggingface_hub.utils import disable_progress_bars
disable_progress_bars()
before = snapshot()
from l2v.models.loading import quiet
with quiet():
    pass
""",
    "files": """
from l2v.data.readers import records
from pathlib import Path
path = Path(os.environ["L2V_CACHE"]) / "rows.csv"
path.write_text("text\\n" + "long " * 100_000 + "\\nshort\\n")
rows = records(path, ["text"], "files")
assert len(next(rows).values["text"]) == 500_000
assert csv.field_size_limit() == before["csv"], "while the file is read"
assert len(list(rows)) == 1
""",
    "no such model": """
from l2v.errors import L2VError
from l2v.runs.locations import locate, model_file
try:
    model_file(locate("nobody/nothing"), "config.json")
except L2VError:
    pass
""",
}


def changed(work: str, model: Path, tmp_path: Path) -> list[str]:
    """What a piece of work has changed of its process, and left changed. It prints nothing."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "L2V_CACHE": str(tmp_path)}
    code = SNAPSHOT.replace("{work}", work)
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr.endswith("work begins\n"), done.stderr
    *printed, found = done.stdout.splitlines()
    assert not printed
    return json.loads(found)


QUICK = "encode"  # each is a process of its own


@pytest.mark.parametrize("work", [pytest.param(work, marks=() if work == QUICK else pytest.mark.slow) for work in WORK])
def test_a_library_call_leaves_the_process_as_it_was(work: str, tiny_model: Path, tmp_path: Path) -> None:
    assert changed(WORK[work], tiny_model, tmp_path) == []


TRAIN = """
import l2v.cli  # of the programs
from l2v.models.quiet import quiet
with quiet(), contextlib.suppress(ImportError):
    import deepspeed  # transformers does, to save a model, and deepspeed sets its logger up
before = snapshot()
from launch import Tiny
from pathlib import Path
import pytest
with pytest.MonkeyPatch.context() as patch:
    tiny = Tiny(Path(os.environ["L2V_CACHE"]), Path(model), patch)
    run = tiny.train("run", "simcse", "stage.max_steps=5", "stage.attention_dropout=0.3")
assert (run / "encoder" / "config.json").exists()
"""


@pytest.mark.slow
def test_training_without_a_program_works_and_leaves_seeds_alone_behind(tiny_model: Path, tmp_path: Path) -> None:
    assert set(changed(TRAIN, tiny_model, tmp_path)) <= {"environment", "random"}


@pytest.mark.slow
def test_a_program_sets_its_process_up(tiny_model: Path, tmp_path: Path) -> None:
    found = changed("from l2v.process import set_up_process; set_up_process()", tiny_model, tmp_path)
    assert set(found) == {"attention", "levels", "handlers", "mallopt"}


def test_a_level_is_put_back_after_an_error() -> None:
    logger = logging.getLogger("of.another")
    with pytest.raises(ValueError), level_of("of.another"):
        assert logger.level == logging.ERROR
        raise ValueError
    assert logger.level == logging.NOTSET


def imported(code: str) -> list[str]:
    """Which of the slow libraries a piece of code imports."""
    code += "; import sys; print([name for name in ('torch', 'transformers', 'lightning') if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout.replace("'", '"'))


def test_importing_l2v_takes_no_time() -> None:
    assert imported("import l2v") == []


def test_a_program_without_models_imports_no_torch() -> None:
    assert imported("from l2v.process import set_up_process; set_up_process(models=False)") == []
