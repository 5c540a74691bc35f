"""l2v's side: its stages in Lightning's loop and its encoder, as users run them, around random weights."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "speed"))
sys.path.insert(0, str(Path(__file__).parent))
import steps
from l2v_tasks import Steps, stage_and_batch

from l2v.encoders.encoder import Encoder
from l2v.kernels import masked_loss as fused_loss
from l2v.kernels.linear import keep_products
from l2v.kernels.speed import speed_up
from l2v.models.adapters import Lora
from l2v.models.backbone import Backbone
from l2v.models.bidirectional import decoder_layers, set_attention
from l2v.models.proof import prove
from l2v.process import set_up_process
from l2v.runs.locations import Source
from l2v.training.trainer import make_trainer, quiet_lightning


def load(folder: Path, options: dict[str, Any], *, attention_dropout: float = 0.0) -> Backbone:
    """A bidirectional decoder with random weights, made on the device: as ``Backbone.load``, without a checkpoint."""
    config = AutoConfig.from_pretrained(folder)
    config.attention_dropout = attention_dropout
    with torch.device(steps.device()):
        whole = AutoModelForCausalLM.from_config(config, dtype=steps.dtype())
    decoder, head = whole.base_model, whole.get_output_embeddings()
    set_attention(decoder, "bidirectional")
    speed_up(whole)
    decoder.set_attn_implementation(options["attention"])
    proof = prove(decoder, "bidirectional")
    if checkpointing := options.get("checkpointing"):
        kept = {"context_fn": keep_products} if checkpointing == "selective" else {}
        decoder.gradient_checkpointing_enable({"use_reentrant": False, **kept})
    source = Source(name=str(folder), path=str(folder))
    return Backbone(decoder, AutoTokenizer.from_pretrained(folder), head=head, source=source, proof=proof).eval()


def compile_layers(backbone: Backbone, options: dict[str, Any]) -> None:
    """Each layer by torch.compile, where a variant asks for it: one graph serves them all, and any length of texts."""
    if backend := options.get("compile"):
        for layer in decoder_layers(backbone):
            layer.compile(dynamic=True, backend=backend)


def encode(model: Path, inputs: dict[str, Any], options: dict[str, Any]) -> list[dict[str, float]]:
    backbone = load(model, options)
    compile_layers(backbone, options)
    encoder = Encoder(backbone)
    texts = inputs["encode_mixed"]
    return steps.repeat(lambda: encoder.encode(texts, batch_size=options["batch"]), options)


def train(task: str, model: Path, inputs: dict[str, Any], options: dict[str, Any]) -> list[dict[str, float]]:
    if not options.get("liger", True):
        fused_loss.liger = lambda: None
    backbone = load(model, options, attention_dropout=0.3 if task == "simcse" else 0.0)
    count = options["warmup"] + options["steps"]
    stage: Any
    stage, batch = stage_and_batch(task, inputs, backbone, count)
    if task == "mntp":
        stage.micro_batch_tokens = options["rows"] * batch["input_ids"].shape[1]
    else:
        stage.micro_batch_tokens, stage.grad_cache = options["pass_tokens"], options["grad_cache"]
    backbone.add_adapter(Lora())
    compile_layers(backbone, options)
    stage.attach(backbone, 0)
    clock = steps.Clock(warmup=options["warmup"])
    on_gpu = steps.device() == "cuda"
    trainer = make_trainer(
        {
            "accelerator": "gpu" if on_gpu else "cpu",
            "devices": 1,
            "precision": "bf16-mixed" if on_gpu else "32-true",
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 10,
        },
        max_steps=count,
        callbacks=[Steps(clock)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    with quiet_lightning():
        trainer.fit(stage, DataLoader([batch] * count, batch_size=None))
    return clock.rows


def matrix_rate(model: Path, inputs: dict[str, Any], options: dict[str, Any]) -> list[dict[str, float]]:
    """``flops`` and ``seconds`` of products at the model's shapes, 8,192 rows, random numbers."""
    config = AutoConfig.from_pretrained(model)
    hidden, inner = config.hidden_size, config.intermediate_size
    rows = []
    for inputs_, outputs in ((hidden, hidden), (hidden, inner), (inner, hidden)):
        x = torch.randn(8192, inputs_, device=steps.device(), dtype=steps.dtype())
        weight = torch.randn(outputs, inputs_, device=steps.device(), dtype=steps.dtype())

        def several(x: torch.Tensor = x, weight: torch.Tensor = weight) -> None:
            for _ in range(10):
                torch.nn.functional.linear(x, weight)

        best = min(row["seconds"] for row in steps.repeat(several, {"warmup": 1, "steps": 3}))
        rows.append({"flops": 10 * 2.0 * 8192 * inputs_ * outputs, "seconds": best})
    return rows


TASKS: dict[str, steps.Task] = {
    "matrix_rate": matrix_rate,
    "encode_mixed": encode,
    **{
        task: lambda *given, task=task: train(task, *given)  # type: ignore[misc]
        for task in ("mntp", "simcse", "supervised_16x")
    },
}

if __name__ == "__main__":
    set_up_process()
    steps.main(TASKS)
