"""One measurement in a process of its own: ``python measure.py SPEC FOLDER RESULT``.

SPEC is JSON: the ``kind``, a function below, and what it is given. Imports that cost memory are made where they are
needed: what a command started from here needs is then the command's alone.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "speed")]

Spec = dict[str, Any]
Found = dict[str, Any]
CPU = {"accelerator": "cpu", "devices": 1, "precision": "32-true", "gradient_clip_val": 1.0}
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


def prepare(spec: Spec, work: Path) -> Found:
    """The model's weights as l2v saves them, a tiny model with the same tokenizer, and texts."""
    import torch
    from speed.run import package_texts
    from transformers import AutoModelForCausalLM, LlamaConfig

    from l2v.encoders.encoder import Encoder
    from l2v.runs.files import write_json

    encoder = Encoder.from_pretrained(spec["model"], device="cpu")
    encoder.save(work / "model")
    tokenizer = encoder.backbone.tokenizer
    tiny = LlamaConfig(
        vocab_size=encoder.backbone.config.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,  # ten times the usual: the proof of attention must see a token move the others
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny).save_pretrained(work / "tiny")
    tokenizer.save_pretrained(work / "tiny")
    paragraphs, sentences = package_texts()
    write_json(work / "texts.json", {"words": " ".join(paragraphs).split(), "sentences": sentences})
    return {}


def encode(spec: Spec, work: Path) -> Found:
    """``Encoder.encode`` of texts of ``length`` tokens each, or of mixed lengths up to ``longest`` words."""
    import numpy as np
    import timing

    from l2v.encoders.encoder import Encoder
    from l2v.text.tokenization import tokenize

    draw = np.random.default_rng(0)
    words = _texts(work)["words"]
    if spec["length"] is None:
        # as in benchmarks/speed: a standard deviation of 0.8 in the logarithm, the median at 40 words
        lengths = np.exp(draw.normal(np.log(40), 0.8, spec["texts"])).round().clip(3, spec["longest"]).astype(int)
        most = 8 * spec["longest"]
    else:
        lengths = np.full(spec["texts"], 2 * spec["length"])  # a word has a token at least; what is over is cut
        most = spec["length"]
    begins = draw.integers(0, len(words), len(lengths))
    texts = [" ".join(_cut(words, begin, length)) for begin, length in zip(begins, lengths, strict=True)]
    encoder = Encoder.from_pretrained(work / "model", device="cpu")
    tokens = sum(len(row.input_ids) for row in tokenize(texts, encoder.backbone.tokenizer, max_length=most))
    encoder.encode(texts[:2], max_length=most)
    clock = timing.Clock(warmup=0)
    clock.begin()
    encoder.encode(texts, batch_size=spec["batch_size"], max_length=most)
    clock.end()
    seconds = clock.rows[0]["seconds"]
    return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds, "peak_mib": peak_mib()}


def train(spec: Spec, work: Path) -> Found:
    """Steps of a stage in Lightning's loop on one batch: the median of all but the first."""
    import timing
    import torch
    from lightning.pytorch.callbacks import Callback
    from torch.utils.data import DataLoader

    from l2v.models.adapters import Lora, trainable_parameters
    from l2v.models.backbone import Backbone
    from l2v.training.checkpoints import SaveLast
    from l2v.training.trainer import make_trainer, quiet_lightning

    class Steps(Callback):
        peak = 0.0

        def on_train_batch_start(self, *_: Any) -> None:
            clock.begin()

        def on_train_batch_end(self, *_: Any) -> None:
            clock.end()
            self.peak = peak_mib()  # without the checkpoint

    clock, counted = timing.Clock(), Steps()
    mntp = spec["stage"] == "mntp"
    backbone = Backbone.load(str(work / "model"), with_head=mntp, attention_dropout=None if mntp else 0.3)
    stage, batch = _stage_and_batch(spec, work, backbone)
    torch.manual_seed(0)
    backbone.add_adapter(Lora(rank=spec["rank"]))
    stage.attach(backbone, 0)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        checkpoint = Path(folder) / "last.ckpt"
        trainer = make_trainer(
            CPU, max_steps=stage.max_steps, callbacks=[counted, SaveLast(checkpoint, lambda _: None)], **QUIET
        )
        with quiet_lightning():
            trainer.fit(stage, DataLoader([batch] * stage.max_steps, batch_size=None))
        size = checkpoint.stat().st_size
    seconds = statistics.median(row["seconds"] for row in clock.rows)
    return {
        "tokens": batch["tokens"],
        "seconds": seconds,
        "tokens_per_second": batch["tokens"] / seconds,
        "peak_mib": counted.peak,
        "trainable": sum(parameter.numel() for parameter in trainable_parameters(stage).values()),
        "checkpoint_mib": size / 2**20,
    }


