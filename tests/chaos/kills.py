"""Performs a random job in processes that are killed at random moments, and checks what was done.

`torture` is the driver, `_check_run` and `_check_end` say what must hold.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.chaos.jobs import JOBS
from tests.chaos.journal import Entry, read_journal
from tests.chaos.plan import Plan, make_plan
from tests.chaos.worker import INTERRUPTED
from tests.telemetry.scrapes import Watch, check_conserved, scraped
from tracedjobs import JobSnapshot, Runtime, Status

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Figures", "spawn", "torture"]

REPOSITORY: Final = Path(__file__).resolve().parents[2]
TICK: Final = 0.001
SLACK: Final = 0.1
"""Seconds that threads of a process may wait for each other, beside what was measured."""


@dataclass(slots=True)
class Figures:
    """What many jobs came to."""

    jobs: int = 0
    runs: int = 0
    kills: int = 0
    stops: int = 0
    items: int = 0
    redone: int = 0
    unsaved: int = 0
    """Items that the store did not know of when their process was killed."""
    most_unsaved: int = 0
    most_unsaved_at_0: int = 0
    """The same with `checkpoint_every=0`."""
    latest: float = float("-inf")
    """Seconds by which the oldest of these was older than `checkpoint_every`."""
    slowest_save: float = 0.0
    lost: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.stops} SIGTERMs, {self.jobs} jobs, {self.runs} runs, "
            f"{self.items} items, {self.lost} lost, {self.redone} done again, "
            f"{self.unsaved} not saved (most after one kill: {self.most_unsaved}, with "
            f"checkpoint_every=0: {self.most_unsaved_at_0}), oldest {self.latest * 1000:+.0f} ms "
            f"over checkpoint_every, slowest save {self.slowest_save * 1000:.0f} ms"
        )


@dataclass(frozen=True, slots=True)
class _Ended:
    """A process that ended: how, when it was told to, and how much slower than asked it was."""

    code: int
    at: float
    noise: float


def spawn(
    folder: Path, journal: Path, store: str, job_id: str, *, lease_ttl: float, mode: str
) -> Worker:
    """A worker process; `folder` has its run directory, and what it writes on stderr."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "TRACEDJOBS_RUN_DIR": str(folder / "run"),
    }
    with (folder / "errors").open("ab") as errors:
        return subprocess.Popen(
            [
                *(sys.executable, "-W", "error", "-m", "tests.chaos.worker"),
                *(store, job_id, str(journal), str(lease_ttl), mode),
            ],
            env=environment,
            cwd=REPOSITORY,
            stderr=errors,
        )


Worker = subprocess.Popen[bytes]


def torture(folder: Path, seed: int, figures: Figures) -> None:
    """Do the job of that seed to its end, killing its processes on the way."""
    chance = random.Random(seed)
    plan = make_plan(seed)
    journal = folder / "journal"
    figures.jobs += 1
    ends_left = chance.randint(2, 9)
    store = f"sqlite:///{folder}/jobs.db"
    counters = Watch()
    with Runtime(store) as runtime:
        job_id = runtime.submit(JOBS[plan.job_name], seed, str(journal))
        before = runtime.get(job_id)
        while True:
            process = spawn(folder, journal, store, job_id, lease_ttl=30, mode="once")
            if ends_left:
                ends_left -= 1
                end = _end(process, journal, plan, chance)
            else:
                end = _Ended(process.wait(60), time.monotonic(), 0.0)
            assert end.code in {0, INTERRUPTED, -signal.SIGKILL, -signal.SIGTERM}, (
                end,
                (folder / "errors").read_text(),
            )
            figures.kills += end.code == -signal.SIGKILL
            figures.stops += end.code == INTERRUPTED
            after = runtime.get(job_id)
            counted = scraped(runtime)
            counters.see(counted)
            check_conserved(counted, [after])
            _check_run(plan, read_journal(journal), before, after, end=end, figures=figures)
            if after.status is Status.COMPLETED:
                break
            if chance.random() < 0.2:
                runtime.recover()
                after = runtime.get(job_id)
                assert after.status is not Status.RUNNING
            before = after
        _check_end(plan, read_journal(journal), after, figures)


