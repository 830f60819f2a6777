"""A fleet of workers on one Redis, all of which are killed, stopped, frozen and started at random.

This drives; what must hold of the log that the workers leave is checked in `redis_checks`.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import redis

from tests.chaos.redis_jobs import JOBS, make_plan
from tests.telemetry.scrapes import Watch, scraped
from tracedjobs import Runtime
from tracedjobs.errors import StoreUnavailableError
from tracedjobs.stores.redis.keys import SHARDS, Keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.stores.redis_servers import RedisServer

__all__ = ["Fleet", "Form", "History"]

REPOSITORY: Final = Path(__file__).resolve().parents[2]
TICK: Final = 0.002
SKEW: Final = 3600.0
PATIENCE: Final = 120.0


@dataclass(frozen=True, slots=True)
class Form:
    """How much is done."""

    workers: int = 4
    jobs: int = 20
    kills: int = 40
    freezes: int = 4
    rolling: int = 1
    stops: int = 1
    crashes: int = 1
    silences: int = 1
    pause: float = 0.3
    """Seconds between two events, on average."""
    lease_ttl: float = 2.0


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when a worker was frozen, or the server was away."""

    began: float
    ended: float
    pid: int = 0
    crashed: bool = False
    """The server was killed: its newest writes may be lost."""


@dataclass(slots=True)
class History:
    """What was done to the fleet."""

    kills: dict[int, float] = field(default_factory=dict)
    """When each process was killed, by pid."""
    terms: int = 0
    freezes: list[Span] = field(default_factory=list)
    outages: list[Span] = field(default_factory=list)
    noise: list[tuple[float, float]] = field(default_factory=list)
    """When a pause of the driver was longer than asked, and by how much."""
    scrapes: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Worker:
    slot: int
    pid: int
    handle: int
    frozen: bool = False

    @property
    def ended(self) -> bool:
        return bool(select.select([self.handle], [], [], 0)[0])