def _stage_and_batch(spec: Spec, work: Path, backbone: Any) -> tuple[Any, dict[str, Any]]:
    """Rows of exactly ``length`` tokens; simcse reads each twice."""
    import torch
    from masked import masked_blocks

    from l2v.data.collate import PaddedTexts
    from l2v.stages.mntp import MNTP
    from l2v.stages.simcse import SimCSE
    from l2v.text.tokenization import tokenize

    words, tokenizer = _texts(work)["words"], backbone.tokenizer
    rows, length = spec["rows"], spec["length"]
    settings: dict[str, Any] = {
        "name": spec["stage"],
        "batch_size": rows,
        "max_steps": spec["steps"] + 1,
        "learning_rate": 5e-5,
    }
    if spec["stage"] == "mntp":
        ids, labels = masked_blocks(tokenizer, _cut(words, 0, rows * length), rows=rows, length=length)
        batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), "tokens": ids.numel()}
        return MNTP(block_length=length, **settings), batch
    texts = [" ".join(_cut(words, 2 * length * row, 2 * length)) for row in range(rows)]
    tokens = tokenize(texts, tokenizer, max_length=length)
    collate = PaddedTexts(tokenizer.pad_token_id, "right", views=2)
    batch = collate([({"input_ids": t.input_ids, "text_begin": t.text_begin}, n) for n, t in enumerate(tokens)])
    stage = SimCSE(attention_dropout=0.3, micro_batch_tokens=spec["micro_batch_tokens"], **settings)
    return stage, batch


class _Reads:
    """In the place of a model: data need its tokenizer alone."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def train(self) -> "_Reads":
        return self

    def check_length(self, tokens: int, setting: str) -> None:
        """Any length."""


def data(spec: Spec, work: Path) -> Found:
    """A stage's data from a user's file, as ``train.py data=files`` reads them.

    ``batches`` is 0: the first start, which tokenizes into the cache. Else a later start, and so many batches.
    """
    import psutil
    from transformers import AutoTokenizer

    from l2v.data.datamodule import TokenData
    from l2v.data.texts import FileTexts
    from l2v.stages.mntp import MNTP
    from l2v.stages.simcse import SimCSE
    from l2v.training.trainer import make_trainer

    settings = {"name": spec["stage"], "batch_size": spec["rows"], "learning_rate": 5e-5}
    settings["max_steps"] = max(1, spec["batches"])
    stage: Any = (
        MNTP(block_length=spec["length"], **settings)
        if spec["stage"] == "mntp"
        else SimCSE(max_length=spec["length"], **settings)
    )
    stage.attach(_Reads(AutoTokenizer.from_pretrained(work / "model")), 0)
    stage.trainer = make_trainer(CPU, max_steps=stage.max_steps, **QUIET)
    files = [FileTexts(str(work / f"{name}.txt")) for name in ("corpus", "held_out")]
    found: Found = {"libraries_mib": _anonymous_mib(psutil.Process())}
    others = psutil.Process().children()
    begin = time.perf_counter()
    module = TokenData(stage, *files, workers=spec["workers"])
    module.prepare_data()
    if not spec["batches"]:
        return {**found, "seconds": time.perf_counter() - begin, "peak_mib": peak_mib()}
    module.setup("fit")
    loader = iter(module.train_dataloader())
    next(loader)
    found["first_batch_seconds"] = time.perf_counter() - begin
    own, workers = [_anonymous_mib(psutil.Process())], [0.0]
    begin = time.perf_counter()
    for number in range(1, spec["batches"]):
        next(loader)
        if number % 50 == 0 or number + 1 == spec["batches"]:
            own.append(_anonymous_mib(psutil.Process()))
            workers += [_private_mib(child) for child in psutil.Process().children() if child not in others]
    seconds = time.perf_counter() - begin
    return {
        **found,
        "rows": len(module.train_rows),
        "rows_per_second": spec["rows"] * (spec["batches"] - 1) / seconds,
        "peak_mib": peak_mib(),
        "anonymous_mib": max(own),
        "worker_private_mib": max(workers),
    }


def bulk(spec: Spec, work: Path) -> Found:
    """encode.py over a file, with a tiny model: what its memory grows with is not the model."""
    with tempfile.TemporaryDirectory(dir=work) as output:
        given = [f"encoder={work / 'tiny'}", f"files={work / 'corpus.txt'}", f"output={output}", "trainer=cpu"]
        seconds, peak = _command("encode.py", [*given, f"batch_size={spec['batch_size']}"])
    return {"seconds": seconds, "rows_per_second": spec["lines"] / seconds, "peak_mib": peak}


def train_processes(spec: Spec, work: Path) -> Found:
    """train.py in ``processes``, which share one global batch; DDP where there are several."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        given = [
            *(f"runs_dir={folder}", "name=run", "stage=mntp", f"model.source={work / 'model'}"),
            *("data=files", f"data.train.files={work / 'corpus.txt'}"),
            *(f"data.validation.files={work / 'held_out.txt'}", "stage.validation_rows=2", "stage.validate_every=1000"),
            *(f"stage.max_steps={spec['steps'] + 1}", f"stage.block_length={spec['length']}"),
            *(f"stage.batch_size={spec['rows'] // spec['processes']}", "trainer.log_every_n_steps=1"),
            *_processes(spec),
        ]
        seconds, peak = _command("train.py", given)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [row["train/tokens_per_second"] for row in map(json.loads, lines) if "train/tokens_per_second" in row]
    return {"seconds": seconds, "tokens_per_second": statistics.median(rates[1:]), "peak_mib": peak}


