"""Files and folders that appear whole or not at all; JSON; the cache."""

import contextlib
import errno
import fcntl
import functools
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from l2v.errors import L2VError, first_line

_DRAFT = re.compile(r"(?P<name>.+)\.(?P<kind>tmp|old)-(?P<machine>\w+)-(?P<process>\d+)")
"""What is being written, or was there before, as ``name.tmp-<machine>-<process>``."""
_JUST_MADE, _DAY = 60, 86_400
"""Seconds."""


def in_a_name(text: str) -> str:
    """A text as a part of a file's name: letters, digits, and ``_``, ``.``, ``+`` and ``-``."""
    return re.sub(r"[^\w.+-]+", "-", text)


def cache_folder(kind: str) -> Path:
    """Where what is made once is kept: $L2V_CACHE, else ~/.cache/l2v.

    Raises:
        L2VError: the user has no home.
    """
    try:
        return Path(os.environ.get("L2V_CACHE") or "~/.cache/l2v").expanduser() / kind
    except RuntimeError:
        raise L2VError("this user has no home folder: set HOME, or L2V_CACHE, to a folder") from None


@functools.cache
def machine() -> str:
    """This machine since it was last started: names of machines and numbers of processes are used again."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", "")[:12]
    except OSError:
        return re.sub(r"\W", "_", platform.node())


@contextlib.contextmanager
def draft_folder(folder: Path) -> Iterator[Path]:
    """Write a folder so that it appears whole or not at all; an older one of that name stays until then.

    What killed processes had begun beside it is removed, see :func:`remove_drafts`. The files are as readable as the
    folder.
    """
    draft, old = _beside(folder, "tmp"), _beside(folder, "old")
    try:
        remove_drafts(folder.parent)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        with _alive(draft):
            yield draft
            files = [path for path in draft.rglob("*") if path.is_file()]
            make_readable(files, draft)
            for file in files:
                _through(file)
            try:
                if folder.exists():
                    folder.rename(old)
                draft.rename(folder)
            except BaseException:  # Ctrl-C too
                if old.exists() and not folder.exists():
                    old.rename(folder)
                raise
    except (OSError, SafetensorError) as error:
        if not _says_no_space(error):
            raise
        raise _not_saved(folder, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def draft_file(file: Path) -> Iterator[Path]:
    """Write a file so that it appears whole or not at all; an older one of that name stays until then."""
    draft = _beside(file, "tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alive(draft):
            yield draft
            _through(draft)
            draft.replace(file)
    except OSError as error:
        raise _not_saved(file, error) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def remove_drafts(folder: Path) -> None:
    """Remove what processes that are gone had begun to write in a folder.

    Where one was killed as it put a new folder in the place of an older one, the new one, which was whole, is kept.
    """
    try:
        found = [(path, match) for path in folder.iterdir() if (match := _DRAFT.fullmatch(path.name))]
    except OSError:
        return
    for path, match in sorted(found, key=lambda one: one[1]["kind"]):  # .old before .tmp
        whole = path.with_name(match["name"])
        if match["kind"] == "tmp":
            left = _is_left(path, match)
        else:
            draft = path.with_name(path.name.replace(".old-", ".tmp-"))
            left = not draft.exists() or _is_left(draft, match)
            if left and not whole.exists():
                (draft if draft.exists() else path).rename(whole)
        if left:
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.unlink()


def make_readable(files: Iterable[Path], folder: Path) -> None:
    """Let whoever reads a folder read files in it: safetensors writes them for their owner alone."""
    for file in files:
        file.chmod(folder.stat().st_mode & 0o666)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}-{machine()}-{os.getpid()}")


@contextlib.contextmanager
def _alive(draft: Path) -> Iterator[None]:
    """Meanwhile other processes see that a draft's own lives: by a lock, which ends with the process in any case."""
    handle = os.open(draft, os.O_RDONLY if draft.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _is_left(draft: Path, match: re.Match[str]) -> bool:
    """Whether the process that a draft is of is gone. One of another machine is, a day after it wrote last."""
    try:
        newest = max(path.stat().st_mtime for path in (draft, *draft.rglob("*")))
        handle = os.open(draft, os.O_RDONLY)
    except OSError:  # it was finished, or removed
        return False
    age = time.time() - newest
    if match["machine"] != machine():
        os.close(handle)
        return age > _DAY
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES) and age > _DAY
    finally:
        os.close(handle)
    return age > _JUST_MADE or not _is_alive(int(match["process"]))  # it may not have its lock yet


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is another user's
        return True
    return True


def _through(file: Path) -> None:
    """Have a file's bytes on the disk before its name is: else a power cut leaves the name of an empty file."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    except (UnicodeDecodeError, RecursionError) as error:
        raise L2VError(f"{file}: not JSON ({first_line(error)})") from None


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file, one a line. A last line without its end, which was being written, may be broken.

    Raises:
        L2VError: another line is no JSON object.
    """
    rows: list[dict[str, Any]] = []
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else {}
        except ValueError as error:
            if number == len(lines):
                break
            raise L2VError(f"{file}:{number}: not JSON ({first_line(error)}); mend that line, or delete it") from None
        if not isinstance(row, dict):
            raise L2VError(f"{file}:{number}: expected an object, found {type(row).__name__}")
        rows += [row] if row else []
    return rows


def write_json(file: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically."""
    with draft_file(file) as draft:
        draft.write_text(text, encoding="utf-8")


def check_writable(output: Path, *, as_folder: bool = False) -> None:
    """Raise an L2VError where no file, or no folder, can be written: better told before hours of work than after."""
    places = [output.absolute(), *output.absolute().parents][0 if as_folder else 1 :]
    nearest = next(place for place in places if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise L2VError(f"output={output}: cannot be written, {nearest} is no folder that may be written to")
    if output.is_dir() and not as_folder:
        raise L2VError(f"output={output}: expected a file, found a folder")
