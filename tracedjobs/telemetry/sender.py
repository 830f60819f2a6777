"""Sends the spans that jobs owe, from a thread of its own, and notes in the store what was sent.

A span counts as sent only when its exporter said so. Whoever sends claims the job first (see
`Store.claim_spans`) and reads it afterwards: so of two that find the same job one sends, and the
other finds nothing owed. A process that is killed after its exporter said so and before that was
noted leaves spans that are sent again, with the same ids; nothing can close that gap, which is one
write long. A process that is killed before leaves its claim, and another one sends when that ends.

What ended here is sent at once, completed steps of a run that goes on every few seconds, and what
others left is looked for four times a minute, in every process that has telemetry.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from tracedjobs._core.clock import boot_time
from tracedjobs._core.records import SpansSent
from tracedjobs.errors import StoreError, StoreUnavailableError
from tracedjobs.stores.base import LONGEST_CLAIM
from tracedjobs.telemetry.spans import owed_by

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan

    from tracedjobs.stores.base import Store
    from tracedjobs.telemetry.spans import Extras

__all__ = ["Sender", "SpanSink"]

SOON: Final = 0.2
"""Seconds from a run's end to its spans: those that end together go together."""
STEPS_EVERY: Final = 5.0
SWEEP_EVERY: Final = 15.0
AT_EXIT: Final = 5.0
"""Seconds that a process waits for the thread when it ends."""
CLAIM: Final = 30.0
"""Seconds of a claim, at least: for one request, and before it the reading of its jobs."""
BATCH: Final = 64
"""Jobs that are claimed and sent together."""
LARGEST: Final = 512
"""Spans in one request, as OpenTelemetry's own batches have."""
QUICK: Final = 1.0
"""Seconds: what fails sooner was refused; while a collector is away its exporter tries on."""
MOST_FAILURES: Final = 4
MOST_UNNOTED: Final = 1000
NO_REVISION: Final = -1
"""That of no job: the claim goes back, and more is owed."""

_Key = tuple[int, str]


class SpanSink(Protocol):
    """Where spans go."""

    @property
    def longest(self) -> float:
        """Seconds that a request takes at most."""
        ...

    def resource(self) -> Resource:
        """The resource of this process."""
        ...

    def send(self, spans: Sequence[ReadableSpan]) -> bool:
        """Send them; whether they have arrived."""
        ...