def encode_processes(spec: Spec, work: Path) -> Found:
    """encode.py in ``processes``: how fast shards follow each other, from when each process has written one."""
    words, length, count = _texts(work)["words"], spec["length"], spec["processes"]
    shard_rows = max(1, spec["texts"] // (8 * count))
    with tempfile.TemporaryDirectory(dir=work) as folder:
        texts = [" ".join(_cut(words, 2 * length * row, 2 * length)) for row in range(spec["texts"])]
        (Path(folder) / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
        given = [f"encoder={work / 'model'}", f"files={folder}/texts.txt", f"output={folder}/vectors"]
        given += [f"max_length={length}", f"shard_rows={shard_rows}", *_processes(spec)]
        seconds, peak = _command("encode.py", given)
        written = sorted(file.stat().st_mtime for file in Path(folder, "vectors").glob("shard-*.parquet"))
    rate = (spec["texts"] - count * shard_rows) * length / (written[-1] - written[count - 1])
    return {"seconds": seconds, "tokens_per_second": rate, "peak_mib": peak}


def _processes(spec: Spec) -> list[str]:
    several = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={spec['processes']}"]
    return [*(several if spec["processes"] > 1 else ["trainer=cpu"]), "trainer.precision=32-true"]


def _command(script: str, arguments: list[str]) -> tuple[float, float]:
    """Seconds of an entry point from start to end, and the peak of its largest process in MiB."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen([sys.executable, ROOT / script, *arguments], stdout=told, stderr=told)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begin
        if process.returncode:
            told.seek(0)
            raise SystemExit(f"{script} {' '.join(arguments)}: {told.read()[-2000:]}")
    return seconds, used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def peak_mib() -> float:
    """The most memory that this process has had."""
    import timing

    return timing.peak_mib()


def _anonymous_mib(process: Any) -> float:
    """Memory of a process that is no page of a file: the system cannot take it back. Elsewhere than on Linux, all."""
    status = Path(f"/proc/{process.pid}/status")
    return _of_status(status, "RssAnon") if status.exists() else process.memory_info().rss / 2**20


def _private_mib(process: Any) -> float:
    """Memory that a forked process has written to, and so shares with no other. Elsewhere than on Linux, all."""
    status = Path(f"/proc/{process.pid}/smaps_rollup")
    return _of_status(status, "Private_Dirty") if status.exists() else process.memory_info().rss / 2**20


def _of_status(status: Path, name: str) -> float:
    """MiB of a line that gives KiB."""
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name)) / 2**10


def _texts(work: Path) -> dict[str, list[str]]:
    return json.loads((work / "texts.json").read_text(encoding="utf-8"))


def _cut(words: list[str], begin: int, length: int) -> list[str]:
    """Running words, from the beginning again after the last."""
    begin %= len(words)
    return (words[begin:] + words * (length // len(words) + 1))[:length]


@contextlib.contextmanager
def corpus(work: Path, lines: int) -> Iterator[None]:
    """``corpus.txt`` and ``held_out.txt`` for as long as they are needed: sentences with a number each."""
    sentences = _texts(work)["sentences"]
    files = {"corpus": lines, "held_out": 200}
    try:
        for name, count in files.items():
            with (work / f"{name}.txt").open("w", encoding="utf-8") as file:
                for number in range(count):
                    file.write(f"{sentences[number % len(sentences)]} ({number})\n")
        yield
    finally:
        for name in files:
            (work / f"{name}.txt").unlink(missing_ok=True)


KINDS: dict[str, Callable[[Spec, Path], Found]] = {
    function.__name__: function for function in (prepare, encode, train, data, bulk, train_processes, encode_processes)
}


def main() -> None:
    from l2v.process import set_up_process

    set_up_process()
    spec, work, result = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    result.write_text(json.dumps(KINDS[spec["kind"]](spec, work)), encoding="utf-8")


if __name__ == "__main__":
    main()
