"""The workers of a fleet: `python -m tests.chaos.redis_worker STORE LOG LEASE_TTL`.

It reads orders from its stdin, `fork RUN_DIRECTORY SKEW` and `wait PID`, and answers each with a
line. A worker is forked, for a fresh interpreter takes longer to start than most of them live.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Final

import tracedjobs._core.snapshot
import tracedjobs.stores.redis  # noqa: F401 - what workers import when they need it, imported once
from tests.chaos.redis_jobs import JOBS, Log, make_plan
from tracedjobs import Runtime
from tracedjobs.errors import JobRunningError, LeaseLostError, StoreError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracedjobs import JobSnapshot, Outcome
    from tracedjobs._core.records import Count, Position, Save, StepRecord

EXPECTED: Final = (JobRunningError, LeaseLostError, StoreUnavailableError)
IDLE: Final = 0.05
"""Seconds after which a worker that found nothing to do looks again."""
AT_ONCE: Final = 3
"""Async jobs that a worker does side by side, at most."""


class Worker:
    """Performs whatever job can go on, until it is told to stop."""

    def __init__(self, store: str, log: str, lease_ttl: float) -> None:
        self._runtime = Runtime(store, lease_ttl=lease_ttl)
        self._log = Log(log)
        self._leaving = False
        self._plans = dict[str, int]()
        self._note_saves()

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._leave)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        chance = random.Random()
        while not self._leaving:
            try:
                if chance.random() < 0.05:
                    self._runtime.recover()
                found = self._candidates(chance)
                if found:
                    self._perform(found)
                    continue
            except StoreUnavailableError:
                pass  # the server is away
            time.sleep(IDLE)
        self._runtime.close()

    def _leave(self, *_: object) -> None:
        self._leaving = True

    def _candidates(self, chance: random.Random) -> list[JobSnapshot]:
        """A `def` job, or some `async def` ones."""
        found: list[JobSnapshot] = []
        statuses = ["pending", "interrupted", "lost"]
        chance.shuffle(statuses)
        if chance.random() < 0.02:
            statuses.insert(0, "running")  # which is refused, or it has just been lost
        while statuses and not found:
            found = [*self._runtime.list(status=statuses.pop(0), limit=20)]
        chance.shuffle(found)
        first = found[:1]
        if not first or not JOBS[first[0].name].is_async:
            return first
        return [each for each in found if JOBS[each.name].is_async][: chance.randint(1, AT_ONCE)]

    def _perform(self, found: list[JobSnapshot]) -> None:
        for each in found:
            self._plans[each.id] = int(each.id.partition("-")[2])
        if JOBS[found[0].name].is_async:
            asyncio.run(self._perform_side_by_side(found))
            return
        try:
            self._note_end(found[0], self._runtime.perform(found[0].id))
        except EXPECTED as error:
            self._note_end(found[0], error)

    async def _perform_side_by_side(self, found: list[JobSnapshot]) -> None:
        async def one(each: JobSnapshot) -> None:
            try:
                self._note_end(each, await self._runtime.perform_async(each.id))
            except EXPECTED as error:
                self._note_end(each, error)

        async with asyncio.TaskGroup() as group:
            for each in found:
                group.create_task(one(each))

    # -- what is written down ---

    def _note_end(self, job: JobSnapshot, end: Outcome | Exception) -> None:
        if isinstance(end, Exception):
            self._log.write("end", job.id, step=type(end).__name__)
        else:
            self._log.write("end", job.id, end.run, step=str(end.status), value=end.reason)

    def _note_saved(self, job_id: str, token: str, position: Position | None, began: float) -> None:
        plan = make_plan(self._plans[job_id])
        place = 0 if position is None else plan.saved([], position)
        self._log.write("saved", job_id, 0, token, value=place, began=began)

    def _note_saves(self) -> None:
        """Write down what the store has acknowledged."""
        store = self._runtime.store
        save, save_one, complete = store.save, store.save_one, store.complete_step

        def noted_save(
            saves: Sequence[Save],
        ) -> Mapping[str, tuple[str | None, str | None] | StoreError]:
            began = time.monotonic()
            answer = save(saves)
            for each in saves:
                found = answer.get(each.job_id)
                if isinstance(found, tuple) and found[0] == each.token:
                    # Saved, or it came after a newer one: a place that is not behind this one.
                    self._note_saved(each.job_id, each.token, each.position, began)
            return answer

        def noted_one(each: Save) -> bool:
            began = time.monotonic()
            done = save_one(each)
            if done:
                self._note_saved(each.job_id, each.token, each.position, began)
            return done

        def noted_step(
            job_id: str,
            token: str,
            step: StepRecord,
            *,
            position: int,
            seq: int,
            state: str | None,
            lease_ttl: float | None,
            counts: Sequence[Count],
        ) -> bool:
            began = time.monotonic()
            done = complete(
                job_id,
                token,
                step,
                position=position,
                seq=seq,
                state=state,
                lease_ttl=lease_ttl,
                counts=counts,
            )
            if done:
                plan = make_plan(self._plans[job_id])
                place = plan.saved([part.name for part in plan.parts[: position + 1]], None)
                self._log.write("saved", job_id, 0, token, value=place, began=began)
            return done

        vars(store).update(save=noted_save, save_one=noted_one, complete_step=noted_step)


def skew_the_clock(seconds: float) -> None:
    """Let this process's wall clock be wrong."""
    right = time.time
    time.time = lambda: right() + seconds


def forked(words: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        run_directory, skew = words
        os.environ["TRACEDJOBS_RUN_DIR"] = run_directory
        skew_the_clock(float(skew))
        Worker(sys.argv[1], sys.argv[2], float(sys.argv[3])).run()
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
            answer = forked(words)
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(int(words[0]), 0)[1])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
