"""Environments of the peers: virtual environments of their own, built at the first use and kept in the cache."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from l2v.progress import say
from l2v.runs.files import cache_folder

LLM2VEC = [
    "llm2vec==0.2.3",
    "transformers==4.44.2",
    "peft==0.12.0",
    "accelerate==0.34.2",
    "datasets==2.21.0",
    "numpy<2",
    "pyarrow<18",
    "pandas<3",
]
"""The newest transformers that llm2vec accepts, and what was current with it."""
SENTENCE_TRANSFORMERS = ["sentence-transformers==6.2.0", "transformers==5.23.0", "peft==0.21.2"]
PEERS = {"llm2vec": LLM2VEC, "sentence-transformers": SENTENCE_TRANSFORMERS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What decides how environments are built."""
    parser.add_argument("--environments", type=Path, default=cache_folder("peers"), help="default: %(default)s")
    parser.add_argument("--python", default=sys.executable, help="of which they are made: 3.10 to 3.12")
    parser.add_argument("--torch", default=f"torch=={torch.__version__.split('+')[0]}", help="default: %(default)s")
    parser.add_argument("--torch-index", help="index to take torch from, e.g. one with CPU builds")


def environment(peer: str, arguments: argparse.Namespace) -> Path:
    """The Python of a peer's environment, which is built where it is not there."""
    folder: Path = arguments.environments / peer
    python = folder / "bin" / "python"
    done = folder / "built"
    if not done.exists():
        say(f"building the environment of {peer} in {folder}")
        subprocess.run([arguments.python, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        index = ["--index-url", arguments.torch_index] if arguments.torch_index else []
        subprocess.run([*pip, *index, arguments.torch], check=True)
        subprocess.run([*pip, *PEERS[peer]], check=True)
        done.touch()
    return python


def call(
    python: Path | str,
    script: Path,
    arguments: Sequence[str | Path],
    *,
    timeout: float | None = None,
    **variables: str,
) -> None:
    """Run a script in an environment, without this one's packages and without a network.

    Args:
        python: of the environment.
        script: to run.
        arguments: its arguments.
        timeout: seconds until it is killed.
        variables: of its own, beside those of this process.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-W", "ignore", script, *arguments]
    subprocess.run(command, check=True, timeout=timeout, env=kept | {"HF_HUB_OFFLINE": "1"} | variables)
