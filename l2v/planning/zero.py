"""What DeepSpeed's ZeRO takes: the stage as it runs on shapes, and DeepSpeed's own layout of what is trained.

DeepSpeed's engine writes into memory by address, so it does not run on shapes. Its layout is known (Rajbhandari et al.
2020, arXiv 1910.02054, section 5; DeepSpeed's documentation of the memory requirements): weights in 16 bits, of which
ZeRO-3 keeps a share; a share of the gradients in 16 bits, and a bucket in which they are reduced; a share of 12 bytes a
trained number for AdamW (weights, and two moments, in float32).
"""

import dataclasses

from l2v.planning.measure import Needs, measure
from l2v.planning.setup import Setup
from l2v.training.strategies import FullySharded

_BUCKET = 200_000_000
"""Numbers that are reduced at once: Lightning's ``reduce_bucket_size``."""
_LIVE = 1_000_000_000
"""Weights that ZeRO-3 may hold gathered: ``stage3_max_live_parameters``."""


def needs_of(setup: Setup) -> Needs:
    """Measured, or under ZeRO measured and computed.

    Raises:
        L2VError: parts that do not go together.
    """
    if not setup.is_zero:
        return measure(setup)
    is_three = setup.sharing == "zero3"
    # the engine makes all weights 16-bit: no autocast
    model = dataclasses.replace(setup.model, dtype="bfloat16")
    alike = dataclasses.replace(
        setup,
        model=model,
        trainer={**setup.trainer, "precision": "bf16-true"},
        trained_dtype="bfloat16",
        sharing="fsdp" if is_three else "one",
        strategy=FullySharded if is_three else None,
        devices=setup.devices if is_three else 1,
        nodes=setup.nodes if is_three else 1,
    )
    found, n = measure(alike), setup.processes
    trained, kept = found.trained, 2 * found.parameters
    memory = {
        **found.memory_of_pass,
        "weights": kept // n if is_three else kept,
        "gradients": 2 * trained // n + 2 * min(_BUCKET, trained),
        "optimizer": 12 * trained // n,
    }
    if is_three:
        memory["gathers"] = max(memory["gathers"], min(2 * _LIVE, kept))
    # without an adapter each process loads float32 weights, and the engine rounds them
    loaded = kept if setup.adapter is not None else 2 * kept
    return dataclasses.replace(
        found,
        memory=memory,
        loading=loaded,
        weights=found.weights if setup.adapter is not None else loaded,
        tokens=found.tokens // alike.processes * n,
        sent=found.sent if is_three else 4.0 * trained,
    )
