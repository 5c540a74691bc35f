"""l2v's side: the same encoder and training loop that users run."""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))
import timing

from l2v.data.collate import PaddedTexts, Row, TripletBatch
from l2v.encoders.encoder import Encoder
from l2v.losses.contrastive import Contrastive
from l2v.models.adapters import Lora
from l2v.models.backbone import Backbone
from l2v.process import set_up_process
from l2v.stages.mntp import MNTP
from l2v.stages.simcse import SimCSE
from l2v.stages.stage import Stage, pass_tokens
from l2v.stages.supervised import Supervised
from l2v.text.tokenization import tokenize
from l2v.training.trainer import make_trainer, quiet_lightning

SMALL_PASS_TOKENS = 768
"""``stage.micro_batch_tokens`` of MNTP where memory is to be saved. Elsewhere it is what a CPU gets."""

PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed"}
"""``trainer.precision``."""


class Steps(Callback):
    """Reads the clock before and after each step."""

    def __init__(self, clock: timing.Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *args: Any) -> None:
        self.clock.begin()

    def on_train_batch_end(self, *args: Any) -> None:
        self.clock.end()


def encode(task: str) -> timing.Task:
    def run(model: Path, inputs: dict[str, Any], steps: int, precision: timing.Precision) -> timing.Clock:
        encoder = Encoder.from_pretrained(model, device="cpu", dtype=precision)
        encoder.encode(inputs[task][:8])
        clock = timing.Clock(warmup=0)
        for _ in range(steps):
            clock.begin()
            encoder.encode(inputs[task])
            clock.end()
        return clock

    return run


def train(task: str, *, small: bool) -> timing.Task:
    """A stage in Lightning's loop. ``small`` saves memory: MNTP goes in micro-batches, the others compute some
    activations twice."""

    def run(model: Path, inputs: dict[str, Any], steps: int, precision: timing.Precision) -> timing.Clock:
        backbone = Backbone.load(
            str(model),
            with_head=task == "mntp",
            attention_dropout=0.3 if task == "simcse" else None,
            gradient_checkpointing="selective" if small and task != "mntp" else False,
        )
        warmup = 0 if task == "supervised_16x" else 1  # a step of minutes needs none
        count = warmup + steps
        stage, batch = stage_and_batch(task, inputs, backbone, count, small=small, precision=precision)
        torch.manual_seed(0)
        backbone.add_adapter(Lora())
        stage.attach(backbone, 0)
        clock = timing.Clock(warmup)
        trainer = make_trainer(
            {"accelerator": "cpu", "devices": 1, "precision": PRECISION[precision], "gradient_clip_val": 1.0},
            max_steps=count,
            callbacks=[Steps(clock)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        with quiet_lightning():
            trainer.fit(stage, DataLoader([batch] * count, batch_size=None))
        return clock

    return run


def stage_and_batch(
    task: str,
    inputs: dict[str, Any],
    backbone: Backbone,
    steps: int,
    *,
    small: bool = False,
    precision: timing.Precision = "float32",
) -> tuple[Stage, dict[str, Any]]:
    """The stage of a task, and the batch of its inputs."""
    settings: dict[str, Any] = {"name": task, "max_steps": steps, "learning_rate": 5e-5}
    tokenizer = backbone.tokenizer
    padding = int(tokenizer.pad_token_id)  # type: ignore[arg-type]
    if task == "mntp":
        ids, labels = (torch.tensor(inputs["mntp"][name]) for name in ("ids", "labels"))
        batch = {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": torch.ones_like(ids),
            "tokens": ids.numel(),
        }
        passes = SMALL_PASS_TOKENS if small else _pass_tokens(precision, keeps_all=False)
        return MNTP(batch_size=len(ids), block_length=ids.shape[1], micro_batch_tokens=passes, **settings), batch
    if task == "simcse":
        tokens = tokenize(inputs[task], tokenizer, max_length=128)
        rows: list[Row] = [
            ({"input_ids": row.input_ids, "text_begin": row.text_begin}, n) for n, row in enumerate(tokens)
        ]
        batch = PaddedTexts(padding, "right", views=2)(rows)
        stage: Stage = SimCSE(
            batch_size=len(rows),
            attention_dropout=0.3,
            micro_batch_tokens=_pass_tokens(precision, keeps_all=True),
            **settings,
        )
        return stage, batch
    triplets = inputs[task]
    queries = tokenize(
        [row["query"] for row in triplets],
        tokenizer,
        max_length=512,
        instructions=[inputs["instruction"]] * len(triplets),
    )
    documents = [tokenize([row["positive"], row["negative"]], tokenizer, max_length=512) for row in triplets]
    rows = [
        (
            {
                "query": query.input_ids,
                "query_begin": query.text_begin,
                "documents": [text.input_ids for text in pair],
                "document_begins": [text.text_begin for text in pair],
                "query_hash": 3 * n,
                "document_hashes": [3 * n + 1, 3 * n + 2],
                "document_scores": [float("nan"), float("nan")],
                "score": float("nan"),
                "set": 0,
            },
            n,
        )
        for n, (query, pair) in enumerate(zip(queries, documents, strict=True))
    ]
    grad_cache = task == "supervised_16x"
    stage = Supervised(
        batch_size=len(rows),
        loss=Contrastive(),
        micro_batch_tokens=_pass_tokens(precision, keeps_all=not grad_cache),
        grad_cache=grad_cache,
        **settings,
    )
    return stage, TripletBatch(padding, "right", negatives=1)(rows)


def _pass_tokens(precision: timing.Precision, *, keeps_all: bool) -> Any:
    """What ``stage.micro_batch_tokens=auto`` stands for here."""
    return pass_tokens("auto", on_cpu=True, sharding="none", precision=PRECISION[precision], keeps_all=keeps_all)


TASKS = {
    **{task: encode(task) for task in ("encode_short", "encode_mixed", "encode_long")},
    **{task: train(task, small=False) for task in ("mntp", "simcse", "supervised", "supervised_16x")},
    **{f"{task}.small": train(task, small=True) for task in ("mntp", "simcse", "supervised")},
}

if __name__ == "__main__":
    set_up_process()
    timing.main(TASKS, ["l2v", "torch", "transformers", "peft", "lightning"])
