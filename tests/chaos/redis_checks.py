"""What must hold of the log that a fleet left, and of what Redis has in the end.

Runs are told apart by their tokens: a server that lost its newest writes may hand out a number
twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.chaos.redis_jobs import Line, Plan, make_plan, read_log
from tracedjobs import Status
from tracedjobs.stores.redis.keys import SHARDS, Keys

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.redis_fleet import Fleet, History
    from tests.stores.redis_servers import RedisServer

__all__ = ["SINCE_SNAPSHOT", "UNWRITTEN", "FleetFigures", "check_fleet", "check_keys"]

SLACK: Final = 0.15
"""Seconds that threads of a process may wait for each other, beside what was measured."""
WAKING: Final = 0.1
"""Seconds within which the saver of a process that was woken has looked at the clock."""
UNWRITTEN: Final = 3.0
"""Seconds of writes that a server with `appendfsync everysec` may lose when it is killed."""
SINCE_SNAPSHOT: Final = 8.0
"""The same of one that writes a snapshot each second, as a busy host lets it."""
BACK_OFF: Final = 2.5
"""Seconds after an outage within which all have tried again."""
RECORDED: Final = frozenset({"completed", "interrupted", "paused", "cancelled"})


@dataclass(slots=True)
class FleetFigures:
    """What a fleet came to."""

    jobs: int = 0
    runs: int = 0
    items: int = 0
    saves: int = 0
    redone: int = 0
    redone_in_outages: int = 0
    most_redone: int = 0
    latest: float = float("-inf")
    """Seconds by which the oldest item that was done again was older than `checkpoint_every`."""
    widest: float = 0.0
    """The same in an outage: between the oldest and the newest item that were done again."""
    after_stops: int = 0
    stray: int = 0
    longest_stray: float = 0.0
    taken_back: int = 0
    """Runs that went on before what had been acknowledged, because the server was killed."""
    lost: int = 0
    overlaps: int = 0

    def __str__(self) -> str:
        return (
            f"{self.jobs} jobs, {self.runs} runs, {self.items} items, {self.saves} acknowledged "
            f"saves; {self.lost} items lost, {self.overlaps} writes of an old run; {self.redone} "
            f"items done again (most at once {self.most_redone}, oldest "
            f"{self.latest * 1000:+.0f} ms over checkpoint_every), {self.redone_in_outages} in "
            f"outages (within {self.widest:.2f} s), {self.after_stops} after graceful stops; "
            f"{self.stray} items of woken runs after their successor began (up to "
            f"{self.longest_stray * 1000:.0f} ms after waking); {self.taken_back} runs begun anew "
            f"because a killed server had lost its newest writes"
        )


@dataclass(slots=True)
class _Run:
    begin: Line
    place: int
    """Where its next item is."""
    items: list[Line] = field(default_factory=list)
    acknowledged: int = 0
    acknowledged_at: float = 0.0
    end: Line | None = None
    over_at: float = float("inf")
    """When its successor was seen to have begun."""


def check_fleet(
    fleet: Fleet, log: Path, lease_ttl: float, *, unwritten: float = UNWRITTEN
) -> FleetFigures:
    """Check every job of the fleet; its server may have lost `unwritten` seconds when killed."""
    figures = FleetFigures()
    by_job: dict[str, list[Line]] = {job_id: [] for job_id in fleet.jobs}
    for line in read_log(log):
        by_job[line.job].append(line)
    for job_id, lines in by_job.items():
        plan = make_plan(int(job_id.partition("-")[2]))
        try:
            _JobCheck(plan, fleet.history, lease_ttl, figures, unwritten).run(lines)
            _check_record(plan, fleet, job_id)
        except BaseException as error:
            error.add_note(f"{job_id}: {plan}\n{figures}")
            raise
        figures.jobs += 1
    return figures


class _JobCheck:
    """Goes through the log of one job."""

    def __init__(
        self,
        plan: Plan,
        history: History,
        lease_ttl: float,
        figures: FleetFigures,
        unwritten: float,
    ) -> None:
        self._unwritten = unwritten
        self._plan = plan
        self._history = history
        self._lease_ttl = lease_ttl
        self._figures = figures
        self._runs: dict[str, _Run] = {}
        self._current: _Run | None = None
        self._done = 0
        """Items that were done at least once, all of them in a row from the first on."""

    def run(self, lines: list[Line]) -> None:
        """Check all lines, in their order."""
        for line in lines:
            if line.kind == "begin":
                self._begin(line)
            elif line.kind == "end":
                self._end(line)
            else:
                run = self._runs.get(line.token)
                if run is None:  # it was taken over before its function was called
                    assert line.kind == "saved", line
                elif line.kind == "open":
                    self._open(run, line)
                elif line.kind == "item":
                    self._item(run, line)
                else:
                    self._saved(run, line)
        self._figures.runs += len(self._runs)
        self._figures.items += self._plan.size
        self._figures.lost += self._plan.size - self._done
        assert self._done == self._plan.size

    def _begin(self, line: Line) -> None:
        run = self._runs[line.token] = _Run(line, int(line.value))
        run.acknowledged, run.acknowledged_at = run.place, line.at
        before = self._current
        if before is not None:
            crashed = self._taken_back(before.begin.at, line.at)
            if line.run <= before.begin.run and not crashed:
                # It took the job first and was frozen then: it has been taken over already.
                assert line.run < before.begin.run, line
                run.over_at = before.begin.at
                return
            before.over_at = line.at
            if run.place < before.acknowledged:
                assert self._taken_back(before.acknowledged_at, line.at), (
                    f"{line} begins before {before.acknowledged}, which was saved"
                )
                self._figures.taken_back += 1
            else:
                self._check_redone(before, run)
        else:
            assert run.place == 0, line
        assert run.place <= self._done, f"{line} leaves out what comes after {self._done}"
        self._current = run

    def _open(self, run: _Run, line: Line) -> None:
        index, counted = line.value.split("/")
        assert self._plan.place(line.step, int(index)) == run.place, f"{line}, not {run.place}"
        assert counted in {"-", index}, f"the state has counted otherwise: {line}"

    def _item(self, run: _Run, line: Line) -> None:
        place = self._plan.place(line.step, int(line.value))
        assert place == run.place, f"{line} is {place}, not {run.place}"
        run.place += 1
        if run.over_at < line.at:
            self._stray(run, line)
            return
        run.items.append(line)
        assert place <= self._done
        self._done = max(self._done, place + 1)

    def _saved(self, run: _Run, line: Line) -> None:
        self._figures.saves += 1
        if line.began > run.over_at and not self._taken_back(run.over_at, line.at):
            self._figures.overlaps += 1
            raise AssertionError(f"{line} was recorded after run {run.begin} was over")
        place = int(line.value)
        assert place <= run.place
        if place > run.acknowledged:
            run.acknowledged, run.acknowledged_at = place, line.at

    def _end(self, line: Line) -> None:
        runs = [each for each in self._runs.values() if each.begin.pid == line.pid]
        for run in runs:
            if line.run == run.begin.run:
                run.end = line

    def _stray(self, run: _Run, line: Line) -> None:
        woken = max(
            (
                each.ended
                for each in self._history.freezes
                if each.pid == line.pid and each.ended <= line.at
            ),
            default=run.over_at,
        )
        late = line.at - woken
        self._figures.stray += 1
        self._figures.longest_stray = max(self._figures.longest_stray, late)
        noise = self._noise(woken, line.at)
        if self._taken_back(run.begin.at, run.over_at):
            # The server did not know it any more, which it learns when it saves again.
            assert late < BACK_OFF + 3 * noise, f"{line}, {late:.3f} s after it was forgotten"
            return
        assert late < WAKING + 3 * noise, f"{line}, {late:.3f} s after waking, noise {noise:.3f}"

    # -- what was done again ---

    def _check_redone(self, before: _Run, run: _Run) -> None:
        again = [
            item
            for item in before.items
            if self._plan.place(item.step, int(item.value)) >= run.place
        ]
        if not again:
            return
        figures = self._figures
        first, last = again[0], again[-1]
        end = before.end
        if end is not None and end.step in RECORDED and end.value != "store_unavailable":
            figures.after_stops += len(again)
            raise AssertionError(f"done again after {end}: {again}")
        width = last.at - first.at - self._frozen(first)
        if self._outage(first.at - 0.5, last.at) or self._taken_back(last.at, run.begin.at):
            figures.redone_in_outages += len(again)
            figures.widest = max(figures.widest, width)
            assert width <= self._lease_ttl + SLACK, f"{width:.3f} s of {again}"
            return
        figures.redone += len(again)
        figures.most_redone = max(figures.most_redone, len(again))
        if self._plan.checkpoint_every == 0:
            assert len(again) <= 1, f"only the item in hand, but {again}"
            return
        # The oldest of them may have been in hand when the last save began.
        late = width - self._plan.checkpoint_every - max(part.pace for part in self._plan.parts)
        figures.latest = max(figures.latest, late)
        allowed = SLACK + 3 * self._noise(first.at - 0.5, last.at + 0.5)
        assert late <= allowed, f"{late:.3f} s late, allowed {allowed:.3f}: {again}"

    # -- what was going on ---

    def _taken_back(self, written: float, seen: float) -> bool:
        """Whether what was written then may be gone now: the server was killed soon after."""
        return any(
            each.crashed
            and each.began - self._unwritten <= written <= each.ended
            and each.began <= seen
            for each in self._history.outages
        )

    def _outage(self, began: float, ended: float) -> bool:
        return any(
            each.began <= ended and began <= each.ended + BACK_OFF for each in self._history.outages
        )

    def _frozen(self, first: Line) -> float:
        """How long its process was frozen after that line."""
        return sum(
            each.ended - max(each.began, first.at)
            for each in self._history.freezes
            if each.pid == first.pid and each.ended > first.at
        )

    def _noise(self, began: float, ended: float) -> float:
        return max(
            (late for at, late in self._history.noise if at <= ended and began <= at + late),
            default=0.0,
        )


def _check_record(plan: Plan, fleet: Fleet, job_id: str) -> None:
    job = fleet.runtime.get(job_id)
    assert job.status is Status.COMPLETED
    for step, part in zip(job.steps, plan.parts, strict=True):
        assert (step.name, step.status) == (part.name, "completed")
        if part.kind != "call":
            assert (step.items, part.index(step.cursor)) == (part.size, part.size)
    if plan.has_state:
        assert isinstance(job.state, dict)
        assert {name: count for name, count in job.state.items() if count} == {
            part.name: part.size for part in plan.parts if part.size
        }
    assert job.result == ",".join(
        str(step.result)
        for step, part in zip(job.steps, plan.parts, strict=True)
        if part.kind == "call"
    )


def check_keys(fleet: Fleet, server: RedisServer) -> int:
    """A completed job has its record, with an end to it, and one entry in each index of its own."""
    keys = Keys("tj")
    allowed = {keys.counts(make_plan(int(each.partition("-")[2])).job_name) for each in fleet.jobs}
    allowed |= {keys.totals(shard) for shard in range(SHARDS)}
    names = {make_plan(int(each.partition("-")[2])).job_name for each in fleet.jobs}
    allowed |= {keys.step_names(name) for name in names}
    left: set[str] = set()
    entries: dict[str, list[str]] = {"i": [], "n": [], "ends": []}
    with server.client() as client:
        for job_id in fleet.jobs:
            for part in "jhsrczox":
                key = keys.part(job_id, part)
                lives: Any = client.pttl(key)
                assert lives == -2 or lives > 0, f"{key} stays for ever"
                allowed.add(key)
        for shard in range(SHARDS):
            assert not client.exists(keys.at(shard, "leases"))
        for key in client.scan_iter(match="tj:*", count=1000):
            _, _, what = key.split(":", 2)
            kind = what.split(":", 1)[0]
            if kind in entries:
                assert kind == "ends" or what.split(":")[1] == "completed", key
                entries[kind] += client.zrange(key, 0, -1)
            elif key not in allowed:
                left.add(key)
    assert not left
    assert {kind: len(found) for kind, found in entries.items()} == dict.fromkeys(
        entries, len(fleet.jobs)
    )
    assert sorted(entries["i"]) == sorted(entries["n"]) == sorted(fleet.jobs)
    return len(allowed)
