"""A model of full size on a CPU, from random weights to an exported encoder, and the memory that each step takes.

    python benchmarks/full_size/run.py --size 8b --folder /data/full_size

The model is a Llama 3 of 8B parameters (or fewer, to try it out) in bfloat16, with random weights, written shard by
shard.
Then, each in a process of its own and with the programs that a user has: one step of MNTP, one of SimCSE on the merged
MNTP adapter, vectors of a few texts, and an export of the whole encoder. ``--check`` compares the export's vectors with
those before. It needs 2.1 times the weights on the disk, and 1.2 times in memory; the folder is deleted at the end.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results.json"
SIZES: dict[str, dict[str, Any]] = {
    "8b": {
        **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False},
    },
    "1b": {
        **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True},
    },
    "30m": {
        **{"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8},
        **{"num_key_value_heads": 8, "head_dim": 64, "vocab_size": 512, "tie_word_embeddings": False},
    },
}
"""Those of Llama 3 8B and Llama 3.2 1B, and one to try the commands with."""
TEXTS = [
    "A cat sat on the mat, and the cat looked at the dog.",
    "It rained all day, so the dog stayed in the house.",
    "An encoder reads a whole sentence and gives one vector for it.",
    "The quick brown fox jumps over the lazy dog.",
]
_SHARD_BYTES = 2 * 2**30


def make_model(folder: Path, size: str) -> int:
    """Write a random Llama and a small tokenizer, and return the bytes of its weights. It holds one shard at a time."""
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)

    settings = {"rope_theta": 500000.0, "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 8192}
    config = AutoConfig.for_model("llama", **SIZES[size], **settings, dtype="bfloat16")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    numbers = np.random.default_rng(0)
    places: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    total, number = 0, 0

    def write() -> None:
        nonlocal number
        number += 1
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, parameter in model.named_parameters():  # a tied head comes once
        if "norm" in name:
            weight = torch.ones(parameter.shape, dtype=torch.bfloat16)
        else:  # of the usual spread, 0.02; uniform, as that is ten times faster to draw
            drawn = torch.from_numpy(numbers.integers(-128, 128, parameter.numel(), dtype=np.int8))
            weight = (drawn.view(parameter.shape).to(torch.bfloat16) + 0.5) * (0.02 * 3**0.5 / 128)
        shard[name] = weight
        total += weight.nbytes
        if sum(one.nbytes for one in shard.values()) > _SHARD_BYTES:
            write()
    write()
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def measured(name: str, command: list[str]) -> dict[str, Any]:
    """Run a command; its seconds, and the peak of its memory in bytes, mapped files included and left out."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    begin = time.monotonic()
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=sys.stderr)
    anonymous = 0

    def watch() -> None:
        nonlocal anonymous
        status = Path(f"/proc/{process.pid}/status")
        while process.returncode is None:
            try:
                found = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")]
            except OSError:
                return
            anonymous = max([anonymous, *(int(line.split()[1]) * 1024 for line in found)])
            time.sleep(0.2)

    threading.Thread(target=watch, daemon=True).start()
    _, code, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise SystemExit(f"{name} failed: {' '.join(command)}")
    seconds = round(time.monotonic() - begin, 1)
    found = {"step": name, "seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024, "peak_anonymous_bytes": anonymous}
    print(json.dumps(found), flush=True)
    return found


def steps(folder: Path) -> dict[str, list[str]]:
    """The commands, in order."""
    python = sys.executable
    train = [python, "train.py", "model=llama3-8b", f"model.source={folder / 'model'}", "model.template=null"]
    train += ["trainer=cpu", "trainer.precision=32-true", f"runs_dir={folder / 'runs'}", "export=adapter", "data=files"]
    train += [f"data.train.files={folder / 'texts.txt'}", f"data.validation.files={folder / 'texts.txt'}"]
    train += ["stage.max_steps=1", "stage.validation_rows=2", "stage.learning_rate=1e-3"]
    runs = folder / "runs"
    return {
        "MNTP, one step": [*train, "stage=mntp", "stage.batch_size=1", "stage.block_length=16", "name=mntp"],
        "SimCSE, one step": [
            *(*train, "stage=simcse", "stage.batch_size=2", "stage.max_length=12", "name=simcse"),
            f"init_from={runs / 'mntp'}",
        ],
        "encode": [
            *(python, "encode.py", f"encoder={runs / 'simcse'}", "dtype=bfloat16", "trainer=cpu"),
            *(f"files={folder / 'texts.txt'}", f"output={folder / 'vectors'}"),
        ],
        "export": [
            *(python, "-m", "l2v.cli", "export", f"run={runs / 'simcse'}", "dtype=bfloat16"),
            f"output={folder / 'exported'}",
        ],
    }


def check(folder: Path) -> dict[str, Any]:
    """The export's vectors beside those of the run."""
    python = sys.executable
    arguments = [f"encoder={folder / 'exported'}", "dtype=bfloat16", "trainer=cpu", f"files={folder / 'texts.txt'}"]
    found = measured("encode by the export", [python, "encode.py", *arguments, f"output={folder / 'again'}"])
    import pyarrow.parquet as parquet

    one, other = (parquet.read_table(folder / name / "shard-00000.parquet") for name in ("vectors", "again"))
    if not one.equals(other):
        raise SystemExit("the export gives other vectors")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="30m")
    parser.add_argument("--folder", type=Path, required=True, help="a new one, for the model and the runs")
    parser.add_argument("--only", choices=("make", "run"), help="make the model, or go on with one that was made")
    parser.add_argument("--check", action="store_true", help="see that the export gives the same vectors")
    parser.add_argument("--write", action="store_true", help=f"into {RESULTS.relative_to(ROOT)}")
    given = parser.parse_args()
    folder: Path = given.folder.resolve()
    if given.only != "run":
        from l2v.runs.hashes import source_hash
        from l2v.runs.locations import locate

        make_model(folder / "model", given.size)
        (folder / "texts.txt").write_text("\n".join(TEXTS) + "\n")
        source_hash(locate(str(folder / "model")))  # kept, so that no step is timed with it
        if given.only == "make":
            return
    try:
        weights = sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors"))
        found = [measured(name, command) for name, command in steps(folder).items()]
        found += [check(folder)] if given.check else []
    finally:
        shutil.rmtree(folder)
    result = {"size": given.size, "weight_bytes": weights, "steps": found}
    print(json.dumps(result, indent=2))
    if given.write:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
