"""The one thread of a host that looks for lost jobs and hands them back to their queues.

Each worker process starts one; the one that holds a lock in the run directory does the work, and
the kernel gives the lock to another as soon as it dies. Two that both work, for want of a run
directory or on two hosts, do no harm: each step of `recover` is a change of the store that only
one of them gets through.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from typing import TYPE_CHECKING, Final

from tracedjobs._core.owner import run_directory
from tracedjobs.errors import StoreError
from tracedjobs.queues.base import known_continuables, log, stop

if TYPE_CHECKING:
    from tracedjobs._core.runtime import Runtime

__all__ = ["start_recovery"]

EVERY: Final = 1.5
"""Seconds between two looks."""

_started: set[str] = set()
_locks: dict[str, int] = {}


def start_recovery(family: str) -> None:
    """Look after the jobs of that family's continuables, from this process, until it ends."""
    if family in _started:
        return
    _started.add(family)
    threading.Thread(target=_look, args=(family,), name="tracedjobs-recovery", daemon=True).start()


def _look(family: str) -> None:
    never = threading.Event()
    away: set[str] = set()
    while not stop.came:  # a broker may give what is sent now to this very worker
        for runtime in _runtimes(family):
            url = runtime.store.url
            if not _elected(f"{family} {url}"):
                continue
            try:
                runtime.recover(by=f"worker {runtime.worker}")
                away.discard(url)
            except StoreError as error:
                if url not in away:
                    away.add(url)
                    log.warning("Lost jobs cannot be looked for just now: %s", error)
            except Exception:  # noqa: BLE001 - a defect of ours must not end it
                log.exception("The recovery of lost jobs was stopped short; it goes on.")
        never.wait(EVERY)
    _started.discard(family)  # for a worker that begins later in this process


def _runtimes(family: str) -> list[Runtime]:
    found = {
        each.runtime.store.url: each.runtime
        for each in known_continuables()
        if each.family == family
    }
    return list(found.values())


def _elected(what: str) -> bool:
    """Whether this process has the lock, which it takes if it is free, and keeps."""
    if what in _locks:
        return True
    try:
        name = hashlib.blake2b(what.encode(), digest_size=8).hexdigest()
        handle = os.open(run_directory() / f"recovery.{name}", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return False
    _locks[what] = handle
    return True


def _after_fork_in_child() -> None:
    # The lock is the parent's: a child that kept it would outlive it with nobody at work.
    _started.clear()
    while _locks:
        with contextlib.suppress(OSError):
            os.close(_locks.popitem()[1])


os.register_at_fork(after_in_child=_after_fork_in_child)
