"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from slm_ray.config.errors import UserError


def explain_os_error(error: OSError, doing: str) -> UserError:
    """Turn an operating-system error into one sentence with a fix."""
    code = error.errno or 0
    fixes = {
        errno.ENOSPC: "the disk is full: free some space",
        errno.EDQUOT: "the disk quota is used up: free some space",
        errno.EACCES: "permission denied: choose a folder you can write to",
        errno.EPERM: "not permitted: choose a folder you can write to",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.ENOTDIR: "a part of the path is a file, not a folder: choose another path",
        errno.EEXIST: "a file of that name is in the way: choose another path",
        errno.EISDIR: "it is a folder where a file is needed",
        errno.EMFILE: "too many open files: raise the limit with `ulimit -n 4096`",
    }
    fix = fixes.get(code, error.strerror or str(error))
    if code in (errno.EACCES, errno.EPERM, errno.EROFS) and _is_of_the_cache(error.filename):
        fix = f"{fix.partition(':')[0]}: set SLM_RAY_CACHE to a folder you can write to"
    return UserError(f"{doing}: {fix}", is_resumable=code in (errno.ENOSPC, errno.EDQUOT))


def _is_of_the_cache(path: str | bytes | int | None) -> bool:
    """Whether a path is in the cache, or a folder above it that could not be made or entered."""
    if not isinstance(path, str):
        return False
    given, cache = Path(path).absolute(), cache_folder()
    return given.is_relative_to(cache) or cache.is_relative_to(given)


def fsync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut (a no-op where folders cannot be opened)."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def umask() -> int:
    """The process's umask, which says who may read what it writes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    except OSError:
        pass
    mask = os.umask(0o022)  # a moment's change is all that other systems offer
    os.umask(mask)
    return mask


def temporary_name(path: Path) -> Path:
    """What something is called while it is written or deleted: hidden, beside its place, of this process."""
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, sync it, and rename it into place."""
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise explain_os_error(error, f"writing {path}") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; see :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; see :func:`write_bytes`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise explain_os_error(error, f"reading {path}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}): it was cut short or edited; delete it or restore it"
        ) from error


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder that takes its name only when everything in it is written.

    A folder already at ``path`` is replaced. If the block raises, nothing appears.
    """
    temporary = temporary_name(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        allowed = 0o666 & ~umask()
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(file.stat().st_mode | allowed)  # safetensors writes for the owner alone
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            old = temporary_name(path)
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            _take_name(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise explain_os_error(error, f"writing {path}") from error
    except Exception as error:
        # safetensors and tokenizers are written in Rust and raise errors of their own, which end like this.
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise explain_os_error(OSError(int(found[1]), os.strerror(int(found[1]))), f"writing {path}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_name(temporary: Path, path: Path) -> None:
    """Rename a folder into place; where another process did so first, its copy stays."""
    try:
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not path.is_dir():
            raise


def check_inside(names: Iterable[Any], manifest: Path) -> None:
    """Make sure that a manifest names files of its own folder and no others: somebody else may have written it."""
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
            raise UserError(f"{manifest} names a file outside of its folder ({str(name)[:100]!r}): do not use it")


def cache_folder() -> Path:
    """Where converted teachers, packed tokens and importance scores are kept between runs.

    ``$SLM_RAY_CACHE`` if set, else ``$XDG_CACHE_HOME/slm_ray``, else ``~/.cache/slm_ray``.
    """
    if chosen := os.environ.get("SLM_RAY_CACHE"):
        return Path(chosen).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(base).expanduser() / "slm_ray").resolve()