# -- the driver ---


def _end(process: Worker, journal: Path, plan: Plan, chance: random.Random) -> _Ended:
    """End the process somehow at a random moment, unless it has ended before."""
    noise = 0.0
    begun = _size(journal)
    moment = time.monotonic() + chance.uniform(0, 0.3)
    if chance.random() < 0.9:
        noise = _watch(process, lambda: _size(journal) > begun, 10)
        moment = time.monotonic() + chance.uniform(0, plan.seconds * 0.7 + 0.02)
    noise = max(noise, _watch(process, lambda: time.monotonic() >= moment, 60))
    how = chance.choices(("kill", "stop", "both"), (75, 15, 10))[0]
    if how != "kill":
        process.send_signal(signal.SIGTERM)
    if how == "both":
        moment = time.monotonic() + chance.uniform(0, 0.01)
        _watch(process, lambda: time.monotonic() >= moment, 60)
    at = time.monotonic()
    if how != "stop":
        process.kill()
    return _Ended(process.wait(60), at, noise)


def _watch(process: Worker, happened: Callable[[], bool], timeout: float) -> float:
    """Wait until it happened, or the process ended; by how much a pause was longer than asked."""
    give_up = time.monotonic() + timeout
    noise = 0.0
    while process.poll() is None and not happened():
        began = time.monotonic()
        assert began < give_up, "the process does nothing"
        time.sleep(TICK)
        noise = max(noise, time.monotonic() - began - TICK)
    return noise


def _size(journal: Path) -> int:
    return journal.stat().st_size if journal.exists() else 0


# -- what must hold ---


def _saved_place(plan: Plan, job: JobSnapshot) -> int:
    """How many of all items are done, says the store."""
    done = [step.name for step in job.steps if step.status == "completed"]
    assert done == [part.name for part in plan.parts[: len(done)]], job
    if len(done) == len(plan.parts):
        return plan.size
    part = plan.parts[len(done)]
    index = 0
    if job.current is not None:
        assert job.current.name == part.name, job
        index = part.index(job.current.cursor)
        if part.kind != "call":
            assert job.current.items == index, job
    if plan.has_state and isinstance(job.state, dict):
        assert {name: count for name, count in job.state.items() if count} == {
            each.name: size
            for each, size in [
                *((done, done.size) for done in plan.parts[: len(done)]),
                (part, index),
            ]
            if size
        }, job
    return plan.place(part.name, index)


def _check_run(
    plan: Plan,
    journal: list[Entry],
    before: JobSnapshot,
    after: JobSnapshot,
    *,
    end: _Ended,
    figures: Figures,
) -> None:
    """What one process did: it went on where the store said, and lost no more than is allowed."""
    entries = [entry for entry in journal if entry.run == after.run and entry.run > before.run]
    figures.runs += after.run > before.run
    _check_order(plan, entries, before, [entry for entry in journal if entry.run <= before.run])
    saved = _saved_place(plan, after)
    assert saved >= _saved_place(plan, before), "the store went back"
    if after.status is Status.RUNNING:
        assert after.lost, "a dead owner on the same host is recognised at once"
    again = [
        entry
        for entry in entries
        if entry.kind == "item" and plan.place(entry.step, int(entry.value)) >= saved
    ]
    saves = _saves(journal, end) if entries else [0.0]
    figures.unsaved += len(again)
    figures.most_unsaved = max(figures.most_unsaved, len(again))
    figures.slowest_save = max(figures.slowest_save, *saves)
    if end.code in {0, INTERRUPTED}:
        assert not again, f"nothing is done again after an interruption, but {again}"
    elif plan.checkpoint_every == 0:
        figures.most_unsaved_at_0 = max(figures.most_unsaved_at_0, len(again))
        assert len(again) <= 1, f"only the item in hand, but {again}"
    elif again:
        late = end.at - again[0].at - plan.checkpoint_every
        # The oldest of them may have been in hand when the last save began.
        late -= max(part.pace for part in plan.parts)
        figures.latest = max(figures.latest, late)
        allowed = max(saves) + 3 * end.noise + SLACK
        assert late <= allowed, f"{late:.3f} s late, allowed {allowed:.3f}: {len(again)} items"


