"""What both sides are given, and l2v's side of it."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from hydra import initialize_config_dir
from numpy.typing import NDArray

from l2v import config as configs
from l2v.data.wikipedia import WikipediaExcerpt
from l2v.encoders.encoder import Encoder
from l2v.losses.info_nce import info_nce
from l2v.losses.masked_tokens import masked_token_loss
from l2v.models.backbone import Backbone
from l2v.pooling import PoolingName
from l2v.runs.files import read_json, write_json

sys.path.insert(0, str(Path(__file__).parents[1]))
from masked import masked_blocks

ROOT = Path(__file__).parents[2]
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query:"
SEPARATOR = " "
"""What llm2vec puts between an instruction and its text. Evaluations give it instructions that end in a colon."""
POOLINGS: dict[str, PoolingName] = {"mean": "mean", "weighted_mean": "weighted_mean", "eos_token": "last_token"}
"""llm2vec's name: l2v's name."""
EOS = " </s>"
"""What llm2vec appends to a text of any Llama or Mistral before it takes the last token."""
ATTENTIONS = ("bidirectional", "causal")
ODD = Path(__file__).with_name("odd_texts.json")


def wikipedia_texts(count: int = 56, longest: int = 340) -> list[str]:
    """Pieces of Wikipedia articles, of 1 to ``longest`` words evenly spread in log scale, and some odd texts."""
    paragraphs = [p for a in WikipediaExcerpt("held_out").articles() for p in a.paragraphs]
    step = len(paragraphs) // count
    texts = []
    for number, words in enumerate(np.geomspace(1, longest, count).round().astype(int)):
        source = " ".join(paragraphs[number * step : (number + 1) * step]).split(" ")
        texts.append(" ".join(source[number : number + words]))
    return texts + read_json(ODD)


@dataclass(frozen=True)
class Schedule:
    """A stage of llm2vec's training, as far as its learning rate goes."""

    stage: str
    learning_rate: float
    batch_size: int
    """Rows a step, over all processes."""
    warmup_steps: int
    rows: int
    """Of the training data."""


SCHEDULES = {
    "mntp": Schedule("mntp", 5e-5, 32, 0, 234_567),
    "simcse": Schedule("simcse", 3e-5, 128, 0, 1_000_000),
    "supervised": Schedule("simcse", 2e-4, 512, 300, 1_501_184),
}
"""The settings of llm2vec's train_configs; rows: blocks of WikiText-103 and E5 triplets about as many as there are."""
STEPS = 1000
KEPT_STEPS = (1, 2, 299, 300, 301, 500, 1000)
"""Steps whose learning rate is kept in the results and in ``tests/reference``."""


def learning_rates(schedule: Schedule) -> NDArray[np.float64]:
    """The learning rate after each of 1000 steps under ``quirks=llm2vec``, from the stage's own optimizer."""
    overrides = [
        "quirks=llm2vec",
        f"stage={schedule.stage}",
        f"stage.learning_rate={schedule.learning_rate}",
        f"stage.batch_size={schedule.batch_size}",
        f"stage.warmup_steps={schedule.warmup_steps}",
        f"stage.max_steps={STEPS}",
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        stage = configs.build_training(configs.compose("train", overrides)).stage
    stage.register_parameter("weight", torch.nn.Parameter(torch.zeros(1)))
    data = SimpleNamespace(train_rows=range(schedule.rows))
    stage.trainer = SimpleNamespace(datamodule=data, world_size=1, accumulate_grad_batches=1)
    settings = stage.configure_optimizers()
    optimizer, scheduler = settings["optimizer"], settings["lr_scheduler"]["scheduler"]
    found = []
    for _ in range(STEPS):
        optimizer.step()
        scheduler.step()
        found.append(scheduler.get_last_lr()[0])
    return np.array(found)


def without_bos(folder: Path, target: Path) -> Path:
    """A copy of a model folder whose tokenizer puts no special token first: llm2vec never pools that one."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    tokenizer = read_json(target / "tokenizer.json")
    write_json(target / "tokenizer.json", tokenizer | {"post_processor": None})
    return target


def encode(encoder: Encoder, texts: list[str], pooling: str, instruction: str | None) -> NDArray[np.float32]:
    """(texts, hidden), pooled as llm2vec's ``pooling`` does."""
    encoder.pooling = POOLINGS[pooling]
    if pooling == "eos_token":
        texts = [text.rstrip() + EOS for text in texts]
    return encoder.encode(texts, instruction=instruction, batch_size=8)


def masked_ids(folder: Path, texts: list[str], *, rows: int, length: int) -> dict[str, NDArray[np.int64]]:
    """Blocks of running text with a fifth of the tokens hidden, as MNTP trains on: ``ids`` and ``labels``."""
    tokenizer = Backbone.load(str(folder)).tokenizer
    masked, labels = masked_blocks(tokenizer, texts, rows=rows, length=length)
    return {"ids": masked.numpy(), "labels": labels.numpy()}


def random_vectors(rows: int = 16, hidden: int = 64) -> dict[str, NDArray[np.float32]]:
    """Queries with positives near them, and hard negatives somewhat less near."""
    generator = np.random.default_rng(0)
    queries = generator.standard_normal((rows, hidden))
    positives, negatives = (queries + far * generator.standard_normal((rows, hidden)) for far in (1.5, 2.5))
    vectors = {"queries": queries, "positives": positives, "negatives": negatives}
    return {name: value.astype(np.float32) for name, value in vectors.items()}


@torch.inference_mode()
def losses(folder: Path, inputs: dict[str, NDArray]) -> dict[str, float]:
    """MNTP on ``ids`` and ``labels``; contrastive losses of ``queries``, ``positives`` and ``negatives``."""
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    backbone = Backbone.load(str(folder), with_head=True)
    ids, labels = tensors["ids"], tensors["labels"]
    queries, positives = tensors["queries"], tensors["positives"]
    documents = torch.cat([positives, tensors["negatives"]])
    return {
        "mntp": float(masked_token_loss(*backbone.predict_masked(ids, torch.ones_like(ids), labels))),
        "simcse": float(info_nce(queries, positives, temperature=1 / 20)),
        "supervised": float(info_nce(queries, documents, temperature=1 / 50)),
    }
