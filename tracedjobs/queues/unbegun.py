"""Jobs whose message was taken by a worker that was killed before it began with them.

Such a job is pending, as is one that waits in a long queue; which of the two it is only the broker
knows, and it knows of messages, not of workers. So whoever is elected to look for lost jobs asks it
now and then which messages it holds, and sends those anew that it did not hold at two looks. A
worker that has taken a message and cannot begin with it yet says so in the store, see `Taken`.

Why nothing is lost, and nothing sent without need:

- A message that was lost is in no list, ever: so it is missed at the next two looks. The first one
  is noted in the job itself (`MISSED`, and when that was), so that it does not matter who makes the
  second, nor how often recoverers are replaced in between.
- A message may be missed though it is there: it was on its way from the broker to a worker, from a
  publisher or a scheduler to the broker, or from one of the broker's lists to another, while these
  were read. By the second look, `patience` later, it has arrived: then it is in the broker, which
  ends the suspicion, or with a worker. That one has begun with the job, which is not pending any
  more; or it has told within `patience` that it has not, which ends the suspicion too. Either way
  the job's revision is another one. The note of the first look and the sending after the second are
  changes of the revision that was read before the broker was asked, so they are refused then.
- Who was slower than that (a publisher that tries for minutes, a worker that was frozen, or whose
  store is away) finds that a copy was sent beside its message. Whichever of the two comes first
  takes the lease; the other is refused as a duplicate while the job runs, and after its end is
  answered as one that comes again. A copy that is lost in its turn is missed in its turn.
- Two who look at the same time, for want of an election, have each change made by one of them.
- A message with an ETA is not looked for before that has come (`JobRecord.hand_at`): where it waits
  until then is the queue's affair.

What a look costs is bounded: a page of the jobs that are due longest, and one behind those that
were looked at last; of the broker what comes before the last of these jobs, as a rule, and `MOST`
messages at most. Where that takes long the next look comes later.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from tracedjobs._core.handing import hand_back_unbegun, sender_of
from tracedjobs._core.records import Change, Status
from tracedjobs.errors import StoreError
from tracedjobs.queues.base import Continuable, log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tracedjobs._core.records import JobRecord
    from tracedjobs._core.runtime import Runtime
    from tracedjobs.stores.base import Store

__all__ = ["A_FEW", "MISSED", "MOST", "Taken", "look_for_unbegun", "start_look"]

PAGE: Final = 1000
"""Jobs that are read at once, twice a look at most."""
A_FEW: Final = PAGE
"""Messages that are read first, where all are read at once: as a rule no more are needed."""
MOST: Final = 100_000
"""Messages of a broker that are read in a look: of jobs behind these nothing is known."""
SHORTEST: Final = 4.5
"""Seconds that lie between two looks at least, three times as long as between two looks of a worker
at what it has taken."""
SHARE: Final = 200
"""A look is made once in that many times as long as it takes, or once a minute."""
LONGEST: Final = 60.0
MISSED: Final = "missed"
"""The reason of a pending job whose message the broker did not hold at the last look."""

_came_to: Final[WeakKeyDictionary[Store, dict[str, float]]] = WeakKeyDictionary()
"""Of each family up to which moment the last look came that did not see all."""
_looking: Final[dict[str, threading.Thread]] = {}


def patience_of(runtime: Runtime) -> float:
    """Seconds after which a message that was on its way has arrived."""
    return max(runtime.lease_ttl, SHORTEST)


class Taken:
    """The messages that this process has taken from the broker, and may not have begun with.

    For workers that take more than they can begin with at once. `tell` is called now and then; it
    knows from the store which of the jobs are pending still.
    """

    def __init__(self) -> None:
        self._since: dict[str, tuple[Continuable, float, Callable[[], bool]]] = {}
        """Of each job its task, when it was taken or last told of, and whether it is here still."""

    def add(
        self,
        made: Continuable,
        job_id: str,
        *,
        wait: float = 0.0,
        here: Callable[[], bool] = lambda: True,
    ) -> None:
        """A message has come, which is not to begin before `wait` seconds.

        `here` says whether it is in this process still, for one whose end nobody tells.
        """
        self._since[job_id] = made, time.monotonic() + max(wait, 0.0), here

    def discard(self, job_id: str) -> None:
        """Its delivery is over."""
        self._since.pop(job_id, None)

    def tell(self) -> None:
        """Put off the look for those that have waited for a while."""
        now = time.monotonic()
        for job_id, (made, since, here) in list(self._since.items()):
            if not here():
                self.discard(job_id)
                continue
            if now - since < patience_of(made.runtime) / 2:
                continue
            stored = made.runtime.store.load(job_id)
            if stored is None or stored.job.status is not Status.PENDING:
                self.discard(job_id)
                continue
            _note(made.runtime.store, stored.job, handed_at=made.runtime.store.time(), reason=None)
            if job_id in self._since:
                self._since[job_id] = made, now, here


def start_look(runtime: Runtime, family: str) -> None:
    """Look, in a thread of its own, unless the last look is not over, or not long ago.

    A broker that hangs is not to keep the caller from jobs whose workers died.
    """
    what = f"{family} {runtime.store.url}"
    before = _looking.get(what)
    if before is not None and before.is_alive():
        return
    _looking[what] = threading.Thread(
        target=_look, args=(runtime, family), name="tracedjobs-unbegun", daemon=True
    )
    _looking[what].start()


def _look(runtime: Runtime, family: str) -> None:
    # One look at a time, whoever recovers: elected is the look itself, for as long as none is due.
    name, holder, store = f"{family} unbegun", os.urandom(8).hex(), runtime.store
    period = patience_of(runtime) + 1.0
    try:
        if not store.elect(name, holder, seconds=period):
            return
        began = time.monotonic()
        told = list(_looked_for(runtime, family))
        longer = min(SHARE * (time.monotonic() - began), LONGEST)
        if longer > period:
            store.elect(name, holder, seconds=longer)
        _act(store, told)
    except StoreError:
        pass  # which the recovery tells
    except Exception:  # noqa: BLE001 - a defect of ours must not end it
        log.exception("A look for messages that were lost was stopped short.")


def look_for_unbegun(runtime: Runtime, family: str) -> list[str]:
    """One look, at jobs of that family; the ids of those that were sent anew."""
    return _act(runtime.store, list(_looked_for(runtime, family)))


def _looked_for(runtime: Runtime, family: str) -> Iterator[tuple[JobRecord, bool, float]]:
    """Of each job that it is time for whether its message is there, and when the look began."""
    store = runtime.store
    began = store.time()
    seen_lately = began - patience_of(runtime)
    brokers: dict[int, list[tuple[Continuable, JobRecord]]] = {}
    for job in _due(store, family):
        made = sender_of(job)
        if not isinstance(made, Continuable) or made.family != family:
            continue  # others look after it
        if job.handed_at is None or job.handed_at <= seen_lately:
            brokers.setdefault(id(getattr(made, "app", made)), []).append((made, job))
    for pairs in brokers.values():
        for job, found in _told(pairs[0][0], [job for _, job in pairs]):
            yield job, found, began


def _act(store: Store, told: Iterable[tuple[JobRecord, bool, float]]) -> list[str]:
    sent: list[str] = []
    for job, found, began in told:
        if found and job.reason == MISSED:
            _note(store, job, reason=None)
        elif not found and job.reason != MISSED:
            _note(store, job, handed_at=began, reason=MISSED)
        elif not found and hand_back_unbegun(store, job):
            sent.append(job.id)
    return sent


def _note(store: Store, job: JobRecord, **columns: object) -> None:
    """Note that in the job, if it is still as it was read."""
    store.change(Change(job.id, job.revision, columns))


def _due(store: Store, family: str) -> Sequence[JobRecord]:
    """Those that are due longest, and some that were not looked at the last time."""
    came_to = _came_to.setdefault(store, {})
    first = store.unbegun(limit=PAGE)
    if len(first) < PAGE:
        came_to.pop(family, None)
        return first
    end = first[-1].hand_at or 0.0
    more = store.unbegun(limit=PAGE, after=max(came_to.get(family, end), end))
    came_to[family] = more[-1].hand_at or 0.0 if len(more) == PAGE else end
    return [*first, *more]


def _told(made: Continuable, jobs: Sequence[JobRecord]) -> Iterable[tuple[JobRecord, bool]]:
    """Of each job whether the broker holds its message; nothing where that is not known."""
    try:
        held = made.held(jobs)
        if held is None:
            return ()
        wanted = {job.id for job in jobs}
        for number, job_id in enumerate(held):
            if number >= MOST:
                return [(job, True) for job in jobs if job.id not in wanted]
            wanted.discard(job_id)
            if not wanted:
                break
    except Exception as error:  # noqa: BLE001 - whatever the broker raises
        log.warning(
            "Whether messages of %s were lost cannot be told just now (%s: %s).",
            made.family, type(error).__name__, error,
        )  # fmt: skip
        return ()
    return [(job, job.id not in wanted) for job in jobs]
