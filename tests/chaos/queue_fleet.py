"""Workers of a queue that are restarted and killed at random while they do many jobs.

This drives, with the queue's own broker, its own workers and its own messages; what must hold of
the lines that the jobs write is checked in `queue_checks`.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.queues.harness import session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.queues.harness import Place, Worker
    from tracedjobs import JobSnapshot

__all__ = ["LEASE", "MORE", "Fleet", "Form", "History", "Restart", "Sent"]

LEASE: Final = 10.0
"""Longer than a busy machine keeps a process from its processor; nothing waits for it on a host."""
PATIENCE: Final = 120.0
"""Seconds without one job more that is done; messages that died are missed after two looks."""
STOPS: Final = 20.0
"""Seconds within which a worker that was stopped is to end."""

MORE: Final = '''
import faulthandler, signal
from tests.chaos.journal import Journal

faulthandler.register(signal.SIGUSR2, file=2)

@continuable(app, **SOON, checkpoint_every=0.5)
def journaled(ctx, path, items, pace):
    """Writes a line an item, before the item's work, and one at each begin and end."""
    journal = Journal(path, ctx.run)
    try:
        journal.write("begin")
        for item in ctx.each("items", range(items)):
            journal.write("item", "items", item)
            time.sleep(pace)
        journal.write("end")
    finally:
        os.close(journal._file)
    return f"journaled {items}"
