"""An encoder's decoder as an ONNX graph, in the place where sentence-transformers looks for one."""

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from l2v.encoders.encoder import Encoder
from l2v.errors import L2VError, first_line
from l2v.extras import require
from l2v.pooling import pool
from l2v.text.tokenization import Batch, pad, tokenize

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_TEXTS = [
    "A dog barks.",
    "The committee, which met twice that winter, could not agree on whether the bridge was worth the money.",
    "Yes",
    "In 1869 Mendeleev left gaps in his table for elements that nobody had seen.",
]
_LARGEST_DIFFERENCE = 1e-4
_LARGEST_FILE = 1_500_000_000
"""Bytes; a file of protobuf ends at 2 GB, and larger weights go into a file beside it."""


def check_packages() -> None:
    """Raise an L2VError where a package is missing."""
    require("onnx=true", *_PACKAGES)


def write_onnx(encoder: Encoder, file: Path) -> float:
    """Write the decoder as ONNX and run it with onnxruntime on a few texts.

    The graph maps ``input_ids`` and ``attention_mask`` (batch, length) int64 to ``last_hidden_state`` (batch, length,
    hidden) float32, for any batch and length.

    Args:
        encoder: in float32.
        file: ``<folder>/onnx/model.onnx``.

    Returns:
        the largest difference of a number in a vector of length 1, to those of the encoder.

    Raises:
        L2VError: the model cannot be exported, or its vectors are others.
    """
    decoder = encoder.backbone.decoder
    was_training = decoder.training
    decoder.eval()
    batches = _batches(encoder)
    example = batches[0]
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                _States(decoder),
                (example["input_ids"], example["attention_mask"]),
                dynamo=True,
                input_names=["input_ids", "attention_mask"],
                output_names=["last_hidden_state"],
                dynamic_shapes=(shape, shape),
                verbose=False,
            )
    except Exception as error:  # of torch.export, onnxscript or the model, which have many
        raise L2VError(
            f"onnx=true: {decoder.config.model_type} cannot be exported ({first_line(error)}); set it to false"
        ) from error
    finally:
        decoder.train(was_training)
    file.parent.mkdir(parents=True, exist_ok=True)
    size = sum(parameter.numel() * parameter.element_size() for parameter in decoder.parameters())
    program.save(str(file), external_data=size > _LARGEST_FILE)
    del program
    difference = max(_difference(encoder, file, batch) for batch in batches)
    if not difference <= _LARGEST_DIFFERENCE:
        raise L2VError(
            f"onnx=true: onnxruntime gives other vectors (by {difference:.1e}, allowed {_LARGEST_DIFFERENCE:g}); set "
            "it to false"
        )
    return difference


class _States(nn.Module):
    """Token states from ids and mask, by position: what the graph is made of."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state


def _batches(encoder: Encoder) -> list[Batch]:
    """Texts of several lengths together, and one alone, without padding."""
    tokenizer = encoder.backbone.tokenizer
    tokens = tokenize(_TEXTS, tokenizer, max_length=max(encoder.max_length, 2))
    return [pad(tokens, tokenizer.pad_token_id), pad(tokens[1:2], tokenizer.pad_token_id)]


def _difference(encoder: Encoder, file: Path, batch: Batch) -> float:
    states = torch.from_numpy(run_onnx(file, batch["input_ids"].numpy(), batch["attention_mask"].numpy()))
    with torch.no_grad():
        expected = encoder.backbone(batch["input_ids"], batch["attention_mask"])
    a, b = (
        nn.functional.normalize(pool(x, batch["pool_mask"], batch["attention_mask"], encoder.pooling), dim=-1)
        for x in (states, expected)
    )
    return float((a - b).abs().max())


def run_onnx(file: Path, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """Token states (batch, length, hidden) by onnxruntime on a CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": input_ids, "attention_mask": attention_mask})[0]


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the reports of the exporter."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
