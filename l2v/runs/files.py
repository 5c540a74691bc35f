"""Files and folders that appear whole or not at all; JSON; the cache."""

import contextlib
import errno
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from l2v.errors import L2VError


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


def check_name(name: Any, where: str) -> None:
    """Fail unless what was read from a file is a name, from which a path can be made that leads nowhere else.

    Raises:
        L2VError: it is a path, or no text.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        raise L2VError(f"{where}={name!r}: expected a name, which is no path")


def check_inside(path: Any, where: str) -> None:
    """Fail unless a relative path that was read from a file stays in its folder.

    Raises:
        L2VError: it leads out of it.
    """
    if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
        raise L2VError(f"{where}={path!r}: leads out of its folder")


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