'''


@dataclass(frozen=True, slots=True)
class Form:
    """How much is done."""

    workers: int = 2
    jobs: int = 20
    rolling: int = 0
    """Restarts of all workers, one after the other, as a deployment does."""
    restarts: int = 3
    """Restarts of one of them."""
    kills: int = 3
    items: int = 60
    """The most that a job has."""
    pace: float = 0.01
    pause: float = 0.2
    """Seconds between two events, on average."""
    soon: float = 1.0
    """Of all restarts, the share where the next worker starts before the last one has ended."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A job: where it writes, how many items it has, the queue's handle."""

    job_id: str
    path: Path
    items: int
    handle: Any


@dataclass(frozen=True, slots=True)
class Restart:
    """When a worker with these processes was sent a SIGTERM, by the clock of the records."""

    at: float
    pids: frozenset[int]


@dataclass(slots=True)
class History:
    """What was done to the fleet."""

    kills: list[tuple[float, frozenset[int]]] = field(default_factory=list)
    """When which processes were killed at once, by the monotonic clock."""
    restarts: list[Restart] = field(default_factory=list)
    seconds: float = 0.0


class Fleet:
    """The driver: `run` does the jobs to their end, with all that happens on the way."""

    def __init__(self, place: Place, form: Form, seed: int) -> None:
        self._place = place
        self._form = form
        self._chance = random.Random(seed)
        self._workers: list[Worker] = []
        self._hurt: set[int] = set()
        """Workers that lost a process of their own to a kill, which their logs tell of."""
        self._open: list[Sent] = []
        self.sent: list[Sent] = []
        self.history = History()

    def run(self) -> None:
        """All of it."""
        began = time.monotonic()
        self._workers = [self._place.start() for _ in range(self._form.workers)]
        for _ in range(self._form.jobs):
            self._send()
        for worker in self._workers:
            worker.says_ready()
        events: list[Callable[[], None]] = [
            *[self._roll] * self._form.rolling,
            *[self._restart] * self._form.restarts,
            *[self._kill] * self._form.kills,
        ]
        self._chance.shuffle(events)
        for event in events:
            self._keep_busy()
            self._wait_for_any()
            time.sleep(self._chance.uniform(0, 2 * self._form.pause))
            event()
        give_up, before = time.monotonic() + PATIENCE, 0
        while left := self._left():
            if len(left) != before:
                give_up, before = time.monotonic() + PATIENCE, len(left)
            assert time.monotonic() < give_up, self._why(left)
            self._keep_running()
            time.sleep(0.05)
        self.history.seconds = time.monotonic() - began

    # -- what happens ---

    def _restart(self) -> None:
        self._replace(self._chance.choice(self._workers))

    def _roll(self) -> None:
        for at in range(len(self._workers)):
            self._keep_busy()
            worker = self._workers[at]
            worker.says_ready()
            self._wait_for_job(worker)
            self._replace(worker)

    def _replace(self, worker: Worker) -> None:
        """Stop it; the next one starts before it has ended, or after."""
        at = self._workers.index(worker)
        pids = frozenset(session(worker.process.pid))
        # One that is at no job may be about to start, without its handlers of signals.
        unclean = worker.process.pid in self._hurt or not self._runs_of(worker)
        if worker.process.poll() is None:
            self.history.restarts.append(Restart(self._place.runtime.store.time(), pids))
            worker.stop()
        soon = self._chance.random() < self._form.soon
        if soon:
            self._workers[at] = self._place.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(STOPS)
        if worker.process.poll() is None:
            self._have_stacks_told(worker)
        if unclean:
            assert worker.process.poll() is not None, worker.text()
            worker.kill()
        else:
            worker.ends(0.0)
        if not soon:
            self._workers[at] = self._place.start()

    def _kill(self) -> None:
        """Kill a worker with all its processes, or the one alone that runs a job."""
        running = self._running()
        if running and self._chance.random() < 0.3:
            pid = int(self._chance.choice(running).runs[-1].worker.rpartition(":")[2])
            worker = next((each for each in self._workers if _is_of(pid, each)), None)
            if worker is not None:
                self._note_kill(frozenset({pid}))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                self._hurt.add(worker.process.pid)
                if pid == worker.process.pid:
                    self._start_anew(worker)
                return
        worker = self._chance.choice(self._workers)
        self._note_kill(frozenset(session(worker.process.pid)))
        self._start_anew(worker)

    def _have_stacks_told(self, worker: Worker) -> None:
        """Have all processes of a worker that hangs write into its log where they are."""
        for pid in session(worker.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)
        time.sleep(1.0)

    def _start_anew(self, worker: Worker) -> None:
        for pid in session(worker.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        worker.process.wait(STOPS)
        self._workers[self._workers.index(worker)] = self._place.start()

    def _note_kill(self, pids: frozenset[int]) -> None:
        self.history.kills.append((time.monotonic(), pids))

    # -- its means ---

    def _send(self) -> None:
        kind, form = self._place.kind, self._form
        path = self._place.folder / f"job{len(self.sent)}"
        items = self._chance.randint(form.items // 4, form.items)
        handle = kind.send(self._place.app.journaled, str(path), items, form.pace)
        self.sent.append(Sent(kind.id_of(handle), path, items, handle))
        self._open.append(self.sent[-1])

    def _keep_running(self) -> None:
        """Start workers anew that ended when one of their processes was killed."""
        for at, worker in enumerate(self._workers):
            if worker.process.poll() is not None:
                assert worker.process.pid in self._hurt, worker.text()
                worker.kill()
                self._workers[at] = self._place.start()

    def _keep_busy(self) -> None:
        """Let no event find workers without jobs, or a worker that has ended."""
        self._keep_running()
        for _ in range(3 * self._form.workers - len(self._left())):
            self._send()

    def _wait_for_any(self) -> None:
        """Wait until a job runs, which may be after those that died with a worker were missed."""
        give_up = time.monotonic() + PATIENCE
        while not self._running():
            assert time.monotonic() < give_up, self._why(self._left())
            self._keep_running()
            time.sleep(0.05)

    def _wait_for_job(self, worker: Worker) -> None:
        """Wait until the worker is at a job, for as long as one may have to wait in its queue."""
        give_up = time.monotonic() + 3.0
        while not self._runs_of(worker) and time.monotonic() < give_up:
            time.sleep(0.05)

    def _runs_of(self, worker: Worker) -> list[JobSnapshot]:
        return [
            job
            for job in self._place.runtime.list(status="running", limit=50)
            if _is_of(int(job.runs[-1].worker.rpartition(":")[2]), worker)
        ]

    def _running(self) -> list[JobSnapshot]:
        return [job for worker in self._workers for job in self._runs_of(worker)]

    def _left(self) -> list[Sent]:
        self._open = [
            sent for sent in self._open if self._place.job(sent.job_id).status != "completed"
        ]
        return self._open

    def _why(self, left: list[Sent]) -> str:
        jobs = [self._place.job(sent.job_id) for sent in left[:5]]
        told = "\n".join(
            f"{job.id} {job.status} {job.reason} run {job.run} {job.runs[-2:]}" for job in jobs
        )
        return f"{len(left)} jobs are left:\n{told}\n{self._place.told()[-8000:]}"


def _is_of(pid: int, worker: Worker) -> bool:
    try:
        return os.getsid(pid) == worker.process.pid
    except ProcessLookupError:
        return False