class Sender:
    """One a process; its thread begins with the first news, and anew after a fork."""

    _log: Final = logging.getLogger("tracedjobs")

    def __init__(self, sink: SpanSink, extras: dict[str, Extras]) -> None:
        """Send to that sink; `extras`, what users put on spans of this process, go when sent."""
        self._sink = sink
        self._extras = extras
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._news: dict[_Key, tuple[Store, float]] = {}
        self._unnoted: deque[tuple[Store, list[SpansSent]]] = deque(maxlen=MOST_UNNOTED)
        self._stores: weakref.WeakValueDictionary[int, Store] = weakref.WeakValueDictionary()
        self._sweep_at = boot_time() + SWEEP_EVERY
        self._thread: threading.Thread | None = None
        self._exiting = False
        self.on_tick: Callable[[], object] = lambda: None
        atexit.register(self.flush, at_exit=True)
        os.register_at_fork(after_in_child=self._after_fork_in_child)

    def watch(self, store: Store) -> None:
        """Look in that store for what others left."""
        with self._changed:
            self._stores[id(store)] = store
            self._start()

    def tell(self, store: Store, job_id: str, *, soon: bool) -> None:
        """That job has something to send."""
        if not soon and (id(store), job_id) in self._news and not self._exiting:
            # After each step: what comes sooner reads the job when it is due, and finds this too.
            return
        due = boot_time() + (SOON if soon else STEPS_EVERY)
        with self._changed:
            self._stores[id(store)] = store
            there = self._news.get((id(store), job_id))
            if there is None or due < there[1]:
                self._news[id(store), job_id] = (store, due)
                self._start()
                self._changed.notify_all()
        if self._exiting:
            self._send_due(boot_time() + STEPS_EVERY)

    def flush(self, store: Store | None = None, *, at_exit: bool = False) -> None:
        """Send what is left, of that store alone where one is given."""
        self._exiting = self._exiting or at_exit
        if not self._sending.acquire(timeout=AT_EXIT):
            return  # the exporter hangs; whoever finds the jobs sends
        self._sending.release()
        self._sweep([store] if store is not None else self._watched())
        self._send_due(boot_time() + STEPS_EVERY, store)
        if store is not None:
            with self._changed:
                self._stores.pop(id(store), None)

    # -- its own ---

    def _start(self) -> None:
        if (self._thread is None or not self._thread.is_alive()) and not self._exiting:
            thread = threading.Thread(target=self._loop, name="tracedjobs-spans", daemon=True)
            with suppress(RuntimeError):  # no more threads may begin; the next news tries again
                thread.start()
                self._thread = thread

    def _watched(self) -> list[Store]:
        with self._changed:
            return list(self._stores.values())

    def _loop(self) -> None:
        while True:
            with self._changed:
                dues = [due for _, due in self._news.values()]
                wait = min([self._sweep_at, *dues]) - boot_time()
                if wait > 0:
                    self._changed.wait(min(wait, STEPS_EVERY))
            try:
                self.on_tick()
                if boot_time() >= self._sweep_at:
                    self._sweep_at = boot_time() + SWEEP_EVERY
                    self._sweep(self._watched())
                if self._unnoted:
                    with self._sending:
                        self._note()
                self._send_due(boot_time())
            except Exception:  # noqa: BLE001 - it is logged, and jobs go on
                self._log.exception("The sending of spans failed; it goes on.")
                with self._changed:
                    self._changed.wait(STEPS_EVERY)

    def _sweep(self, stores: Sequence[Store]) -> None:
        # What others left, and what ended without a run.
        for store in stores:
            with suppress(StoreError):  # it is away, or closed
                owing = store.owing(limit=BATCH)
                with self._changed:
                    for job_id in owing:
                        self._news.setdefault((id(store), job_id), (store, boot_time()))

    def _send_due(self, now: float, only: Store | None = None) -> None:
        groups: dict[int, tuple[Store, list[str]]] = {}
        with self._changed:
            due = [
                key
                for key, (store, due) in self._news.items()
                if due <= now and (only is None or store is only)
            ]
            for key in due:
                store, _ = self._news.pop(key)
                groups.setdefault(key[0], (store, []))[1].append(key[1])
        for store, ids in groups.values():
            with self._sending, suppress(StoreError):
                # A store that is away has the jobs still; they are found when it is back.
                self._send(store, ids)

    def _send(self, store: Store, ids: list[str]) -> None:
        at_a_time, failures = BATCH, 0
        while ids and failures < MOST_FAILURES:
            began = boot_time()
            ids, worked = self._send_some(store, ids, at_a_time)
            if not worked:
                if at_a_time == BATCH and boot_time() - began > QUICK:
                    return  # an outage: who looks next tries again
                # A refusal, perhaps of what one job has; the others are not to wait for it.
                at_a_time, failures = 1, failures + 1

    def _send_some(self, store: Store, ids: list[str], most: int) -> tuple[list[str], bool]:
        """One claim and one request; the jobs that are left for the next, and whether it worked."""
        began = boot_time()
        longest = self._sink.longest
        seconds = min(max(CLAIM, 3 * longest), LONGEST_CLAIM)
        asked, left = ids[:most], ids[most:]
        claims = store.claim_spans(asked, seconds=seconds)
        spans: list[ReadableSpan] = []
        sent: list[SpansSent] = []
        rest: list[str] = []
        for job_id, claim in claims.items():
            room = LARGEST - len(spans)
            if room <= 0:
                rest.append(job_id)
                sent.append(_nothing(job_id, claim))
                continue
            stored = store.load(job_id)
            if stored is None:
                continue  # its retention is over
            owed = owed_by(stored, self._sink.resource(), self._extras, most=room)
            if not owed.all:
                rest.append(job_id)
            spans += owed.spans
            revision = stored.job.revision if owed.all else NO_REVISION
            sent.append(SpansSent(job_id, claim, revision, owed.steps, owed.runs, owed.root))
        # Looked at last: a process that was frozen meanwhile holds nothing any more.
        in_time = boot_time() - began < seconds - longest
        worked = in_time and (not spans or self._sink.send(spans))
        if worked:
            for span in spans:
                if span.context is not None:
                    self._extras.pop(f"{span.context.span_id:016x}", None)
        else:
            # The claims go back. Those that failed come after those that nobody has tried.
            sent, rest = [_nothing(each.job_id, each.claim) for each in sent], list(claims)
        self._unnoted.append((store, sent))
        self._note()
        return (rest + left if worked or most > 1 else left), worked

    def _note(self) -> None:
        """Note what was sent, and what could not be noted before while its store was away."""
        for each in list(self._unnoted):
            store, sent = each
            try:
                store.spans_sent(sent)
            except StoreUnavailableError:
                continue
            except StoreError as error:  # it was closed, say
                self._log.warning("That spans were sent cannot be noted: %s", error)
            self._unnoted.remove(each)

    def _after_fork_in_child(self) -> None:
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._news = {}
        self._unnoted.clear()
        self._thread = None
        self._exiting = False


def _nothing(job_id: str, claim: float) -> SpansSent:
    """The claim goes back as it was."""
    return SpansSent(job_id, claim, NO_REVISION, 0, 0, root=False)
