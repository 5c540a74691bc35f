"""A folder of vectors: Parquet shards that appear whole or not at all, and a manifest that says what they are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from l2v.embedding.compression import Ranges, restored
from l2v.errors import L2VError
from l2v.runs.files import read_json, write_json
from l2v.runs.ledger import Ledger, check_hash

ROW, VECTOR = "row", "vector"
"""Columns of every shard: the row's number in the input, from 0, and its vector."""


@dataclass(frozen=True)
class Shards:
    """Shards in a folder, by number."""

    folder: Path
    process: int = 0
    """The number of this one among those that write."""

    def file(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.parquet"

    @property
    def manifest_file(self) -> Path:
        return self.folder / "manifest.json"

    def manifest(self) -> dict[str, Any] | None:
        """What the shards are; None where nothing was written yet."""
        return read_json(self.manifest_file) if self.manifest_file.exists() else None

    def update(self, **fields: Any) -> dict[str, Any]:
        """Change fields of the manifest."""
        manifest = {**(self.manifest() or {}), **fields}
        write_json(self.manifest_file, manifest)
        return manifest

    def missing(self, manifest: Mapping[str, Any]) -> list[int]:
        """Shards that are not there as they were written: not made yet, damaged, or others under their names."""
        files = [self.file(number) for number in range(count_shards(manifest))]
        there = set(Ledger(self.folder).sealed(files))
        return [number for number, file in enumerate(files) if file not in there]

    def records(self, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What the manifest says of the shards once they are all written.

        Raises:
            L2VError: one is not there, or another file.
        """
        hashes, rows, records = self.written(manifest), manifest["shard_rows"], []
        for number in range(count_shards(manifest)):
            file = self.file(number)
            if file not in hashes:
                raise L2VError(f"{file}: was written and is gone; the same command goes on")
            own = min(rows, manifest["rows"] - number * rows)
            records.append({"file": file.name, "rows": own, "bytes": file.stat().st_size, "sha256": hashes[file]})
        return records

    def written(self, manifest: Mapping[str, Any]) -> dict[Path, str]:
        """The shards that are there by name and size, with the hashes that they were written with."""
        return Ledger(self.folder).noted(map(self.file, range(count_shards(manifest))))

    def write(
        self,
        number: int,
        first: int,
        vectors: NDArray[Any],
        kept: Sequence[Sequence[Any]] = (),
        types: Mapping[str, str] | None = None,
    ) -> None:
        """Write a shard.

        Args:
            number: of the shard.
            first: its first row's number in the input.
            vectors: (rows, width) as they are stored.
            kept: the values of each kept column.
            types: name -> Arrow type of each kept column.
        """
        types = types or {}
        rows, width = vectors.shape
        flat = pyarrow.array(vectors.reshape(-1))
        columns = {
            ROW: pyarrow.array(np.arange(first, first + rows)),
            **{
                name: pyarrow.array(values, pyarrow.type_for_alias(kind))
                for (name, kind), values in zip(types.items(), kept, strict=True)
            },
            VECTOR: pyarrow.FixedSizeListArray.from_arrays(flat, width),
        }
        with Ledger(self.folder, self.process).draft(self.file(number)) as draft:
            # values of vectors hardly repeat: a dictionary of them would only take time
            pyarrow.parquet.write_table(pyarrow.table(columns), draft, use_dictionary=list(types))


def count_shards(manifest: Mapping[str, Any]) -> int:
    return -(-manifest["rows"] // manifest["shard_rows"])


def finished_manifest(folder: str | Path, override: str | None = None) -> dict[str, Any]:
    """The manifest of a folder whose shards are all written.

    Args:
        folder: of vectors.
        override: what an error names beside it.

    Raises:
        L2VError: it is none, or encode.py has not finished it.
    """
    manifest = Shards(Path(folder).expanduser()).manifest()
    if manifest is None or "finished" not in manifest:
        where = f"{override}={folder}" if override else folder
        raise L2VError(f"{where}: expected a finished folder of encode.py, found no manifest.json that says so")
    return manifest


def read_vectors(folder: str | Path) -> Iterator[NDArray[np.float32]]:
    """The vectors that encode.py wrote, a shard at a time, in the order of the input.

    Example:
        >>> from l2v import EncoderSettings, read_vectors
        >>> from l2v.embedding.embed import encode
        >>> from l2v.embedding.job import Encoding
        >>> on_cpu = {"accelerator": "cpu", "devices": 1}
        >>> manifest = encode(EncoderSettings("model"), Encoding("texts.txt", "vectors"), on_cpu, show=False)
        >>> [len(shard) for shard in read_vectors("vectors")] == [manifest["rows"]]
        True

    Yields:
        (rows, dimension) float32: int8 codes as the values they stand for, bits as 1 and -1.

    Raises:
        L2VError: no finished folder of vectors, or a shard of it is damaged.
    """
    shards, manifest = Shards(Path(folder).expanduser()), finished_manifest(folder)
    ranges = Ranges.read(manifest["calibration"]) if manifest["calibration"] else None
    for number, record in enumerate(manifest["shards"]):
        check_hash(shards.file(number), record["sha256"], "the command that wrote it writes it anew")
        column = pyarrow.parquet.read_table(shards.file(number), columns=[VECTOR])[VECTOR].combine_chunks()
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        yield restored(values, manifest["settings"]["vector_dtype"], ranges, manifest["dimension"])