def _check_order(
    plan: Plan, entries: list[Entry], before: JobSnapshot, earlier: list[Entry]
) -> None:
    """Steps in order, items in order, from the right place on: nothing left out, nothing twice."""
    if not entries:
        return
    completed = [step.name for step in before.steps if step.status == "completed"]
    place = _begun_at(plan, entries, _saved_place(plan, before), earlier)
    for entry in entries:
        if entry.kind == "begin":
            assert entry.value == (",".join(completed) or "-")
        elif entry.kind == "open":
            assert entry.step not in completed, f"{entry} is done already"
            index, counted = entry.value.split("/")
            assert plan.place(entry.step, int(index)) == place, f"{entry}, not {place}"
            assert not plan.has_state or index == counted, entry
        elif entry.kind == "item":
            assert entry.step not in completed, f"{entry} is done already"
            assert plan.place(entry.step, int(entry.value)) == place, f"{entry}, not {place}"
            place += 1
        elif entry.kind == "past" and entry.step not in completed:
            completed.append(entry.step)
            part = next(part for part in plan.parts if part.name == entry.step)
            assert plan.place(entry.step, part.size) == place, f"{entry} at {place}"


def _begun_at(plan: Plan, entries: list[Entry], saved: int, earlier: list[Entry]) -> int:
    """Where the run began: not before what was saved, and not after what was done.

    After a kill the flight recorder knows better than the store. Where it holds the cursor, the
    item in hand is all that may be done again.
    """
    opened = next((entry for entry in entries if entry.kind == "open"), None)
    if opened is None:
        return saved
    index = int(opened.value.split("/")[0])
    place = plan.place(opened.step, index)
    done = max(
        (1 + plan.place(e.step, int(e.value)) for e in earlier if e.kind == "item"), default=0
    )
    assert saved <= place <= max(saved, done), f"{opened}: {saved} saved, {done} done"
    part = next(part for part in plan.parts if part.name == opened.step)
    if part.kind in {"range", "list"} and not plan.has_state:
        assert place >= done - 1, f"{opened}: {done} done"
    return place


def _saves(journal: list[Entry], end: _Ended) -> list[float]:
    """How many seconds the saves of the last process took, one that was cut off included."""
    pid = journal[-1].pid
    marks = [entry for entry in journal if entry.pid == pid and entry.kind in {"save", "saved"}]
    begins = [mark.at for mark in marks if mark.kind == "save"]
    ends = [mark.at for mark in marks if mark.kind == "saved"]
    ends += [end.at] * (len(begins) - len(ends))
    return [0.0, *(over - began for began, over in zip(begins, ends, strict=True))]


def _check_end(plan: Plan, journal: list[Entry], job: JobSnapshot, figures: Figures) -> None:
    done = {plan.place(entry.step, int(entry.value)) for entry in journal if entry.kind == "item"}
    figures.lost += plan.size - len(done)
    figures.redone += sum(entry.kind == "item" for entry in journal) - len(done)
    figures.items += plan.size
    assert done == set(range(plan.size)), f"lost: {set(range(plan.size)) - done}"
    assert [(step.name, step.status) for step in job.steps] == [
        (part.name, "completed") for part in plan.parts
    ]
    for step, part in zip(job.steps, plan.parts, strict=True):
        results = {e.value for e in journal if e.kind == "past" and e.step == part.name}
        assert len(results) == 1, f"the result of {part.name} changed: {results}"
        if part.kind == "call":
            assert results == {step.result}
        else:
            assert step.items == part.size
            assert part.index(step.cursor) == part.size
    assert job.result == ",".join(
        str(step.result)
        for step, part in zip(job.steps, plan.parts, strict=True)
        if part.kind == "call"
    )
    assert [run.number for run in job.runs] == list(range(1, job.run + 1))
