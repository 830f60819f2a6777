"""A recorded fleet: jobs of three types that complete, fail, are stopped, killed and resumed.

Run as a process of its own, `python fleet.py STORE_URL`, while an exporter serves the store. It has
done one job of each type, says so, and goes on at a line of input: what Prometheus is to count, it
must have seen before. Then it says in a line of JSON what has happened by its own count, not by the
store's, holds what is running, and ends when its input does.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from tracedjobs import Context, Runtime, job, telemetry
from tracedjobs.errors import JobRunningError
from tracedjobs.testing import interrupt_during

if TYPE_CHECKING:
    from collections.abc import Iterator

ORDERS, MAILS, INDEX = "shop:import_orders", "shop:send_mails", "shop:reindex"
ROWS = 40
JOBS = 40
"""Of each type, besides those that are killed or held."""
KILLS = 2
LEASE = 5.0
HOLD = threading.Event()


@job(name=ORDERS, resume_delay=0, deadline=2.0)
def import_orders(ctx: Context, rows: int, pace: float, hang_at: int = -1) -> None:
    """Holds at that row; at a pace it takes a while, and is late."""
    ctx.step("open", lambda: None)
    for row in ctx.each("rows", range(rows), total=rows):
        if row == hang_at:
            HOLD.wait()
        time.sleep(pace)
    ctx.step("close", lambda: None)


@job(name=MAILS, resume_delay=0, resume_errors_after_advancing=True)
def send_mails(ctx: Context, mails: int, bad: int = -1, pace: float = 0.0) -> None:
    """Raises at that mail: an interruption after progress, and a failure the second time.

    Its cursors are texts: so a kill has what was done since the last save done again.
    """

    def addresses(after: str | None) -> Iterator[tuple[int, str]]:
        for mail in range(0 if after is None else int(after) + 1, mails):
            yield mail, str(mail)

    for mail in ctx.each("mails", addresses):
        if mail == bad:
            msg = "no such address"
            raise ValueError(msg)
        time.sleep(pace)


@job(name=INDEX, resume_delay=0, stall_after=1.0)
def reindex(ctx: Context, pages: int, hang_at: int = -1) -> None:
    """Hangs at that page: a stall."""
    for page in ctx.each("pages", range(pages), total=pages):
        if page == hang_at:
            HOLD.wait()


class Fleet:
    """Submits jobs and sees to what happens to them; counts it in `tally`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.runtime = Runtime(url, lease_ttl=LEASE)
        self.tally: Counter[str] = Counter()
        self.held: dict[str, str] = {}
        self.threads: list[threading.Thread] = []

    def submit(self, kind: Any, *arguments: object) -> str:
        self.tally[f"enqueued {kind.name}"] += 1
        return self.runtime.submit(kind, *arguments)

    def run(self, job_id: str, *, stop_at: tuple[str, int] | None = None) -> None:
        stopping = None if stop_at is None else interrupt_during(*stop_at)
        outcome = self.runtime.perform(job_id, stopping=stopping)
        self.tally[f"run {outcome.status}"] += 1
        if outcome.status == "interrupted":
            self.tally[f"reason {outcome.reason}"] += 1
        else:
            self.tally[f"finished {outcome.status}"] += 1

    def first(self) -> None:
        """One of each type."""
        for kind in (import_orders, send_mails, reindex):
            arguments = (ROWS, 0.0) if kind is import_orders else (ROWS,)
            self.run(self.submit(kind, *arguments))
            self.tally[f"items {kind.name}"] += ROWS

    def history(self) -> None:
        """What is over when somebody looks."""
        for number in range(JOBS):
            job_id = self.submit(import_orders, ROWS, 0.0)
            if number % 5 == 0:
                self.run(job_id, stop_at=("rows", ROWS // 2))
            self.run(job_id)
            self.tally[f"items {ORDERS}"] += ROWS
            self._mails(number)
            job_id = self.submit(reindex, ROWS)
            if number % 10 == 0:
                self.runtime.cancel(job_id)
                self.tally["finished cancelled"] += 1
            else:
                self.run(job_id)
                self.tally[f"items {INDEX}"] += ROWS
        for _ in range(KILLS):
            self._killed()
        self._paused()

    def _mails(self, number: int) -> None:
        bad = 3 if number % 7 == 0 else -1
        job_id = self.submit(send_mails, ROWS, bad)
        if bad < 0:
            self.run(job_id)
            self.tally[f"items {MAILS}"] += ROWS
            return
        self.run(job_id)  # it made progress before it raised
        try:
            self.run(job_id)
        except ValueError:
            self.tally["run failed"] += 1
            self.tally["finished failed"] += 1
        self.tally[f"items {MAILS}"] += bad

    def _killed(self) -> None:
        """A process with a job dies, and another goes on with the job."""
        job_id = self.submit(send_mails, 400, -1, 0.002)
        self._child_dies(job_id, after=50)
        self.tally["run lost"] += 1
        self.run(job_id)
        snapshot = self.runtime.get(job_id)
        self.tally["redone"] += snapshot.items_redone
        self.tally[f"items {MAILS}"] += 400 + snapshot.items_redone

    def _paused(self) -> None:
        """Stopped from outside, and resumed."""
        job_id = self.submit(import_orders, 4000, 0.01)
        thread = threading.Thread(target=self.runtime.perform, args=(job_id,))
        thread.start()
        _until(lambda: self.runtime.get(job_id).items > 3)
        self.runtime.pause(job_id)
        thread.join()
        self.tally["run paused"] += 1
        self.tally["reason paused"] += 1
        self.tally[f"items {ORDERS}"] += self.runtime.get(job_id).items
        self.held["paused"] = job_id

    def present(self) -> None:
        """What goes on while somebody looks."""
        # Its rate is known, and so is that it comes too late.
        self._holds("slow", self.submit(import_orders, 100_000, 0.01))
        self._holds("stalled", self.submit(reindex, ROWS, 10))
        lost = self.submit(import_orders, 1_000, 0.005)
        self._child_dies(lost, after=20)
        self.held["lost"] = lost
        self.held["pending"] = self.submit(send_mails, ROWS)
        waits = self.submit(reindex, ROWS)
        self.run(waits, stop_at=("pages", 5))
        self.tally[f"items {INDEX}"] += 5
        self.held["interrupted"] = waits
        try:
            self.runtime.perform(self.held["slow"])
        except JobRunningError:
            self.tally["refused"] += 1
        _until(lambda: self.runtime.get(self.held["stalled"]).stalled)
        _until(lambda: self.runtime.get(self.held["slow"]).time_left is not None)

    def _holds(self, name: str, job_id: str) -> None:
        self.held[name] = job_id
        thread = threading.Thread(target=self.runtime.perform, args=(job_id,), daemon=True)
        thread.start()
        self.threads.append(thread)
        _until(lambda: self.runtime.get(job_id).status == "running")

    def _child_dies(self, job_id: str, *, after: int) -> None:
        child = subprocess.Popen([sys.executable, __file__, self.url, job_id])
        _until(lambda: self.runtime.get(job_id).items >= after)
        child.kill()
        child.wait()

    def end(self) -> None:
        for name in ("slow", "stalled"):
            self.runtime.cancel(self.held[name])
        HOLD.set()
        for thread in self.threads:
            thread.join(10)
        self.runtime.close()


def _until(true: Any) -> None:
    give_up = time.monotonic() + 30
    while not true():
        if time.monotonic() > give_up:
            msg = "it takes too long"
            raise TimeoutError(msg)
        time.sleep(0.02)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    url = sys.argv[1]
    if len(sys.argv) > 2:
        with Runtime(url, lease_ttl=LEASE) as runtime:
            runtime.perform(sys.argv[2])
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    trace.set_tracer_provider(TracerProvider())  # that jobs have traces; nobody is sent them
    telemetry.configure(logs=False)
    fleet = Fleet(url)
    fleet.first()
    _say("begun")
    sys.stdin.readline()
    fleet.history()
    fleet.present()
    _say(json.dumps({"tally": fleet.tally, "held": fleet.held}))
    sys.stdin.read()
    fleet.end()


if __name__ == "__main__":
    main()