class Fleet:
    """The driver: `run` does the jobs to their end, with all that happens on the way."""

    def __init__(self, folder: Path, server: RedisServer, form: Form, seed: int) -> None:
        self._folder = folder
        self._server = server
        self._form = form
        self._chance = random.Random(seed)
        self._log = folder / "log"
        self._log.touch()
        self._workers: list[_Worker] = []
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._server_busy = False
        self._counters = Watch()
        self.jobs: list[str] = []
        self.history = History()
        self.runtime = Runtime(server.url, lease_ttl=form.lease_ttl)
        with (folder / "errors").open("ab") as errors:
            self._zygote = subprocess.Popen(
                [
                    *(sys.executable, "-W", "error", "-m", "tests.chaos.redis_worker"),
                    *(server.url, str(self._log), str(form.lease_ttl)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )

    @property
    def errors(self) -> str:
        """What the workers wrote on stderr."""
        return (self._folder / "errors").read_text("utf-8")

    def run(self) -> None:
        """All of it."""
        began = time.monotonic()
        try:
            self._submit(self._form.jobs)
            self._workers = [self._start(slot) for slot in range(self._form.workers)]
            for event in self._events():
                self._wait(self._chance.uniform(0, 2 * self._form.pause))
                self._keep_busy()
                event()
            while self._later:
                self._wait(TICK)
            self._wait_for_completion()
            for worker in self._workers:
                assert self._term(worker) == 0, self.errors
        finally:
            for worker in self._workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
            self._zygote.kill()
            self._zygote.communicate()
            self.history.seconds = time.monotonic() - began

    # -- what happens ---

    def _events(self) -> list[Callable[[], None]]:
        form = self._form
        events: list[Callable[[], None]] = [
            *[self._kill] * form.kills,
            *[self._freeze] * form.freezes,
            *[self._roll] * form.rolling,
            *[self._stop_server] * form.stops,
            *[self._crash_server] * form.crashes,
            *[self._silence_server] * form.silences,
        ]
        self._chance.shuffle(events)
        return events

    def _kill(self) -> None:
        worker = self._chance.choice(self._workers)
        self.history.kills[worker.pid] = time.monotonic()
        os.kill(worker.pid, signal.SIGKILL)
        assert self._ends(worker) == -signal.SIGKILL, self.errors
        self._restart(worker)

    def _roll(self) -> None:
        """Restart all workers, one after the other, as a deployment does."""
        for worker in list(self._workers):
            if not worker.frozen:
                self.history.terms += 1
                assert self._term(worker) == 0, self.errors
                self._restart(worker)

    def _freeze(self) -> None:
        """Freeze a worker, most often beyond its leases."""
        worker = self._chance.choice([each for each in self._workers if not each.frozen])
        os.kill(worker.pid, signal.SIGSTOP)
        worker.frozen = True
        began = time.monotonic()
        lease_ttl = self._form.lease_ttl

        def thaw() -> None:
            ended = time.monotonic()
            if worker in self._workers:
                os.kill(worker.pid, signal.SIGCONT)
            worker.frozen = False
            self.history.freezes.append(Span(began, ended, worker.pid))

        self._do_later(self._chance.uniform(0.5, 1.8) * lease_ttl, thaw)

    def _stop_server(self) -> None:
        self._end_server(signal.SIGTERM)

    def _crash_server(self) -> None:
        self._end_server(signal.SIGKILL)

    def _end_server(self, number: int) -> None:
        self._have_server()
        began = time.monotonic()
        process = self._server.process
        assert process is not None
        process.send_signal(number)
        process.wait(PATIENCE)

        def start() -> None:
            self._server.start()
            crashed = number == signal.SIGKILL
            self._note_outage(began, crashed=crashed)
            if crashed:
                self._counters.forget()  # what it lost is gone from the counters too
                self._submit(0)

        self._do_later(self._chance.uniform(0, 1.5) * self._form.lease_ttl, start)

    def _silence_server(self) -> None:
        self._have_server()
        began = time.monotonic()
        process = self._server.process
        assert process is not None
        process.send_signal(signal.SIGSTOP)

        def wake() -> None:
            process.send_signal(signal.SIGCONT)
            self._note_outage(began, crashed=False)

        self._do_later(self._chance.uniform(0.1, 1.5) * self._form.lease_ttl, wake)

    def _have_server(self) -> None:
        """Wait until the server is back, and a little: two outages at once are one."""
        while self._server_busy:
            self._wait(TICK)
        self._server_busy = True

    def _note_outage(self, began: float, *, crashed: bool) -> None:
        self.history.outages.append(Span(began, time.monotonic(), crashed=crashed))
        self._server_busy = False

    # -- its means ---

    def _do_later(self, seconds: float, what: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, what))

    def _wait(self, seconds: float) -> None:
        moment = time.monotonic() + seconds
        while True:
            self._run_later()
            began = time.monotonic()
            if began >= moment:
                break
            time.sleep(TICK)
            late = time.monotonic() - began - TICK
            if late > 2 * TICK:
                self.history.noise.append((began, late))
        for worker in self._workers:
            assert not worker.ended, self.errors

    def _submit(self, more: int) -> None:
        """Submit more jobs, and again those that a crash of the server may have lost."""
        for _ in range(more):
            # Each its own: of ten thousand from one range two are the same once in twenty times.
            self.jobs.append(f"job-{len(self.jobs) * 10**6 + self._chance.randrange(10**6)}")
        for job_id in self.jobs[-more:] if more else self.jobs:
            seed = int(job_id.partition("-")[2])
            job = JOBS[make_plan(seed).job_name]
            give_up = time.monotonic() + PATIENCE
            while True:
                try:
                    self.runtime.submit(job, seed, str(self._log), job_id=job_id)
                    break
                except StoreUnavailableError:
                    assert time.monotonic() < give_up
                    time.sleep(0.05)

    def _keep_busy(self) -> None:
        if self._server_busy:
            return
        counted = scraped(self.runtime)
        if counted:  # else the server has just gone
            self._counters.see(counted)
            self.history.scrapes += 1
        left = len(self.jobs) - self.completed()
        wanted = 2 * self._form.workers
        if left < wanted:
            self._submit(wanted - left)

    def completed(self) -> int:
        """How many jobs are completed, as the server's indexes say."""
        keys = Keys("tj")
        with self._server.client() as client:
            pipeline = client.pipeline(transaction=False)
            for shard in range(SHARDS):
                pipeline.zcard(keys.at(shard, "i:completed"))
            try:
                return sum(pipeline.execute())
            except redis.RedisError:
                return len(self.jobs)

    def _wait_for_completion(self) -> None:
        give_up = time.monotonic() + PATIENCE
        while self.completed() < len(self.jobs):
            assert time.monotonic() < give_up, f"{self.completed()} of {len(self.jobs)} are done"
            self._wait(0.1)

    def _start(self, slot: int) -> _Worker:
        """A worker of that slot; half of the slots stand for hosts of their own."""
        name = f"host{slot}" if slot % 2 else "host"
        directory = self._folder / name
        directory.mkdir(mode=0o700, exist_ok=True)
        pid = self._order(f"fork {directory} {self._chance.uniform(-SKEW, SKEW)}")
        return _Worker(slot, pid, os.pidfd_open(pid))

    def _restart(self, worker: _Worker) -> None:
        self._workers[self._workers.index(worker)] = self._start(worker.slot)

    def _term(self, worker: _Worker) -> int:
        give_up = time.monotonic() + PATIENCE
        os.kill(worker.pid, signal.SIGTERM)
        while not worker.ended:
            assert time.monotonic() < give_up, "a worker does not end"
            self._run_later()
            time.sleep(TICK)
        return self._ends(worker)

    def _run_later(self) -> None:
        now = time.monotonic()
        for each in [each for each in self._later if each[0] <= now]:
            self._later.remove(each)
            each[1]()

    def _ends(self, worker: _Worker) -> int:
        code = self._order(f"wait {worker.pid}")
        os.close(worker.handle)
        return code

    def _order(self, text: str) -> int:
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write(text + "\n")
        self._zygote.stdin.flush()
        return int(self._zygote.stdout.readline())
