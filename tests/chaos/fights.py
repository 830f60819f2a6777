"""Two processes that want the same job, frozen and woken at random: only leases decide.

Each has a run directory of its own, so that neither can see that the other is dead or alive. A
table in the store's file, filled by triggers, tells which process wrote what, in true order.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.chaos.jobs import JOBS
from tests.chaos.journal import Entry, read_journal
from tests.chaos.kills import TICK, spawn
from tests.chaos.plan import Plan, make_plan
from tracedjobs import Runtime, Status

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.kills import Worker
    from tracedjobs import JobSnapshot

__all__ = ["FightFigures", "fight"]

AUDIT: Final = """
CREATE TABLE audit (number INTEGER PRIMARY KEY, what TEXT, run INTEGER, writer INTEGER);
CREATE TRIGGER audit_jobs AFTER UPDATE ON jobs BEGIN
    INSERT INTO audit (what, run, writer) VALUES (
        CASE WHEN new.run > old.run THEN 'start' ELSE 'write' END, new.run, writer());
END;
CREATE TRIGGER audit_steps AFTER INSERT ON steps BEGIN
    INSERT INTO audit (what, run, writer) VALUES (
        'step', (SELECT run FROM jobs WHERE seq = new.job), writer());
END;
"""
ENDS: Final = frozenset({"completed", "JobRunningError", "LeaseLostError"})
AWAY: Final = frozenset({"store_unavailable", "StoreUnavailableError"})
"""Ends that are right while the other process is frozen with the store's write lock in hand."""


STRETCH: Final = 8.0
MOST_FREEZES: Final = 6
"""A fight: with a `checkpoint_every` above the lease it might else go on for ever."""
WAKING: Final = 0.1
"""Seconds within which the saver of a process that was woken has looked at the clock."""


@dataclass(slots=True)
class FightFigures:
    """What many fights came to."""

    fights: int = 0
    freezes: int = 0
    runs: int = 0
    writes: int = 0
    takeovers: int = 0
    stray: int = 0
    """Items done by a run after its successor had begun."""
    most_stray: int = 0
    longest_stray: float = 0.0
    away: int = 0

    def __str__(self) -> str:
        return (
            f"{self.fights} fights, {self.freezes} freezes, {self.runs} runs, {self.takeovers} "
            f"takeovers, {self.writes} writes, none of an old run; {self.stray} items of old runs "
            f"(most {self.most_stray}, up to {self.longest_stray * 1000:.0f} ms after waking), "
            f"{self.away} ends because the store was locked"
        )


@dataclass(frozen=True, slots=True)
class _Freeze:
    pid: int
    began: float
    ended: float


def fight(folder: Path, seed: int, figures: FightFigures) -> None:
    """Let two processes do the job of that seed, freezing one and the other."""
    chance = random.Random(seed)
    plan = make_plan(seed, STRETCH)
    journal = folder / "journal"
    store = f"sqlite:///{folder}/jobs.db"
    lease_ttl = chance.uniform(0.6, 1.0)
    figures.fights += 1
    freezes: list[_Freeze] = []
    noise = 0.0
    with Runtime(store) as runtime:
        job_id = runtime.submit(JOBS[plan.job_name], seed, str(journal), STRETCH)
        with closing(sqlite3.connect(folder / "jobs.db")) as raw:
            raw.executescript(AUDIT)
        processes = [
            spawn(folder / name, journal, store, job_id, lease_ttl=lease_ttl, mode="until_done")
            for name in ("a", "b")
        ]
        try:
            while len(freezes) < MOST_FREEZES and any(each.poll() is None for each in processes):
                noise = max(noise, _freeze_one(processes, journal, chance, lease_ttl, freezes))
            for process in processes:
                process.wait(60)
        finally:
            for process in processes:
                process.kill()
        errors = "".join((folder / name / "errors").read_text() for name in ("a", "b"))
        assert [process.wait(10) for process in processes] == [0, 0], errors
        job = runtime.get(job_id)
    figures.freezes += len(freezes)
    entries = read_journal(journal)
    with closing(sqlite3.connect(folder / "jobs.db")) as raw:
        audit = raw.execute("SELECT what, run, writer FROM audit ORDER BY number").fetchall()
    _check_writers(audit, figures)
    _check_items(plan, entries, freezes, figures, noise=noise)
    _check_losers(entries, job, freezes, figures)
    _check_end(plan, entries, job)


