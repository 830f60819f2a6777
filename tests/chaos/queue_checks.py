"""What must hold of the lines that the jobs of a fleet wrote, and of what the store counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING

from tests.chaos.journal import Entry, read_journal

if TYPE_CHECKING:
    from tests.chaos.queue_fleet import Fleet, History, Sent
    from tests.queues.harness import Place

__all__ = ["Figures", "check"]


@dataclass(slots=True)
class Figures:
    """What was found."""

    jobs: int = 0
    runs: int = 0
    items: int = 0
    redone: int = 0
    killed_runs: int = 0
    """Runs that ended by a kill of their process."""
    duplicates: int = 0
    stops: int = 0
    """Runs that saw a stop and ended by it."""
    latency: float = 0.0
    """Seconds from when a run saw its stop to when it was saved and released: of 99 % of them at
    most, as a bound of the histogram's buckets."""
    longest: list[float] = field(default_factory=list)
    """Seconds from the SIGTERM to the recorded end of each run that it stopped, in order."""

    def __str__(self) -> str:
        """In one line."""
        told = ""
        if self.longest:
            middle, high = self._part(0.5), self._part(0.99)
            told = f" (SIGTERM to saved: median {middle:.2f} s, p99 {high:.2f} s)"
        return (
            f"{self.jobs} jobs, {self.items} items in {self.runs} runs: 0 lost, 0 overlapping, "
            f"{self.redone} redone after {self.killed_runs} killed runs, {self.duplicates} "
            f"duplicates refused; stop latency p99 ≤ {self.latency:g} s of {self.stops}{told}"
        )

    def _part(self, share: float) -> float:
        return self.longest[ceil(share * len(self.longest)) - 1]


def check(place: Place, fleet: Fleet) -> Figures:
    """Check all jobs."""
    figures = Figures(jobs=len(fleet.sent))
    for sent in fleet.sent:
        _check_lines(sent, fleet.history, figures)
        assert place.kind.result(sent.handle) == f"journaled {sent.items}"
        figures.longest += _stopped(place, sent, fleet.history)
    figures.longest.sort()
    totals = place.runtime.store.survey().totals

    def total(metric: str) -> float:
        return sum(amount for key, amount in totals.items() if key[0] == metric)

    assert total("items_processed") - total("items_redone") == figures.items
    figures.duplicates = round(total("duplicates_refused"))
    buckets = {
        float(key[4].replace("+Inf", "inf")): round(amount)
        for key, amount in totals.items()
        if key[0] == "stop_latency_bucket"
    }
    figures.stops = sum(buckets.values())
    seen = 0
    for bound in sorted(buckets):
        seen += buckets[bound]
        if seen >= 0.99 * figures.stops:
            figures.latency = bound
            break
    return figures


def _check_lines(sent: Sent, history: History, figures: Figures) -> None:
    """In the order in which they were written: one run after the other, each item in its turn."""
    last: Entry | None = None
    done = -1
    may_redo = 0
    ended = False
    for entry in read_journal(sent.path):
        if last is None or entry.run != last.run:
            assert last is None or entry.run > last.run, f"{entry} after {last}, of a later run"
            assert entry.kind == "begin", f"{entry} after {last}"
            figures.runs += 1
            killed = last is not None and _was_killed(last, entry, history)
            figures.killed_runs += killed
            # The one after the killed run may be stopped before its first item: then it is the
            # one after that which does the killed one's again.
            may_redo = max(may_redo, int(killed))
        else:
            assert entry.pid == last.pid, f"{entry} beside {last}"
            assert entry.kind != "begin", f"run {entry.run} of {sent.job_id} began twice"
        assert last is None or entry.at >= last.at, f"{entry} after {last}"
        if entry.kind == "item":
            item = int(entry.value)
            again = done + 1 - item
            assert again >= 0, f"{entry} leaves out what comes after item {done}"
            assert again <= may_redo, f"{again} items done again: {entry} after {done} in {last}"
            figures.redone += again
            may_redo = 0
            done = item
        ended = ended or entry.kind == "end"
        last = entry
    assert ended, f"{sent.job_id} ends with {last}"
    assert done == sent.items - 1, f"{done + 1} of {sent.items} items of {sent.job_id} are done"
    figures.items += sent.items


def _was_killed(last: Entry, following: Entry, history: History) -> bool:
    """Whether the process that wrote the line was killed before another one went on."""
    return any(
        last.at <= at + 0.05 and at <= following.at and last.pid in pids
        for at, pids in history.kills
    )


def _stopped(place: Place, sent: Sent, history: History) -> list[float]:
    found = []
    for run in place.job(sent.job_id).runs:
        if run.outcome != "interrupted" or run.reason != "stopping" or run.ended_at is None:
            continue
        pid = int(run.worker.rpartition(":")[2])
        ended = run.ended_at.timestamp()
        asked = [each.at for each in history.restarts if pid in each.pids and each.at <= ended]
        found += [ended - max(asked)] if asked else []
    return found
