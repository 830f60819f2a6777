"""The one worker of those alive that looks for lost jobs and hands them back to their queues.

Each worker process starts a thread for it. Of the processes that share a run directory one leads:
it holds a lock there, which the kernel gives to another as soon as it dies. It finds what dead
processes of this host were running, at once. What the whole store knows, leases that have ended,
jobs that wait, and those whose message was lost (see `unbegun`), only that leader looks at which is
elected in the store.

Two that both work, for want of a run directory or of an answer, do no harm: each step of `recover`
is a change of the store that only one of them gets through.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import time
from typing import TYPE_CHECKING, Final

from tracedjobs._core.controls import recover_here
from tracedjobs._core.handing import hand_back, mark_unknown
from tracedjobs._core.owner import run_directory
from tracedjobs.errors import StoreError, StoreUnavailableError
from tracedjobs.queues.base import known_continuables, log
from tracedjobs.queues.stopping import WorkerStop, stop
from tracedjobs.queues.unbegun import Taken, start_look

if TYPE_CHECKING:
    from tracedjobs._core.runtime import Runtime
    from tracedjobs._core.signals import StopFlag

__all__ = ["keep_unknown", "start_recovery", "taken"]

EVERY: Final = 1.5
"""Seconds between two looks."""
SHORTEST: Final = 3 * EVERY
LONGEST: Final = 10.0
"""Seconds that an election lasts, within these as long as a lease: when the host of who was elected
fails, another one is before the leases of that host have ended."""
PURGE_EVERY: Final = 60.0

_started: dict[str, list[StopFlag | WorkerStop]] = {}
"""Of each family the workers of this process that want its jobs looked after."""
_leading: dict[str, tuple[int, str]] = {}
"""The lock's descriptor, and by which name this run directory is elected."""
_alone: Final = os.urandom(8).hex()
"""The same where there is no run directory."""
taken: Final = Taken()
"""What this worker has taken and not begun with, where its adapter tells."""


def start_recovery(family: str, worker: StopFlag | WorkerStop = stop) -> None:
    """Look after the jobs of that family's continuables, from this process, until it ends.

    Or until the last of its workers does, where it has several.
    """
    workers = _started.setdefault(family, [])
    if worker in workers:
        return
    workers.append(worker)
    if len(workers) > 1:
        return
    threading.Thread(
        target=_look, args=(family, workers), name="tracedjobs-recovery", daemon=True
    ).start()


def keep_unknown(family: str, job_id: str, task: str) -> None:
    """A message was thrown away since this worker has no such task: keep its job, if it is one.

    Whoever has the task, an older or newer version of the application, hands it back.
    """
    for runtime in {
        each.runtime for each in known_continuables() if each.family.startswith(family)
    }:
        try:
            if mark_unknown(runtime.store, job_id):
                log.error(
                    "The job %s was not run: this worker has no task %s. Its message is sent "
                    "again by a worker that has it.",
                    job_id,
                    task,
                )
        except StoreError as error:
            log.warning("Whether %s is a job cannot be told: %s", job_id, error)


def _look(family: str, workers: list[StopFlag | WorkerStop]) -> None:
    never = threading.Event()
    away: set[str] = set()
    purged: dict[str, float] = {}
    # Not once they are told to stop: a broker may give what is sent now to such a worker.
    while not all(each.came for each in workers):
        with contextlib.suppress(StoreError):  # which is told below
            taken.tell()
        for runtime in _runtimes(family):
            url = runtime.store.url
            holder = _leader(f"{family} {url}")
            if holder is None:
                continue
            try:
                if _look_after(runtime, family, holder) and _is_time(purged, url):
                    runtime.purge()
                away.discard(url)
            except StoreError as error:
                if url not in away:
                    away.add(url)
                    log.warning("Lost jobs cannot be looked for just now: %s", error)
            except Exception:  # noqa: BLE001 - a defect of ours must not end it
                log.exception("The recovery of lost jobs was stopped short; it goes on.")
        never.wait(EVERY)
    _started.pop(family, None)  # for a worker that begins later in this process
    for runtime in _runtimes(family):
        _, holder = _leading.get(f"{family} {runtime.store.url}", (0, _alone))
        with contextlib.suppress(StoreError):
            runtime.store.elect(family, holder, seconds=0)
    for each in workers:
        if not each.came:
            start_recovery(family, each)  # it began while this one came to its end


def _look_after(runtime: Runtime, family: str, holder: str) -> bool:
    """Whether this process is elected, and has looked at all that the store knows."""
    by = f"worker {runtime.worker}"
    for job_id in recover_here(runtime.store, by):
        hand_back(runtime.store, job_id)
    seconds = min(max(runtime.lease_ttl, SHORTEST), LONGEST)
    try:
        elected = runtime.store.elect(family, holder, seconds=seconds)
    except StoreUnavailableError:
        elected = True  # the node that knows: jobs of others are looked for all the same
    if elected:
        runtime.recover(by=by)
        start_look(runtime, family)
    return elected


def _is_time(purged: dict[str, float], url: str) -> bool:
    now = time.monotonic()
    if now - purged.setdefault(url, now) < PURGE_EVERY:
        return False
    purged[url] = now
    return True


def _runtimes(family: str) -> list[Runtime]:
    found = {
        each.runtime.store.url: each.runtime
        for each in known_continuables()
        if each.family == family
    }
    return list(found.values())


def _leader(what: str) -> str | None:
    """The name to be elected by, if this process leads those of its run directory.

    It takes the lock if that is free, and keeps it. The name is the directory's and not the
    process's: so its next leader is elected at once where this one was.
    """
    if what in _leading:
        return _leading[what][1]
    try:
        name = hashlib.blake2b(what.encode(), digest_size=8).hexdigest()
        handle = os.open(run_directory() / f"recovery.{name}", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return _alone
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    _leading[what] = handle, _name_in(handle)
    return _leading[what][1]


def _name_in(handle: int) -> str:
    try:
        found = os.pread(handle, 64, 0)
        if len(found) != len(_alone):
            found = os.urandom(8).hex().encode()
            os.pwrite(handle, found, 0)
        return found.decode("ascii", "replace")
    except OSError:
        return _alone


def _after_fork_in_child() -> None:
    # The lock is the parent's: a child that kept it would outlive it with nobody at work.
    _started.clear()
    while _leading:
        with contextlib.suppress(OSError):
            os.close(_leading.popitem()[1][0])


os.register_at_fork(after_in_child=_after_fork_in_child)