def _freeze_one(
    processes: list[Worker],
    journal: Path,
    chance: random.Random,
    lease_ttl: float,
    freezes: list[_Freeze],
) -> float:
    """Freeze a process, most often the one that runs the job, and often beyond its lease."""
    noise = _wait(processes, chance.uniform(0, 0.3))
    process = chance.choice(processes)
    running = [entry.pid for entry in read_journal(journal) if entry.kind == "begin"][-1:]
    if chance.random() < 0.7:
        process = next((each for each in processes if [each.pid] == running), process)
    if process.poll() is not None:
        return noise
    process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    _wait(
        processes,
        chance.uniform(0.9, 1.6) * lease_ttl if chance.random() < 0.7 else chance.uniform(0, 0.3),
    )
    ended = time.monotonic()
    process.send_signal(signal.SIGCONT)
    freezes.append(_Freeze(process.pid, began, ended))
    return noise


def _wait(processes: list[Worker], seconds: float) -> float:
    """Wait, but not for processes that ended; by how much a pause was longer than asked."""
    moment = time.monotonic() + seconds
    noise = 0.0
    while time.monotonic() < moment and any(process.poll() is None for process in processes):
        began = time.monotonic()
        time.sleep(TICK)
        noise = max(noise, time.monotonic() - began - TICK)
    return noise


# -- what must hold ---


def _check_writers(audit: list[tuple[str, int, int]], figures: FightFigures) -> None:
    """Each run's writes come from the process that began it, and runs do not mix."""
    owner, current = 0, 0
    for what, run, writer in audit:
        if what == "start":
            assert run == current + 1, (what, run, writer)
            owner, current = writer, run
        assert (run, writer) == (current, owner), f"{what} of {writer} in run {run} of {owner}"
    figures.writes += len(audit)
    figures.runs += current


def _check_items(
    plan: Plan,
    entries: list[Entry],
    freezes: list[_Freeze],
    figures: FightFigures,
    *,
    noise: float,
) -> None:
    """A run does its items in order, and next to none after its successor began."""
    begins = {entry.run: entry for entry in entries if entry.kind == "begin"}
    for run, begin in begins.items():
        place = None
        later = [other.at for number, other in begins.items() if number > run]
        over = min(later, default=float("inf"))
        stray: list[Entry] = []
        for entry in entries:
            if entry.run != run or entry.kind not in {"open", "item"}:
                continue
            assert entry.pid == begin.pid
            index, *counted = entry.value.split("/")
            here = plan.place(entry.step, int(index))
            assert place is None or here == place, f"{entry}, not {place}"
            assert not plan.has_state or not counted or counted == [index], entry
            place = here + (entry.kind == "item")
            if entry.kind == "item" and entry.at > over:
                stray.append(entry)
        figures.takeovers += over < float("inf")
        figures.stray += len(stray)
        figures.most_stray = max(figures.most_stray, len(stray))
        for entry in stray:
            woken = max(
                (
                    each.ended
                    for each in freezes
                    if each.pid == entry.pid and each.ended <= entry.at
                ),
                default=None,
            )
            assert woken is not None, f"{entry} of a run that was never frozen"
            figures.longest_stray = max(figures.longest_stray, entry.at - woken)
            assert entry.at - woken < WAKING + 3 * noise, (
                f"{entry}, {entry.at - woken:.3f} s after waking"
            )


def _check_losers(
    entries: list[Entry], job: JobSnapshot, freezes: list[_Freeze], figures: FightFigures
) -> None:
    """Who does not complete the job is told that another has it."""
    for entry in entries:
        if entry.kind != "end" or entry.step in ENDS:
            continue
        assert entry.step in AWAY, entry
        figures.away += 1
        assert any(
            each.pid != entry.pid and each.began <= entry.at <= each.ended + 2 for each in freezes
        ), f"{entry}, though nobody else was frozen"
    lost = {run.number for run in job.runs if run.outcome == "lost"}
    told = [entry for entry in entries if entry.kind == "end" and entry.step == "LeaseLostError"]
    gone = [e for e in entries if e.kind == "end" and e.step in AWAY]
    assert len(told) <= len(lost) <= len(told) + len(gone), (told, lost, gone)


def _check_end(plan: Plan, entries: list[Entry], job: JobSnapshot) -> None:
    assert job.status is Status.COMPLETED
    done = {plan.place(e.step, int(e.value)) for e in entries if e.kind == "item"}
    assert done == set(range(plan.size))
    for step, part in zip(job.steps, plan.parts, strict=True):
        assert (step.name, step.status) == (part.name, "completed")
        if part.kind != "call":
            assert (step.items, part.index(step.cursor)) == (part.size, part.size)
    if plan.has_state:
        assert isinstance(job.state, dict)
        assert job.state == {part.name: part.size for part in plan.parts if part.size}
