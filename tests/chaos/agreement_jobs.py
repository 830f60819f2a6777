"""The jobs of a fleet that is looked at, and its workers.

`python -m tests.chaos.agreement_jobs STORE LEASE_TTL` reads orders from its stdin, `fork` and
`wait PID`, and answers each with a line: a worker is forked, for OpenTelemetry takes longer to
import than most of them live.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, Final

import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401 - what workers import

import tracedjobs._core.snapshot
import tracedjobs.stores.redis
import tracedjobs.telemetry.setup  # noqa: F401 - when they need it, imported once
from tracedjobs import AsyncContext, Context, Job, Runtime, Step, job, telemetry
from tracedjobs.errors import (
    InvalidTransitionError,
    JobRunningError,
    LeaseLostError,
    StoreUnavailableError,
)
from tracedjobs.telemetry import sender

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["JOBS", "AsAskedError"]

EXPECTED: Final = (
    InvalidTransitionError,
    JobRunningError,
    LeaseLostError,
    StoreUnavailableError,
)
IDLE: Final = 0.02
"""Seconds after which a worker that found nothing to do looks again."""
EVERY: Final = 0.1
CLAIM: Final = 1.0


class AsAskedError(Exception):
    """A job that was to fail."""


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


@job(name="agree:rows", resume_delay=0, checkpoint_every=EVERY)
def rows(ctx: Context, items: int, pace: float, *, fails: bool) -> None:
    """A loop whose place the flight recorder keeps, around which steps are called."""
    ctx.step("prepare", _sleep, pace)
    for _ in ctx.each("rows", range(items)):
        time.sleep(pace)
    if fails:
        raise AsAskedError
    ctx.step("finish", _sleep, pace)


@job(name="agree:texts", resume_delay=0, checkpoint_every=EVERY)
def texts(ctx: Context, items: int, pace: float, *, fails: bool) -> None:
    """Cursors of text, of which a kill loses the last: items are done again."""

    def source(cursor: str | None) -> Iterator[tuple[int, str]]:
        for at in range(int(cursor or 0), items):
            yield at, f"{at + 1}"

    def pages(step: Step) -> None:
        step.total = items // 2  # found late
        for page in range(step.cursor, items // 2):
            time.sleep(pace)
            step.set(page + 1)

    for _ in ctx.each("texts", source):
        time.sleep(pace)
    ctx.step("pages", pages, start=0)
    if fails:
        raise AsAskedError


@job(name="agree:async", resume_delay=0, checkpoint_every=EVERY)
async def asynchronous(ctx: AsyncContext, items: int, pace: float, *, fails: bool) -> None:
    """State beside the cursor, in a task."""
    await ctx.step("prepare", asyncio.sleep, pace)
    async for _ in ctx.each("rows", range(items), total=2 * items):  # which it never gets to
        ctx.state["seen"] = ctx.state.get("seen", 0) + 1
        await asyncio.sleep(pace)
    if fails:
        raise AsAskedError


@job(name="agree:hangs", resume_delay=0, checkpoint_every=EVERY, stall_after=0.3)
def hangs(ctx: Context, items: int, pace: float, *, fails: bool) -> None:
    """Stalls for a while."""
    for item in ctx.each("rows", range(items // 3)):
        time.sleep(1.0 if item == items // 6 else pace)
    if fails:
        raise AsAskedError


JOBS: Final[tuple[Job[..., Any], ...]] = (rows, texts, asynchronous, hangs)


class Worker:
    """Performs whatever job can go on, until it is told to stop."""

    def __init__(self, store: str, lease_ttl: float) -> None:
        self._runtime = Runtime(store, lease_ttl=lease_ttl)
        self._leaving = False

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._leave)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        # A claim of one that is killed while it sends lasts half a minute, else.
        sender.CLAIM = sender.SWEEP_EVERY = CLAIM  # type: ignore[misc]  # shorter, for the test
        telemetry.configure(service_name="fleet", logs=False)
        telemetry.watch(self._runtime)
        chance = random.Random()
        while not self._leaving:
            try:
                if chance.random() < 0.1:
                    self._runtime.recover()
                if self._perform_one(chance):
                    continue
            except EXPECTED:
                pass
            time.sleep(IDLE)
        self._runtime.close()

    def _leave(self, *_: object) -> None:
        self._leaving = True

    def _perform_one(self, chance: random.Random) -> bool:
        statuses = ["pending", "interrupted", "lost"]
        chance.shuffle(statuses)
        for status in statuses:
            found = self._runtime.list(status=status, limit=20)
            if not found:
                continue
            one = chance.choice(found)
            try:
                if one.name == asynchronous.name:
                    asyncio.run(self._runtime.perform_async(one.id))
                else:
                    self._runtime.perform(one.id)
            except AsAskedError:
                pass  # it failed without having got on
            return True
        return False


def forked(store: str, lease_ttl: float) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        Worker(store, lease_ttl).run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    # So that one that comes before the new worker has its handler is not lost, and ends nothing.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    for line in sys.stdin:
        order, *words = line.split()
        if order == "fork":
            answer = forked(sys.argv[1], float(sys.argv[2]))
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(int(words[0]), 0)[1])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
