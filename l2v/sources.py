"""Where a model's files are: a hub id, a folder, a GGUF file, or a file inside an installed package."""

import contextlib
import errno
import hashlib
import importlib.util
import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from l2v.errors import L2VError, first_line

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WEIGHTS = ("*.safetensors", "*.gguf", "*.bin")


@dataclass(frozen=True)
class Source:
    """A place to load a decoder from, as ``from_pretrained`` wants it."""

    name: str
    """What the user wrote."""
    path: str
    """A hub id or an absolute folder."""
    gguf_file: str | None = None
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        return Path(self.path).is_dir()

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``from_pretrained`` beside the path."""
        arguments: dict[str, Any] = {"local_files_only": True} if self.is_local else {}
        if self.gguf_file:
            arguments["gguf_file"] = self.gguf_file
        if self.revision and not self.is_local:
            arguments["revision"] = self.revision
        return arguments


def package_file(name: str) -> Path:
    """The path of ``package:NAME/FILE``, without importing the package."""
    package, _, file = name.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise L2VError(f"{name}: the package {package!r} is not installed; `make setup` installs it")
    path = Path(next(iter(spec.submodule_search_locations))) / file
    if not path.is_file():
        raise L2VError(f"{name}: the package {package!r} has no file {file!r}")
    return path


def locate(name: str, revision: str | None = None, override: str = "model.source") -> Source:
    """Resolve what a user wrote to a :class:`Source`.

    Args:
        name: ``package:NAME/FILE.gguf``, a folder, a GGUF file, or a hub id.
        revision: of a hub id.
        override: what to name in an error.

    Raises:
        L2VError: no such file, or a folder that holds no model.
    """
    if not name:
        raise L2VError(f"{override} is empty; expected a folder, a .gguf file or a hub id")
    if name.startswith("package:"):
        file = package_file(name)
        return Source(name, str(file.parent), file.name)
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise L2VError(f"{override}={name}: expected a model folder, a .gguf file or a hub id, found a file")
        return Source(name, str(path.parent.resolve()), path.name)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise L2VError(f"{override}={name}: the folder has no config.json, so it holds no model")
        return Source(name, str(path.resolve()))
    if not _HUB_ID.fullmatch(name):
        raise L2VError(f"{override}={name}: no such file or folder (and not a hub id of the form owner/name)")
    return Source(name, name, revision=revision)


def model_file(source: Source, name: str, override: str = "model.source") -> Path | None:
    """A file beside a model's weights, in its folder or on the hub; None where there is none.

    Args:
        source: of the model.
        name: of the file.
        override: what to name in an error.

    Raises:
        L2VError: the hub cannot be reached, or has no such model.
    """
    if source.gguf_file:
        return None
    if source.is_local:
        file = Path(source.path) / name
        return file if file.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it reports every retry
    try:
        return Path(hf_hub_download(source.path, name, revision=source.revision))
    except LocalEntryNotFoundError as error:  # no network: a model that is in the cache can be used all the same
        if name != "config.json":
            return None
        raise not_on_hub(source, error, override) from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise not_on_hub(source, error, override) from error


def not_on_hub(source: Source, error: Exception, override: str = "model.source") -> L2VError:
    """What to tell a user whose hub id cannot be loaded."""
    return L2VError(
        f"{override}={source.name}: not found on the hub or the hub cannot be reached ({first_line(error)}); check "
        "the id, log in with `hf auth login` for a gated model, or name a local folder"
    )


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_hash(folder: Path, patterns: Sequence[str] = _WEIGHTS) -> str:
    """SHA-256 over the names and hashes of a folder's weight files, or of other files."""
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    return hashlib.sha256("".join(f"{f.name} {file_hash(f)}\n" for f in files).encode()).hexdigest()


def source_hash(source: Source, commit: str | None = None) -> str:
    """What pins a source's weights: a file's or folder's hash, or a hub id's commit."""
    if source.gguf_file and source.is_local:
        return "sha256:" + file_hash(Path(source.path) / source.gguf_file)
    if source.is_local:
        return "sha256:" + folder_hash(Path(source.path))
    return "commit:" + (commit or source.revision or "unknown")


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
    merged: list[AdapterRecord] = field(default_factory=list)
    initial: AdapterRecord | None = None
    """The adapter that training went on with (adapter.init=continue)."""
    adapter: AdapterRecord | None = None
    """The adapter on top, which is trained or was trained last."""
    history: list[dict[str, str]] = field(default_factory=list)
    """Stages that changed the weights themselves (full fine-tuning), oldest first."""
    base_ratio: float = 0.0
    """Share of the original decoder's weights that was mixed back in at the end."""

    def write(self, file: Path) -> None:
        write_json(file, asdict(self))

    @staticmethod
    def read(file: Path) -> "Lineage":
        raw = read_json(file)
        merged = [AdapterRecord(**record) for record in raw.pop("merged")]
        tops = {name: AdapterRecord(**raw[name]) for name in ("initial", "adapter") if raw.get(name)}
        return Lineage(**{**raw, **tops, "merged": merged})


def cache_folder(kind: str) -> Path:
    """Where what is made once is kept: $L2V_CACHE, else ~/.cache/l2v."""
    return Path(os.environ.get("L2V_CACHE") or "~/.cache/l2v").expanduser() / kind


@contextlib.contextmanager
def draft_folder(folder: Path) -> Iterator[Path]:
    """Write a folder so that it appears whole or not at all; an older one of that name stays until then."""
    draft, old = (folder.with_name(f"{folder.name}.{end}-{platform.node()}-{os.getpid()}") for end in ("tmp", "old"))
    shutil.rmtree(draft, ignore_errors=True)  # of a process with the same number that was killed
    try:
        draft.mkdir(parents=True)
        yield draft
        if folder.exists():
            folder.rename(old)
        try:
            draft.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    except (OSError, SafetensorError) as error:
        if not _says_no_space(error):
            raise
        raise _not_saved(folder, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _says_no_space(error: Exception) -> bool:
    number = getattr(error, "errno", None)
    return number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS) or "os error 28" in str(error)


def _not_saved(path: Path, error: Exception) -> L2VError:
    reason = getattr(error, "strerror", None) or str(error)
    return L2VError(f"{path}: cannot be saved ({reason}); what was there before is kept")


def read_json(file: Path) -> Any:
    """Parse a JSON file; an error names the file and the line."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise L2VError(f"{file}: no such file") from None
    except json.JSONDecodeError as error:
        raise L2VError(f"{file}:{error.lineno}: not JSON ({error.msg})") from None


def write_json(file: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically."""
    with draft_file(file) as draft:
        draft.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def draft_file(file: Path) -> Iterator[Path]:
    """Write a file so that it appears whole or not at all; an older one of that name stays until then."""
    draft = file.with_name(file.name + ".tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        draft.replace(file)
    except OSError as error:
        raise _not_saved(file, error) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
