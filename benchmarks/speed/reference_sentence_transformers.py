"""sentence-transformers' side, on the encoder folder that l2v wrote. Never imports l2v."""

from pathlib import Path
from typing import Any

import timing
from peft import LoraConfig
from sentence_transformers import SentenceTransformer
from sentence_transformers.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import batch_to_device


def encode(task: str) -> timing.Task:
    def run(model: Path, inputs: dict[str, Any], steps: int, precision: timing.Precision) -> timing.Clock:
        encoder = SentenceTransformer(str(model), device="cpu", model_kwargs={"dtype": precision})
        encoder.encode(inputs[task][:8], batch_size=32, show_progress_bar=False)
        clock = timing.Clock(warmup=0)
        for _ in range(steps):
            clock.begin()
            encoder.encode(inputs[task], batch_size=32, show_progress_bar=False)
            clock.end()
        return clock

    return run


def simcse(model: Path, inputs: dict[str, Any], steps: int, precision: timing.Precision) -> timing.Clock:
    encoder = SentenceTransformer(str(model), device="cpu", config_kwargs={"attention_dropout": 0.3})
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    encoder.add_adapter(LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, bias="none", target_modules=targets))
    encoder.train()
    loss = MultipleNegativesRankingLoss(encoder, scale=20.0)

    def forward() -> Any:
        columns = [batch_to_device(encoder.tokenize(inputs["simcse"]), encoder.device) for _ in range(2)]
        return loss(columns, None)

    return timing.repeat(timing.optimize(forward, encoder, precision), steps)


TASKS = {**{task: encode(task) for task in ("encode_short", "encode_mixed", "encode_long")}, "simcse": simcse}

if __name__ == "__main__":
    timing.main(TASKS, ["sentence-transformers", "torch", "transformers", "peft"])
