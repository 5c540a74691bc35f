"""What an encoder is made of: a base decoder and adapters, each pinned by a hash."""

import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from l2v.errors import L2VError
from l2v.runs.adapter_folders import POOLING_FOLDER
from l2v.runs.files import check_name, read_json, write_json
from l2v.runs.hashes import folder_hash, source_hash
from l2v.runs.locations import Source, locate


@dataclass(frozen=True)
class AdapterRecord:
    """An adapter of a lineage."""

    stage: str
    """The stage that trained it, or the hub id it came from."""
    path: str
    """Relative to the folder that holds the lineage."""
    hash: str


@dataclass(frozen=True)
class Lineage:
    """What an encoder is made of: a base decoder and adapters merged into it, in order."""

    base: str
    """The base's source, as :func:`locate` takes it, or a path relative to the folder that holds the lineage."""
    base_hash: str
    revision: str | None = None
    origin: str | None = None
    """The original decoder, where the base is a fully fine-tuned one: the output head is still that one's."""
    layers: int | None = None
    """How many of the base's first layers are kept; None: all."""
    merged: list[AdapterRecord] = field(default_factory=list)
    initial: AdapterRecord | None = None
    """The adapter that training went on with (adapter.init=continue)."""
    adapter: AdapterRecord | None = None
    """The adapter on top, which is trained or was trained last."""
    history: list[dict[str, str]] = field(default_factory=list)
    """Stages that changed the weights themselves (full fine-tuning), oldest first."""
    pooling: str | None = None
    """The hash of the weights of a pooling of one's own that training went on with."""
    base_ratio: float = 0.0
    """Share of the original decoder's weights that was mixed back in at the end."""
    others: list[dict[str, Any]] = field(default_factory=list)
    """Runs whose weights were merged with these: name, hash of what was trained, share and method of each."""
    encoder: str | None = None
    """The hash of the encoder that was written with it."""

    def write(self, file: Path) -> None:
        write_json(file, asdict(self))

    @staticmethod
    def read(file: Path) -> "Lineage":
        """A lineage that was written, perhaps by somebody else: the stages in it are names, and no paths.

        Raises:
            L2VError: it is none.
        """
        raw = read_json(file)
        try:
            merged = [AdapterRecord(**record) for record in raw.pop("merged")]
            tops = {name: AdapterRecord(**raw[name]) for name in ("initial", "adapter") if raw.get(name)}
            lineage = Lineage(**{**raw, **tops, "merged": merged})
            if not all(isinstance(one, dict) for one in lineage.others):
                raise TypeError
            if lineage.layers is not None and (type(lineage.layers) is not int or lineage.layers < 1):
                raise TypeError
        except (KeyError, TypeError, AttributeError):
            raise L2VError(f"{file}: not a lineage: expected base, base_hash, merged and adapter") from None
        for record in lineage.adapters():
            check_name(record.stage, f"{file}: stage")
        return lineage

    def adapters(self) -> list[AdapterRecord]:
        """All that it names."""
        return [*self.merged, *(record for record in (self.initial, self.adapter) if record)]


def recorded_base(base: Source, folder: Path) -> str:
    """How a base is written into a lineage in ``folder``: a hub id or package file as it is, a path relative to it."""
    if not base.is_local or base.name.startswith("package:"):
        return base.name
    return os.path.relpath(Path(base.path) / (base.gguf_file or ""), folder.resolve())  # runs/ may be a link


def encoder_hash(folder: Path) -> str:
    """Of the weights of an encoder, and of a pooling of one's own."""
    return folder_hash(folder, ("*.safetensors", f"{POOLING_FOLDER}/*.safetensors"))


def check_encoder(folder: Path, file: Path, remedy: str) -> None:
    """Fail where an encoder's weights are not those that were written with a lineage; where there is none, do nothing.

    Args:
        folder: of the encoder.
        file: the lineage.
        remedy: what to tell.

    Raises:
        L2VError: they are not.
    """
    wanted = Lineage.read(file).encoder if file.is_file() else None
    if wanted is not None and encoder_hash(folder) != wanted:
        raise L2VError(f"{folder}: its weights are damaged (another hash than in {file}); {remedy}")


def lineage_base(lineage: Lineage, folder: Path, *, check: bool = True) -> Source:
    """The base of a lineage that lies in ``folder``, checked against its hash, unless ``check`` is off.

    Raises:
        L2VError: the base is gone, or is another one than the lineage was made with.
    """
    local = (folder / lineage.base).resolve()
    name = str(local) if local.exists() else lineage.base
    commit = lineage.base_hash.removeprefix("commit:")
    revision = commit if re.fullmatch("[0-9a-f]{40}", commit) else lineage.revision
    source = locate(name, revision, override=f"the base of {folder}").shallower(lineage.layers)
    if check and source.is_local and source_hash(source) != lineage.base_hash:
        raise L2VError(f"{folder}: its base {lineage.base} is not the one it was trained on (another hash)")
    return source


def lineage_head(lineage: Lineage, folder: Path) -> Source | None:
    """Where the output head comes from, if not from the base."""
    if lineage.origin is None:
        return None
    local = (folder / lineage.origin).resolve()
    return locate(str(local) if local.exists() else lineage.origin, override=f"the original model of {folder}")
