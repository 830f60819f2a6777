"""The one thread a process that saves positions, renews leases and brings back wishes.

It never runs the user's code and never decides how a run ends: it only asks runs to stop.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import random
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from tracedjobs._core import owner
from tracedjobs._core.clock import boot_time
from tracedjobs._core.telling import tell_saved
from tracedjobs.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tracedjobs._core.records import Save
    from tracedjobs._core.run import Run
    from tracedjobs.stores.base import Store

__all__ = ["WISHES", "saver"]

SHARE: Final = 0.5
"""Of `checkpoint_every` between two saves: the rest is for the save itself to get through."""
LONGEST: Final = 1.0
"""Seconds between two ticks of a run, whatever its `checkpoint_every`: wishes are seen by then."""
SHORTEST: Final = 0.02
PURGE_FIRST: Final = 0.5
PURGE_EVERY: Final = 60.0
PURGE_AGAIN: Final = 0.2
"""Seconds until a store is purged: after its first run, as a rule, and where more is left."""
PURGED_AT_ONCE: Final = 500
COUNT_EVERY: Final = 10.0
WISHES: Final = {"pause": "paused", "cancel": "cancelled"}
"""The reason to stop that belongs to each wish of an operator."""


class Saver:
    """Saves all runs of this process, those that are due, in one round trip a store."""

    _log: Final = logging.getLogger("tracedjobs")

    def __init__(self) -> None:
        """Have no runs, and no thread yet."""
        self._changed = threading.Condition()
        self._due: dict[Run, float] = {}
        self._wakes_at = math.inf
        """When the thread, if it waits, looks again by itself."""
        self._failures: dict[Run, int] = {}
        self._purge_at: WeakKeyDictionary[Store, float] = WeakKeyDictionary()
        self._used: set[Store] = set()
        """Stores that had a run since they were last purged."""
        self._count_at: WeakKeyDictionary[Store, float] = WeakKeyDictionary()
        self._thread: threading.Thread | None = None
        self.release: Callable[[Run], object] | None = None

    def add(self, run: Run) -> None:
        """Save that run from now on; starts the thread when there is none."""
        with self._changed:
            due = self._due[run] = boot_time() + _interval(run)
            if run.store not in self._used:
                # In this order: a signal's exception in between leaves no store without its time.
                due = min(due, self._purge_at.setdefault(run.store, boot_time() + PURGE_FIRST))
                self._used.add(run.store)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._loop, name="tracedjobs-saver", daemon=True
                )
                self._thread.start()
            if due < self._wakes_at:
                # Else not: to wake a thread costs more than all else that a short job needs.
                self._changed.notify_all()

    def remove(self, run: Run) -> None:
        """Save that run no more."""
        with self._changed:
            self._due.pop(run, None)
            self._failures.pop(run, None)

    def runs(self) -> tuple[Run, ...]:
        """The runs that are being saved. Takes no lock, for signal handlers call it."""
        return tuple(self._due.copy())

    def _loop(self) -> None:
        while True:
            self._turn()

    def _turn(self) -> None:
        """Wait until something is due, and do it; what is over by then is held by nothing here."""
        with self._changed:
            while (wait := self._time_to_wait()) > 0:
                self._changed.wait(None if math.isinf(wait) else wait)
            runs = list(self._due.items())
            used = list(self._used)
        try:
            self._tick(runs)
            for store in used:
                self._purge(store, boot_time())
        except BaseException:
            # A defect of ours, or a listener's: the leases of all runs hang on this thread.
            self._log.exception("The saver failed; it goes on.")
            later = boot_time() + SHORTEST * 10
            for run, _ in runs:
                self._again(run, later)
            with self._changed:
                for store in used:
                    self._purge_at[store] = max(self._purge_at[store], later)

    def _time_to_wait(self) -> float:
        now = boot_time()
        purges = [self._purge_at[each] for each in self._used]
        due = min([*self._due.values(), *purges], default=math.inf)
        self._wakes_at = max(now, due)  # and while it is at work nobody needs to call
        return due - now

    def _tick(self, runs: list[tuple[Run, float]]) -> None:
        # The clock before all else: when this process was frozen for longer than its leases, its
        # loops have been running since it woke, and must ask before they do another item.
        now = boot_time()
        for run, _ in runs:
            if now >= run.lease_deadline:
                run.doubt()
        # Those that are due soon come along, so that runs fall into step: one write for all.
        for store, group in _by_store(
            (run for run, due in runs if due <= now),
            (run for run, due in runs if now < due <= now + _interval(run) / 2),
        ):
            self._save(store, group)
            self._count(store, group, now)

    def _save(self, store: Store, runs: list[Run]) -> None:
        began = boot_time()
        taken: list[tuple[Run, Save]] = []
        for run in runs:
            if run in self._failures and began >= run.lease_deadline - run.margin:
                run.request_stop("store_unavailable")  # before the next try, which may take long
            _check_runtime(run, began)
            save = self._taken(run, began)
            if save is not None:
                taken.append((run, save))
        try:
            answer = store.save([save for _, save in taken])
        except StoreError:
            self._back_off([run for run, _ in taken])
            return
        away: list[Run] = []
        dues: list[tuple[Run, float]] = []
        for run, save in taken:
            found = answer.get(run.record.id, (None, None))
            if isinstance(found, StoreError):
                away.append(run)  # the server that has this job: others have answered
                continue
            self._failures.pop(run, None)
            _note_answer(run, save, *found, began)
            dues.append((run, began + _interval(run)))
        if away:
            self._back_off(away)
        # At once: where another thread wants that lock and a third one computes, each handing
        # over of it takes the interpreter's switch interval, and there is one a run.
        with self._changed:
            self._due.update((run, due) for run, due in dues if run in self._due)

    def _taken(self, run: Run, now: float) -> Save | None:
        try:
            return run.watched_save()
        except Exception:
            # One job's cursor that cannot be stored: it meets the same error at its next item, when
            # it asks for its lease, and the others are saved.
            run.doubt()
            self._log.exception("The position of job %s cannot be saved.", run.record.id)
            self._again(run, now + _interval(run))
            return None

    def _back_off(self, runs: list[Run]) -> None:
        # One pause for all, so that they stay in step; each is asked to stop by its own lease.
        failures = max((self._failures.get(run, 0) for run in runs), default=0) + 1
        with self._changed:
            self._failures.update((run, failures) for run in runs if run in self._due)
        pause = min(0.05 * 2 ** min(failures, 6), 2.0) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        now = boot_time()
        for run in runs:
            give_up = run.lease_deadline - run.margin
            if now >= give_up:
                run.request_stop("store_unavailable")
            self._again(run, min(now + pause, give_up) if now < give_up else now + pause)

    def _again(self, run: Run, due: float) -> None:
        with self._changed:
            if run in self._due:
                self._due[run] = due

    def _purge(self, store: Store, now: float) -> None:
        # By itself and not with a save: of short jobs none is ever due to be saved.
        if now < self._purge_at[store]:
            return
        owner.freshen_held()
        pause = PURGE_EVERY
        with suppress(StoreError):  # it will be tried again, and nothing depends on it
            if store.purge(limit=PURGED_AT_ONCE) >= PURGED_AT_ONCE:
                pause = PURGE_AGAIN
        with self._changed:
            self._purge_at[store] = now + pause
            if pause == PURGE_EVERY and all(run.store is not store for run in self._due):
                self._used.discard(store)

    def _count(self, store: Store, runs: list[Run], now: float) -> None:
        # What the saves of long runs add; the rest goes with the runs' own changes.
        if now < self._count_at.get(store, 0.0):
            return
        self._count_at[store] = now + COUNT_EVERY
        counts = [count for run in runs for count in run.pending.take(run.record)]
        if counts:
            with suppress(StoreError):
                store.count(counts)

    def _release_all(self) -> None:
        # The interpreter ends: what is left are runs in daemon threads. Their last position is
        # saved and their leases are given back, here and not in a thread, for none can be started.
        for run in self.runs():
            run.request_stop("exit")
            try:
                if self.release is not None:
                    self.release(run)
            except BaseException:  # the other runs are left to be released
                self._log.exception("A run could not be released.")

    def _after_fork_in_child(self) -> None:
        inherited = self._due
        self._changed = threading.Condition()
        self._due = {}
        self._wakes_at = math.inf
        self._failures = {}
        self._used = set()
        self._thread = None
        for run in inherited:
            run.let_go()  # the cell is the parent's
            run.lose(f"this process was forked from the one that runs it (pid {os.getppid()})")


def _interval(run: Run) -> float:
    every = run.options.checkpoint_every * SHARE or LONGEST
    shortest = max(min(every, LONGEST, run.lease_ttl / 3), SHORTEST)
    limit = run.options.max_runtime
    if limit is not None and run.stop_reason is None:
        left = run.started_boot + limit - boot_time()
        shortest = min(shortest, max(left, SHORTEST))
    return shortest


def _check_runtime(run: Run, now: float) -> None:
    limit = run.options.max_runtime
    if limit is not None and now - run.started_boot >= limit:
        run.request_stop("max_runtime")


def _note_answer(run: Run, save: Save, token: str | None, wish: str | None, began: float) -> None:
    if token != run.token:
        if not run.ended:
            run.lose("another run has taken it over")
        return
    run.lease_deadline = began + run.lease_ttl
    if wish is not None:
        run.request_stop(WISHES[wish])
    else:
        run.withdraw_stop()
    if tell_saved(run, save) and save.position is not None:
        run.pending.checkpoint(save.position.step, boot_time() - began)


def _by_store(due: Iterable[Run], soon: Iterable[Run]) -> list[tuple[Store, list[Run]]]:
    groups: dict[int, tuple[Store, list[Run]]] = {}
    for run in due:
        groups.setdefault(id(run.store), (run.store, []))[1].append(run)
    for run in soon:
        if id(run.store) in groups:
            groups[id(run.store)][1].append(run)
    return list(groups.values())


saver: Final = Saver()
os.register_at_fork(after_in_child=saver._after_fork_in_child)
atexit.register(saver._release_all)
