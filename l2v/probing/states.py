"""States of frozen models: computed once, kept in files that are memory mapped, shared by every probe."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from l2v.errors import L2VError
from l2v.models.backbone import Backbone, hidden_states, row_groups
from l2v.models.settings import DType
from l2v.probing.alignment import Aligned
from l2v.progress import say, track
from l2v.runs.files import cache_folder, read_json, write_json
from l2v.runs.ledger import Ledger
from l2v.text.tokenization import Tokens, pad

_VERSION = 1
"""Part of the cache's key: raise it when the same model and tokens would give other states."""
_FACTS = "facts.json"
_PROGRESS = "progress.json"
_SECONDS_BETWEEN_SAVES = 10.0


@dataclass(frozen=True)
class FrozenModel:
    """A model that is read and not trained. Its weights are loaded only where states are missing in the cache."""

    fingerprint: list[Any]
    """What pins its states: weights, attention, dtype."""
    tokenizer: PreTrainedTokenizerBase
    depth: int
    """Layers; states 0 are the embeddings, and states ``depth`` what the model gives out."""
    max_length: int
    """Tokens a row."""
    load: Callable[[], Backbone]


@dataclass(frozen=True)
class States:
    """Where a text's token states lie."""

    folder: Path
    tokens: int
    dtype: DType

    @staticmethod
    def of(frozen: FrozenModel, aligned: Aligned, dtype: DType) -> "States":
        """Keyed by the model and by the token ids, so by the data, the tokenizer and the longest row too."""
        digest = hashlib.sha256(json.dumps([_VERSION, frozen.fingerprint, dtype], default=str).encode())
        digest.update(aligned.ids.tobytes())
        digest.update(aligned.rows.tobytes())
        return States(cache_folder("states") / digest.hexdigest()[:24], len(aligned.ids), dtype)

    def file(self, layer: int) -> Path:
        return self.folder / f"layer-{layer}.bin"

    def facts(self) -> dict[str, Any]:
        """hidden (size), proof (of the attention), parameters, tokens_per_second."""
        return read_json(self.folder / _FACTS)

    def open(self, layer: int) -> Tensor:
        """(tokens, hidden), memory mapped."""
        hidden = self.facts()["hidden"]
        dtype = getattr(torch, self.dtype)
        flat = torch.from_file(str(self.file(layer)), shared=False, size=self.tokens * hidden, dtype=dtype)
        return flat.view(self.tokens, hidden)

    def missing(self, layers: Sequence[int]) -> list[int]:
        there = set(Ledger(self.folder).sealed(map(self.file, layers)))
        return [layer for layer in layers if self.file(layer) not in there]


def compute_states(
    frozen: FrozenModel,
    texts: Sequence[tuple[Aligned, States]],
    layers: Sequence[int],
    *,
    batch_tokens: int,
    show: bool,
) -> None:
    """Run the model over what the cache lacks.

    Rows run sorted by length, ``batch_tokens`` padded tokens at a time; each batch's states go straight to the files,
    so memory does not grow with the data. A pass that was broken off goes on where it was last saved (every 10 s), and
    two processes that need the same states wait for each other.

    Args:
        frozen: the model.
        texts: token rows, and where their states belong.
        layers: from 0 (embeddings) to ``frozen.depth``.
        batch_tokens: tokens a forward pass, padding included.
        show: a progress bar.

    Raises:
        L2VError: no space for the files, or a state that the dtype cannot hold.
    """
    backbone: Backbone | None = None
    for aligned, states in texts:
        if not states.missing(layers):
            continue
        states.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(states.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"{states.folder}: another process computes these states; waiting for it")
            lock.acquire()
        try:
            if missing := states.missing(layers):
                backbone = backbone or frozen.load().eval()
                _compute(backbone, aligned, states, missing, frozen.depth, batch_tokens, show)
        finally:
            lock.release()


