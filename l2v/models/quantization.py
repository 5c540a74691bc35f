"""The frozen weights in 4 bits, for QLoRA (arXiv 2305.14314), by bitsandbytes."""

from typing import Any, Literal

import torch
from torch import nn

from l2v.errors import L2VError
from l2v.extras import require
from l2v.models.bidirectional import decoder_layers

Quantization = Literal["nf4"]


def check_quantization(device: torch.device | str) -> None:
    """See that 4 bits can be had, before a model is loaded.

    Raises:
        L2VError: no GPU, or bitsandbytes is not installed.
    """
    if torch.device(device).type != "cuda":
        raise L2VError(
            f"model.quantization=nf4 needs a CUDA GPU, and the model would be on {torch.device(device).type}; set it "
            "to null, or choose a machine and trainer= with a GPU"
        )
    _bitsandbytes()


def quantize(decoder: nn.Module, quantization: Quantization) -> None:
    """Replace the linear layers inside the decoder's layers by 4-bit ones (NormalFloat, doubly quantized), in place.

    Embeddings, norms and the output head stay as they are. A layer is quantized when it is next moved to a device, one
    at a time; it computes in the dtype that its weights had.
    """
    bnb = _bitsandbytes()
    replaced = 0
    for layer in decoder_layers(decoder):
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    setattr(parent, name, _in_4_bits(bnb, child, quantization))
                    replaced += 1
    if not replaced:
        raise L2VError(
            f"model.quantization={quantization}: the decoder has no linear layers to quantize; set it to null"
        )
    decoder.is_loaded_in_4bit = True  # type: ignore[assignment]  # where PEFT looks


def _in_4_bits(bnb: Any, linear: nn.Linear, quantization: Quantization) -> nn.Module:
    four = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=linear.weight.dtype,
        quant_type=quantization,
        device="meta",
    )
    four.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type=quantization, module=four)
    four.bias = linear.bias
    return four


def _bitsandbytes() -> Any:
    require("model.quantization=nf4", "bitsandbytes")
    import bitsandbytes

    return bitsandbytes
