"""Where a model's files are: a hub id, a folder, a GGUF file, or a file inside an installed package."""

import importlib.util
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from l2v.errors import L2VError, first_line
from l2v.extras import install_hint
from l2v.process import level_of

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Source:
    """A place to load a decoder from, as ``from_pretrained`` wants it."""

    name: str
    """What the user wrote."""
    path: str
    """A hub id or an absolute folder."""
    gguf_file: str | None = None
    revision: str | None = None
    layers: int | float | None = None
    """How many of its first layers are kept, as a whole number, or which share of them; None: all."""

    @property
    def is_local(self) -> bool:
        return Path(self.path).is_dir()

    def shallower(self, layers: int | float | None) -> "Source":
        """The same with so many of its first layers, or such a share of them; None: as it is."""
        return self if layers is None else replace(self, layers=layers)

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
        raise L2VError(f"{name}: the package {package!r} is not installed{install_hint(package)}")
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
        if not any((path / file).exists() for file in ("config.json", "modules.json")):
            raise L2VError(f"{override}={name}: the folder has no config.json, so it holds no model")
        return Source(name, str(path.resolve()))
    if not _HUB_ID.fullmatch(name):
        raise L2VError(f"{override}={name}: no such file or folder (and not a hub id of the form owner/name)")
    return Source(name, name, revision=revision)


def commit_of(source: Source) -> str | None:
    """The commit of the hub that a source is now; None of what is no hub id.

    Raises:
        L2VError: the hub cannot be reached, and has not been.
    """
    file = None if source.is_local else model_file(source, "config.json")
    return file.parent.name if file is not None and file.parent.parent.name == "snapshots" else None


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

    try:
        with level_of("huggingface_hub"):  # it reports every retry
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