@torch.inference_mode()
def _compute(
    backbone: Backbone,
    aligned: Aligned,
    states: States,
    layers: list[int],
    depth: int,
    batch_tokens: int,
    show: bool,
) -> None:
    dtype, hidden = getattr(torch, states.dtype), backbone.hidden_size
    row_bytes = hidden * dtype.itemsize
    draft = states.folder / ("draft-" + "-".join(map(str, layers)) if len(layers) < 8 else f"draft-{len(layers)}")
    plan = {"layers": layers, "batch_tokens": batch_tokens}
    known = read_json(draft / _PROGRESS) if (draft / _PROGRESS).exists() else {}
    done, seconds = (known["batches"], known["seconds"]) if known.get("plan") == plan else (0, 0.0)
    if not done:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        _check_space(draft, states.tokens * row_bytes * len(layers))
    lengths = np.diff(aligned.rows)
    groups = row_groups(np.argsort(-lengths, kind="stable").tolist(), lengths.tolist(), batch_tokens)
    device = next(backbone.parameters()).device
    begin = saved = time.monotonic()
    with ExitStack() as stack:
        files = [stack.enter_context(_open_for_update(draft / states.file(layer).name)) for layer in layers]

        def save(batches: int) -> None:
            for file in files:
                os.fsync(file.fileno())
            spent = seconds + time.monotonic() - begin
            write_json(draft / _PROGRESS, {"plan": plan, "batches": batches, "seconds": spent})

        try:
            for rows in track(groups[done:], f"encoding ({states.tokens:,} tokens)", show=show):
                texts = [aligned.ids[aligned.rows[row] : aligned.rows[row + 1]] for row in rows]
                batch = pad([Tokens(ids.tolist()) for ids in texts], backbone.tokenizer.pad_token_id)
                found = hidden_states(backbone, batch["input_ids"].to(device), batch["attention_mask"].to(device))
                if len(found) != depth + 1:
                    raise L2VError(f"{backbone.source.name}: expected states of {depth} layers, found {len(found) - 1}")
                for layer, file in zip(layers, files, strict=True):
                    packed = _packed(found[layer], dtype, layer)
                    for number, row in enumerate(rows):
                        file.seek(int(aligned.rows[row]) * row_bytes)
                        file.write(packed[number, : lengths[row]].tobytes())
                done += 1
                if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                    save(done)
                    saved = time.monotonic()
        except OSError as error:
            raise L2VError(f"{draft}: cannot be written ({error.strerror}); set L2V_CACHE to another disk") from error
        finally:
            save(done)
        seconds += time.monotonic() - begin
    facts = {
        "model": backbone.source.name,
        "attention": backbone.attention,
        "hidden": hidden,
        "tokens": states.tokens,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(states.tokens / seconds, 1),
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "proof": asdict(backbone.proof),
    }
    write_json(states.folder / _FACTS, facts)
    for layer in layers:
        whole = draft / states.file(layer).name
        Ledger(states.folder).note(whole)
        whole.replace(states.file(layer))
    shutil.rmtree(draft)


def _open_for_update(path: Path) -> BinaryIO:
    path.touch()
    return path.open("r+b", buffering=0)


def _packed(states: Tensor, dtype: torch.dtype, layer: int) -> np.ndarray:
    """States as integers of the same bytes: NumPy has no bfloat16."""
    narrow = states.to(dtype)
    if not bool(narrow.isfinite().all()):
        largest = states.abs().max().item()
        raise L2VError(
            f"stage.states_dtype={str(dtype).removeprefix('torch.')}: cannot hold the states of layer {layer} (up to "
            f"{largest:.3g}); set it to bfloat16 or float32"
        )
    return narrow.cpu().view(torch.int32 if dtype.itemsize == 4 else torch.int16).numpy()


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise L2VError(
            f"{folder}: the states need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; name fewer layers "
            "(stage.layers), a smaller stage.states_dtype, or another disk (L2V_CACHE)"
        )
