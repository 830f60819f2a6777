"""The run directory, and the lock in it by which others see that this process is dead.

Each process that runs jobs holds a `flock` on a file of its own there. The kernel frees it when
the process dies, however it dies, at once and even while it is a zombie; a pid that was reused
does not hold it, and a container sees it only where it shares the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import stat
import threading
import time
import warnings
from pathlib import Path
from typing import Final, NamedTuple

from tracedjobs._core.clock import boot_id

__all__ = [
    "freshen_held",
    "held_path",
    "lock_path",
    "mutex",
    "owner_is_dead",
    "owner_name",
    "remove_held",
    "run_directory",
    "try_shared",
]

STALE_AFTER: Final = 24 * 3600.0
"""Seconds after which a file nobody holds is removed, whatever is in it; see `flight_recorder`."""


class _Held(NamedTuple):
    name: str
    handle: int
    path: Path
    """As it was when it was taken: the environment may say something else by now."""


_mutex = threading.RLock()  # a signal's handler may fork while it is held
_held: _Held | None = None
_warned = False


def run_directory() -> Path:
    """Where the lock files are, made when it is not there: private to the user.

    `TRACEDJOBS_RUN_DIR`, else `tracedjobs` in the user's runtime directory, else a folder in the
    temporary one. One that is not absolute is looked up once, where the process is then: it may
    go elsewhere. Raises `OSError` for one that is a symbolic link, another user's, or can be
    written by others: they could make a live process look dead. That others can list it is no
    harm, for the files in it are for their owner alone.
    """
    given = os.environ.get("TRACEDJOBS_RUN_DIR")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if given:
        path = _absolute(given)
    elif runtime:
        path = _absolute(runtime) / "tracedjobs"
    else:
        import tempfile  # noqa: PLC0415 - a slow import

        path = Path(tempfile.gettempdir()) / f"tracedjobs-{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        msg = f"The run directory {path} is no directory (a symbolic link is refused)."
        raise OSError(msg)
    if status.st_uid != os.getuid():
        msg = f"The run directory {path} belongs to user {status.st_uid}, not to {os.getuid()}."
        raise OSError(msg)
    if stat.S_IMODE(status.st_mode) & 0o022:
        msg = f"The run directory {path} can be written by others; make it mode 0700."
        raise OSError(msg)
    return path


@functools.cache
def worker_name() -> str:
    """This process for people to find: its host and pid."""
    return f"{os.uname().nodename}:{os.getpid()}"


def owner_name() -> str | None:
    """The name of this process's lock file, taken at the first call.

    `None`, with one warning, when there is no usable run directory: jobs run all the same, and a
    dead process is then seen by the end of its lease.
    """
    global _held, _warned  # noqa: PLW0603 - one lock a process
    with _mutex:
        if _held is None:
            try:
                _held = _take(run_directory())
            except OSError as error:
                if not _warned:
                    _warned = True
                    warnings.warn(
                        f"No run directory, so a killed job is found only when its lease ends: "
                        f"{error}",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                return None
        return _held.name


def owner_is_dead(owner: str | None, lease_boot: str | None) -> bool:
    """Whether the process that holds `owner` is dead for certain; `False` when nobody can tell.

    A file that is not there tells nothing: the owner may use another directory. A shared lock is
    tried, so that two who look at the same time do not take each other for the owner.
    """
    if owner is None or lease_boot != boot_id() or not owner.isalnum():
        return False
    with _mutex:
        if _held is not None and _held.name == owner:
            return False
    try:
        return _is_free(lock_path(owner))
    except OSError:
        return False


def lock_path(owner: str) -> Path:
    """Where the lock file of that name is, if it is in this process's run directory."""
    return run_directory() / f"{owner}.lock"


def held_path() -> Path:
    """The file that this process holds; see `owner_name`, which takes it."""
    if _held is None:
        msg = "This process holds no lock file."
        raise FileNotFoundError(msg)
    return _held.path


def remove_held() -> None:
    """Remove this process's file, at its end."""
    if _held is not None:
        with contextlib.suppress(OSError):
            _held.path.unlink()


def freshen_held() -> None:
    """Say by the file's time that it is in use: a mapping's writes do not, on a tmpfs."""
    if _held is not None:
        with contextlib.suppress(OSError):
            os.utime(_held.handle)


def mutex() -> contextlib.AbstractContextManager[bool]:
    """What guards the file of this process; nobody holds it while the process forks."""
    return _mutex


def try_shared(handle: int) -> bool:
    """Whether nobody holds the lock of that open file; two may ask at the same time."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@functools.cache
def _absolute(given: str) -> Path:
    return Path(given).absolute()


def _take(directory: Path) -> _Held:
    _remove_stale(directory)
    name = os.urandom(12).hex()
    new = directory / f".{name}"
    handle = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    # Nobody knows the name yet, so there is nobody to wait for; and it gets its name when it is
    # locked, so that nobody takes it for a dead one's.
    fcntl.flock(handle, fcntl.LOCK_EX)
    path = directory / f"{name}.lock"
    new.rename(path)
    return _Held(name, handle, path)


def _remove_stale(directory: Path) -> None:
    from tracedjobs._core.takeover import remove_stale  # noqa: PLC0415 - it reads what is in them

    oldest = time.time() - STALE_AFTER
    for path in (*directory.glob("*.lock"), *directory.glob(".????????????????????????")):
        with contextlib.suppress(OSError):
            if path.lstat().st_mtime >= oldest:
                remove_stale(path)
            elif _is_free(path):
                path.unlink()


def _is_free(path: Path) -> bool:
    # Without waiting: opening a FIFO would, for somebody to write to it.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return try_shared(handle)
    finally:
        os.close(handle)


def _after_fork_in_child() -> None:
    # The child shares the parent's lock through its copy of the handle; closing the copy leaves
    # the parent's lock, and lets it go when the parent dies. The child takes one of its own.
    global _held, _mutex  # noqa: PLW0603 - as above
    _mutex = threading.RLock()
    worker_name.cache_clear()
    if _held is not None:
        with contextlib.suppress(OSError):
            os.close(_held.handle)
        _held = None


def _before_fork() -> None:
    # A lock that is just being taken would be in the child, and nobody there would know of it.
    _mutex.acquire()


def _after_fork_in_parent() -> None:
    _mutex.release()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
