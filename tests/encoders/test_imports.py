"""Encoding texts takes torch and transformers, and nothing that only training or the programs need."""

import subprocess
import sys
from pathlib import Path


def test_encoding_texts_imports_neither_lightning_nor_hydra_nor_wandb(tiny_model: Path) -> None:
    code = (
        "import sys; from l2v import Encoder; "
        f"print(Encoder.from_pretrained({str(tiny_model)!r}).encode(['a text', 'another']).shape[0]); "
        "names = {name.partition('.')[0] for name in sys.modules}; "
        "print(sorted(names & {'lightning', 'pytorch_lightning', 'hydra', 'omegaconf', 'wandb', 'matplotlib'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["2", "[]"]
