"""Files of texts to shards of vectors, through Lightning's predict: in order, in flat memory, stopped any time."""

import contextlib
import json
import signal
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from l2v.embedding.batches import CALIBRATION, FILLER, Batch, Batches, as_it_is
from l2v.embedding.compression import Ranges, stored
from l2v.embedding.job import Encoding
from l2v.embedding.shards import Shards, count_shards
from l2v.encoders.external import is_theirs
from l2v.encoders.finite import check_finite, check_stored
from l2v.encoders.load import AnyEncoder, known_dimension, load_encoder, with_template
from l2v.errors import L2VError, Stopped, Terminated
from l2v.models.backbone import Backbone
from l2v.models.settings import EncoderSettings
from l2v.models.sharding import shard as shard_weights
from l2v.progress import say, track
from l2v.runs.files import remove_drafts
from l2v.runs.hashes import source_hash
from l2v.runs.locations import commit_of
from l2v.runs.locks import alone
from l2v.runs.run import now
from l2v.training.trainer import make_trainer, quiet_lightning

_VERSION = 3
"""Raise it when the same settings would give other shards."""
_FEW = 100
"""Ranges of fewer rows are told to the user."""


@quiet_lightning()
def encode(
    subject: EncoderSettings, encoding: Encoding, trainer: dict[str, Any], *, show: bool = True
) -> dict[str, Any]:
    """Write the vectors of files to ``encoding.output`` and return the manifest.

    The shards hold the rows in the order of the files. Shards that are there already, of the same encoder, files and
    settings, are left as they are, so that the same call goes on where another was stopped.

    Args:
        subject: the encoder.
        encoding: what is encoded.
        trainer: keyword arguments of ``lightning.Trainer``; see :func:`l2v.training.trainer.make_trainer`.
        show: progress bars.

    Raises:
        L2VError: a row cannot be read, the folder holds other vectors, or the encoder cannot be loaded.
        Stopped: by a signal.
    """
    writer = _Writer()
    running = make_trainer(
        trainer,
        callbacks=[writer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=encoding.folder,
    )
    rank = getattr(rank_zero_only, "rank", 0)
    first = rank == 0
    writer.shards = shards = Shards(encoding.folder, rank)
    with only_writer(encoding, rank):
        if first:
            manifest = prepare(subject, encoding, str(running.precision), shards, show)
        else:  # the first process has written it, or will have before the model is loaded
            manifest = shards.manifest() or {}
        if "finished" in manifest and not shards.missing(manifest):
            if first:
                say(f"{encoding.folder}: reused, nothing has changed")
            return manifest
        try:
            running.predict(_Embedder(subject, encoding, shards, show and first), return_predictions=False)
        except SystemExit as error:  # Lightning's answer to Ctrl-C and SIGTERM
            number = signal.SIGTERM if isinstance(error, (SIGTERMException, Terminated)) else signal.SIGINT
            raise Stopped(number, told(shards)) from None
        return shards.manifest() or {}


def describe(manifest: dict[str, Any]) -> str:
    """What was written, for the terminal."""
    size = sum(shard["bytes"] for shard in manifest["shards"])
    kind = manifest["settings"]["vector_dtype"]
    return (
        f"{manifest['rows']:,} vectors of {manifest['dimension']} dimensions ({kind}) in {len(manifest['shards'])} "
        f"shards, {size / 1e6:,.1f} MB"
    )


def only_writer(encoding: Encoding, rank: int) -> contextlib.AbstractContextManager[None]:
    """Meanwhile no process of this number, of another command, writes to the folder.

    Raises:
        L2VError: one does.
    """
    taken = f"output={encoding.output}: another encode.py is writing there; wait for its end"
    return alone(encoding.folder / f".lock-{rank}", taken)


def as_written(subject: EncoderSettings, manifest: dict[str, Any]) -> EncoderSettings:
    """The encoder with its chat template as it was written out when the folder was begun."""
    return replace(subject, template=manifest.get("template", subject.template))


def told(shards: Shards) -> str:
    manifest = shards.manifest()
    done = len(shards.written(manifest)) if manifest else 0
    of = f" of {count_shards(manifest)}" if manifest else ""
    return f"stopped; {done}{of} shards are in {shards.folder}; the same command goes on"


# what is to be done


def prepare(subject: EncoderSettings, encoding: Encoding, precision: str, shards: Shards, show: bool) -> dict[str, Any]:
    """The folder's manifest, after a survey of the files where there is none yet.

    Raises:
        L2VError: the folder is of other settings.
    """
    if encoding.truncate_dim is not None and (dimension := known_dimension(subject)) is not None:
        check_dimension(encoding.truncate_dim, dimension, subject)
    remove_drafts(encoding.folder)
    calibration = encoding.sample().hashes() if encoding.calibration is not None else None
    pinned = {
        "version": _VERSION,
        **encoding.settings(),
        "files": encoding.inputs().hashes(),
        "calibration": calibration,
        "trainer.precision": precision,
        "encoder": subject.fingerprint(),
    }
    pinned = json.loads(json.dumps(pinned, default=str))
    known = shards.manifest()
    if known is not None:
        _check_same(known, pinned, encoding)
        for number in shards.missing(known):
            if shards.file(number).exists():
                say(f"{shards.file(number)}: is not as it was written, and is made anew", style="yellow")
        return known
    if left := sorted(shards.folder.glob("shard-*.parquet")):
        raise L2VError(f"output={encoding.output}: holds {left[0].name} but no manifest.json; choose another folder")
    found = encoding.inputs().survey(show=show)
    rows = sum(file["rows"] for file in found["files"])
    sample = 0
    if encoding.vector_dtype == "int8":
        sample = min(rows, encoding.shard_rows)
        if encoding.calibration is not None:
            sample = sum(file["rows"] for file in encoding.sample().survey(show=show)["files"])
        if sample < _FEW:
            say(f"vector_dtype=int8: ranges of {sample} rows only; more are better: calibration=", style="yellow")
    return shards.update(
        encoder=subject.source,
        base=source_hash(base := subject.parts().base, commit_of(base)),
        template=with_template(subject).template,
        rows=rows,
        shard_rows=encoding.shard_rows,
        settings=encoding.settings(),
        **found,
        calibration_rows=sample,
        calibration=None,
        pinned=pinned,
    )


def check_dimension(truncate_dim: int, dimension: int, subject: EncoderSettings) -> None:
    if truncate_dim > dimension:
        raise L2VError(f"truncate_dim={truncate_dim}: expected at most the {dimension} dimensions of {subject.source}")


def _check_same(known: dict[str, Any], pinned: dict[str, Any], encoding: Encoding) -> None:
    before = known.get("pinned", {})
    for name, value in pinned.items():
        if before.get(name) != value:
            what = f"{name}={before.get(name)}, not {value}"
            if name in ("files", "calibration", "encoder"):
                what = {"encoder": "another encoder, or other settings of it"}.get(name, f"other {name}")
            raise L2VError(
                f"output={encoding.output}: holds vectors of {what}; choose another folder, or delete this one"
            )


def narrowest(encoder: AnyEncoder, precision: str) -> torch.dtype:
    """What vectors are computed in: the weights' dtype, or the trainer's precision."""
    return torch.float16 if precision in ("16-mixed", "16-true") else encoder.dtype


def vectors_of(encoder: AnyEncoder, encoding: Encoding, inputs: dict[str, Any]) -> Tensor:
    """Vectors (texts, dimension) of a batch, cut and scaled as they are wanted."""
    vectors = encoder.embed(inputs)[:, : encoding.truncate_dim]
    return torch.nn.functional.normalize(vectors, dim=-1) if encoding.normalize else vectors


class _Embedder(L.LightningModule):
    """Vectors of batches. The encoder is loaded once every process is there, and every row has been looked at."""

    def __init__(self, subject: EncoderSettings, encoding: Encoding, shards: Shards, show: bool) -> None:
        super().__init__()
        self.subject, self.encoding, self.shards, self.show = subject, encoding, shards, show
        self.batches: Batches

    def setup(self, stage: str) -> None:
        strategy = self.trainer.strategy
        manifest: dict[str, Any] = strategy.broadcast(self.shards.manifest() or {})
        missing = strategy.broadcast(self.shards.missing(manifest) if self.trainer.is_global_zero else [])
        is_split = self.device_mesh is not None
        if is_split and is_theirs(self.subject):
            raise L2VError("trainer=fsdp: an encoder of another library is not split; choose trainer=ddp or gpu")
        subject = as_written(self.subject, manifest)
        self.encoder = load_encoder(subject, device=torch.device("meta") if is_split else strategy.root_device)
        self.model = self.encoder.module
        if self.encoding.truncate_dim is not None:
            check_dimension(self.encoding.truncate_dim, self.encoder.dimension, self.subject)
        self.dimension = self.encoding.truncate_dim or self.encoder.dimension
        self.manifest = {**manifest, "dimension": self.dimension}
        self.batches = Batches(
            self.encoding,
            manifest,
            missing,
            self.encoder.preparation(self.encoding.instruction),
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        self.batches.filler()  # an instruction without room for a text is an error now

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            assert isinstance(self.model, Backbone)
            shard_weights(self.model, self.device_mesh)

    def configure_optimizers(self) -> None:
        """None: nothing is trained."""

    def predict_dataloader(self) -> Iterable[Batch]:
        loader = DataLoader(self.batches, batch_size=None, collate_fn=as_it_is, num_workers=self.encoding.workers)
        return track(loader, "encoding", total=len(self.batches), show=self.show)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        moved = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.inputs.items()}
        return batch._replace(inputs=moved)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return vectors_of(self.encoder, self.encoding, batch.inputs)


class _Writer(Callback):
    """Collects the vectors of one shard at a time, and writes it once it is whole."""

    shards: Shards
    """Where they go."""

    def __init__(self) -> None:
        self.ranges: Ranges | None = None
        self._calibrating = False
        self._number = FILLER
        self._left = 0
        self._vectors: NDArray[np.float32]
        self._kept: list[tuple[Any, ...]] = []

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, _Embedder)
        self._calibrating = pl_module.batches.sample > 0
        if pl_module.manifest["calibration"]:
            self.ranges = Ranges.read(pl_module.manifest["calibration"])

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, _Embedder)
        vectors = outputs.float().cpu().numpy()
        if batch.shard == CALIBRATION:
            check_finite(vectors, narrowest(pl_module.encoder, str(trainer.precision)))
            self.ranges = Ranges.of(vectors).join(self.ranges)
        elif batch.shard != FILLER:
            self._add(pl_module, batch, vectors)
        if self._calibrating and batch_idx + 1 == sum(pl_module.batches._of_sample()):
            self._share_ranges(trainer, pl_module)
        if trainer.received_sigterm:
            raise SIGTERMException

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, _Embedder)
        trainer.strategy.barrier("shards")
        if trainer.is_global_zero:
            manifest = pl_module.manifest
            self.shards.update(dimension=pl_module.dimension, shards=self.shards.records(manifest), finished=now())

    def _add(self, embedder: _Embedder, batch: Batch, vectors: NDArray[np.float32]) -> None:
        if batch.shard != self._number:
            self._number, self._left = batch.shard, batch.size
            self._vectors = np.empty((batch.size, vectors.shape[1]), np.float32)
            self._kept = [()] * batch.size
        check_finite(vectors, narrowest(embedder.encoder, str(embedder.trainer.precision)))
        self._vectors[batch.places] = vectors
        for place, kept in zip(batch.places, batch.kept, strict=True):
            self._kept[place] = kept
        self._left -= len(batch.places)
        if not self._left:
            types = embedder.manifest["columns"]
            kind = embedder.encoding.vector_dtype
            values = stored(self._vectors, kind, self.ranges)
            check_stored(values, self._vectors, f"vector_dtype={kind}")
            self.shards.write(
                batch.shard,
                batch.shard * embedder.encoding.shard_rows,
                values,
                list(zip(*self._kept, strict=True)),
                types,
            )

    def _share_ranges(self, trainer: L.Trainer, embedder: _Embedder) -> None:
        """The ranges of all processes together; they are in the manifest before any shard is written."""
        nothing = np.full(embedder.dimension, np.inf, np.float32)
        own = self.ranges or Ranges(nothing, -nothing)
        both = torch.from_numpy(np.stack([own.low, -own.high])).to(embedder.device)
        low, high = embedder.all_gather(both).reshape(-1, 2, embedder.dimension).amin(dim=0).cpu().numpy()  # type: ignore[union-attr]
        self.ranges, self._calibrating = Ranges(low, -high), False
        if trainer.is_global_zero:
            self.shards.update(calibration=self.ranges.record())
        trainer.strategy.barrier("ranges")
