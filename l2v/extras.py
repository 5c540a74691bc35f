"""Packages that only some settings need, and the command that installs them."""

import importlib.util

from l2v.errors import L2VError

_EXTRAS = {
    "bitsandbytes": "qlora",
    "deepspeed": "deepspeed",
    "faiss": "faiss",
    "gensim": "demo",
    "liger_kernel": "liger",
    "mteb": "mteb",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "sentence_transformers": "mteb",
    "tensorboard": "tensorboard",
}
"""Module -> the extra of pyproject.toml that brings it."""


def require(setting: str, *modules: str) -> None:
    """Fail where a module is not installed; none is imported.

    Args:
        setting: what needs them, as the user wrote it.
        modules: top-level names.

    Raises:
        L2VError: with the command that installs what is missing.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise L2VError(f"{setting}: needs the package {', '.join(missing)}{install_hint(missing[0])}")


def install_hint(module: str) -> str:
    """The command that installs a module, to be put behind an error; empty for one of l2v's own."""
    package = module.partition(".")[0]
    if package == "l2v":
        return ""
    return f"; `pip install 'l2v[{_EXTRAS[package]}]'`" if package in _EXTRAS else f"; `pip install {package}`"
