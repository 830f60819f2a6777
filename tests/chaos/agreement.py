"""A fleet whose processes are killed, stopped and frozen, whose jobs are paused and cancelled, and
what is said of each job meanwhile: by `show --json`, by `/metrics` over HTTP, by its spans.

Nothing is taken for nearly equal. Each look reads all records before and after: of a job that is
the same in both, all have to say the same; of what only grows, what is said lies between the two.
Often the whole fleet is stopped for a look, and then everything is compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.request import urlopen

from tests.chaos.agreement_jobs import JOBS
from tests.processes import state_of, until
from tests.telemetry.collectors import check_story, check_whole, missing_spans
from tests.telemetry.scrapes import Samples, Watch, check_conserved, parsed, value
from tracedjobs import Runtime, Status
from tracedjobs._core.lost import is_lost
from tracedjobs.cli.as_json import job_as_json
from tracedjobs.errors import InvalidTransitionError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracedjobs import JobSnapshot
    from tracedjobs._core.records import Stored
    from tracedjobs.demo.receiver import Received, Receiver
    from tracedjobs.telemetry.exporter import Exporter

__all__ = ["AgreementFigures", "AgreementForm", "Fleet"]

REPOSITORY: Final = Path(__file__).resolve().parents[2]
LEASE_TTL: Final = 1.5
PATIENCE: Final = 60.0
KILLS: Final = 3
"""At first, so that there are some."""
STILL: Final = 5
"""Tries of a look at a fleet that is stopped: what a server had been asked before comes later."""


@dataclass(frozen=True, slots=True)
class AgreementForm:
    """How much is done."""

    jobs: int = 25
    workers: int = 3
    events: int = 14


@dataclass(slots=True)
class AgreementFigures:
    """What the looks came to."""

    looks: int = 0
    still: int = 0
    """Looks at which nothing moved, and everything was compared."""
    compared: int = 0
    """Jobs, at all looks together, that were the same before and after."""
    running: int = 0
    """Of these the running ones."""
    lost: int = 0
    stalled: int = 0
    moved: int = 0
    """Jobs that changed meanwhile, and were recognised by that."""
    away: int = 0
    """Looks that came to nothing, since a stopped process held the store's lock."""
    spans: int = 0
    twice: int = 0
    """Of these sent again, for their sender was killed before it could note that it sent them."""
    events: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        done = ", ".join(f"{count} {name}" for name, count in sorted(self.events.items()))
        return (
            f"{self.looks} looks, {self.still} at a fleet that stood still; {self.compared} times "
            f"a job was told alike by all ({self.running} running, {self.lost} lost, "
            f"{self.stalled} stalled), {self.moved} times it moved meanwhile; "
            f"{self.away} looks in vain; {self.spans} spans ({self.twice} sent "
            f"again after a kill); {done}"
        )


@dataclass(slots=True)
class _Worker:
    pid: int
    handle: int


@dataclass(frozen=True, slots=True)
class _Seen:
    stored: Stored
    lost: bool


class Fleet:
    """The driver: `run` does the jobs to their end, and looks all the time."""

    def __init__(
        self,
        runtime: Runtime,
        exporter: Exporter,
        receiver: Receiver,
        *,
        folder: Path,
        environment: Mapping[str, str],
        form: AgreementForm,
        seed: int,
    ) -> None:
        self._runtime = runtime
        self._exporter = exporter
        self._receiver = receiver
        self._form = form
        self._chance = random.Random(seed)
        self._workers: list[_Worker] = []
        self._watch = Watch()
        self._spans_seen = 0
        self._killed: set[str] = set()
        self._kept_paused = ""
        self.jobs: list[str] = []
        self.figures = AgreementFigures()
        self._errors = folder / "errors"
        with self._errors.open("ab") as errors:
            self._zygote = subprocess.Popen(
                [
                    *(sys.executable, "-W", "error", "-m", "tests.chaos.agreement_jobs"),
                    *(runtime_url(runtime), str(LEASE_TTL)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=REPOSITORY,
                env={
                    **os.environ,
                    **environment,
                    "OTEL_EXPORTER_OTLP_TIMEOUT": "3",  # a claim is at least three times as long
                    "PYTHONPATH": str(REPOSITORY),
                },
            )

    @property
    def errors(self) -> str:
        """What the workers wrote on stderr."""
        return self._errors.read_text("utf-8")

    def run(self) -> None:
        """All of it."""
        try:
            self._submit()
            self._look()
            self._workers = [self._start() for _ in range(self._form.workers)]
            for number in range(self._form.events):
                self._look_around()
                events = [self._kill] if number < KILLS else self._events()
                event = self._chance.choice(events)
                self.figures.events[event.__name__.strip("_")] += 1
                event()
            self._finish()
        finally:
            for worker in self._workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
            self._zygote.kill()
            self._zygote.communicate()

    # -- what happens ---

    def _submit(self) -> None:
        chance = self._chance
        for _ in range(self._form.jobs):
            items, pace = chance.randint(0, 120), chance.choice((0.002, 0.01))
            fails = chance.random() < 0.15
            self.jobs.append(self._runtime.submit(chance.choice(JOBS), items, pace, fails=fails))
        self._runtime.cancel(self.jobs[0])  # one that never began
        self._kept_paused = self.jobs[1]
        self._runtime.pause(self._kept_paused)

    def _events(self) -> list[Callable[[], None]]:
        return [
            *[self._kill] * 6,
            *[self._term] * 3,
            *[self._pause] * 3,
            *[self._resume] * 3,
            self._freeze,
            self._cancel,
        ]

    def _kill(self) -> None:
        worker = self._chance.choice(self._workers)
        os.kill(worker.pid, signal.SIGKILL)
        self._killed.add(f"{os.uname().nodename}:{worker.pid}")
        assert self._ends(worker) == -signal.SIGKILL, self.errors
        self._look()  # its job is lost at once
        self._workers[self._workers.index(worker)] = self._start()

    def _term(self) -> None:
        worker = self._chance.choice(self._workers)
        assert self._stopped(worker) == 0, self.errors
        self._workers[self._workers.index(worker)] = self._start()

    def _freeze(self) -> None:
        """Stop one for longer than its leases last: its jobs are lost, and it finds that out."""
        worker = self._chance.choice(self._workers)
        with _frozen([worker]):
            over = time.monotonic() + 1.4 * LEASE_TTL
            while time.monotonic() < over:
                self._look()

    def _pause(self) -> None:
        self._ask(self._runtime.pause)

    def _cancel(self) -> None:
        self._ask(self._runtime.cancel)

    def _resume(self) -> None:
        self._resume_all(all_of_them=self._chance.random() < 0.5)

    def _resume_all(self, *, all_of_them: bool = True) -> None:
        for job in self._listed("paused", 1000):
            if job.id != self._kept_paused:
                with contextlib.suppress(InvalidTransitionError, StoreUnavailableError):
                    self._runtime.resume(job.id)
                if not all_of_them:
                    return

    def _ask(self, order: Callable[[str], object]) -> None:
        found = self._listed("running", 20) or self._listed("pending", 20)
        if found:
            with contextlib.suppress(InvalidTransitionError, StoreUnavailableError):
                order(self._chance.choice(found).id)

    def _finish(self) -> None:
        give_up = time.monotonic() + PATIENCE + self._form.jobs
        while True:
            self._look_around()
            self._resume_all()
            left = [job for job in self._snapshots() if job.ended_at is None]
            if [job.id for job in left] == [self._kept_paused]:
                break
            assert time.monotonic() < give_up, (left, self.errors)
        give_up = time.monotonic() + PATIENCE
        while missing := missing_spans(self._receiver.spans, self._snapshots()):
            assert time.monotonic() < give_up, missing
            time.sleep(0.2)
        for worker in self._workers:
            assert self._stopped(worker) == 0, self.errors
        until(lambda: self._look(still=True), "the store and the exporter answer in time")
        self._check_spans()
        self._check_command()

    # -- its means ---

    def _listed(self, status: str, most: int) -> Sequence[JobSnapshot]:
        return _answered(lambda: [*self._runtime.list(status=status, limit=most)])

    def _snapshots(self) -> Sequence[JobSnapshot]:
        return _answered(lambda: [*map(self._runtime.get, self.jobs)])

    def _start(self) -> _Worker:
        pid = self._order("fork")
        return _Worker(pid, os.pidfd_open(pid))

    def _stopped(self, worker: _Worker) -> int:
        os.kill(worker.pid, signal.SIGTERM)
        return self._ends(worker)

    def _ends(self, worker: _Worker) -> int:
        os.close(worker.handle)
        return self._order(f"wait {worker.pid}")

    def _order(self, text: str) -> int:
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write(text + "\n")
        self._zygote.stdin.flush()
        return int(self._zygote.stdout.readline())

    # -- what all have to say alike ---

    def _look_around(self) -> None:
        over = time.monotonic() + self._chance.uniform(0, 0.3)
        while True:
            self._look()
            if time.monotonic() >= over:
                break
        with _frozen(self._workers):
            away = self.figures.away
            for _ in range(STILL):
                if self._look(still=True) or self.figures.away > away:
                    break

    def _look(self, *, still: bool = False) -> bool:
        """Look once; `False` where something moved that should stand still, or could not be read.

        A process that is stopped may hold a lock of SQLite's.
        """
        try:
            return self._compare(still=still)
        except StoreUnavailableError:
            self.figures.away += 1
            return False

    def _compare(self, *, still: bool) -> bool:
        began = time.time()
        before = self._records()
        shown = {each: job_as_json(self._runtime.get(each)) for each in self.jobs}
        with urlopen(f"{self._exporter.address}/metrics") as page:
            samples = parsed(_without_buckets(page.read().decode()))
        spans = self._receiver.spans  # what they tell of is in the records that are read later
        after = self._records()
        if value(samples, "exporter_last_success_timestamp_seconds") < began:
            msg = "the exporter shows what it read before"
            raise StoreUnavailableError(msg)
        same = [each for each in self.jobs if before[each] == after[each]]
        if still and len(same) < len(self.jobs):
            return False
        self.figures.looks += 1
        self.figures.moved += len(self.jobs) - len(same)
        self._watch.see(samples)
        self._check_new_spans(spans, after)
        _check_growing(samples, before, after)
        of_each = _by_job(samples)
        for each in same:
            self._check_job(shown[each], before[each], of_each.get(each, {}))
        for name in {seen.stored.job.name for seen in before.values()}:
            ours = [each for each in self.jobs if before[each].stored.job.name == name]
            if set(ours) <= set(same):
                _check_states(samples, name, [shown[each] for each in ours])
        if still:
            self.figures.still += 1
            check_conserved(samples, map(self._runtime.get, self.jobs))
        return True

    def _records(self) -> dict[str, _Seen]:
        found: dict[str, _Seen] = {}
        for each in self.jobs:
            stored = self._runtime.store.load(each)
            assert stored is not None
            found[each] = _Seen(stored, is_lost(self._runtime.store, stored.job))
        return found

    def _check_job(
        self, shown: Mapping[str, Any], seen: _Seen, series: Mapping[str, _Series]
    ) -> None:
        figures = self.figures
        figures.compared += 1
        head = seen.stored.job
        assert (shown["status"], shown["run"]) == (head.status, head.run)
        assert shown["lost"] is seen.lost
        if shown["status"] != "running":
            assert not series, f"{shown['id']} is {shown['status']}, and has {[*series]}"
            return
        figures.running += 1
        figures.lost += shown["lost"]
        figures.stalled += shown["stalled"]
        labels, _ = series["job_info"]
        step = next((each for each in shown["steps"] if each["status"] == "running"), None)
        told = {
            "step": labels["step"] or None,
            "worker": labels["worker"],
            "trace_id": labels["trace_id"],
            "run": _number(series, "job_runs"),
            "items": _number(series, "job_items_processed"),
            "total": _number(series, "job_items_expected"),
        }
        assert told == {
            "step": shown["step"],
            "worker": shown["worker"],
            "trace_id": shown["trace_id"],
            "run": shown["run"],
            "items": None if step is None else step["items"],
            "total": None if step is None else step["total"],
        }, shown

    def _check_new_spans(self, spans: Sequence[Received], records: Mapping[str, _Seen]) -> None:
        """What spans say of runs and steps that have ended is what the records say by now."""
        new, self._spans_seen = spans[self._spans_seen :], len(spans)
        self.figures.spans += len(new)
        for span in new:
            said = span.attributes
            if "tracedjobs.job.id" not in said or span.name.startswith("send "):
                continue
            stored = records[said["tracedjobs.job.id"]].stored
            runs = {run.number: run for run in stored.runs}
            if span.name.startswith("process "):
                run = runs[said["tracedjobs.run.number"]]
                assert said["tracedjobs.run.outcome"] == run.outcome, (span, stored)
                assert said["tracedjobs.worker"] == run.worker
            elif said.get("tracedjobs.step.outcome") == "completed":
                step = next(
                    each for each in stored.steps if each.name == said["tracedjobs.step.name"]
                )
                assert said["tracedjobs.run.number"] == step.run
                assert said["tracedjobs.cursor.end"] == step.cursor
                assert said.get("tracedjobs.items.expected") == step.total
            elif span.name.startswith("job "):
                # One that failed is run again where a worker had found it before it did.
                ends = {str(run.outcome) for run in stored.runs} & {"failed"}
                assert said["tracedjobs.job.outcome"] in {*ends, stored.job.status}

    def _check_spans(self) -> None:
        spans = self._once(self._receiver.spans)
        check_whole(spans)
        for job in map(self._runtime.get, self.jobs):
            if job.trace_id is not None:  # it has run: who submitted it has no telemetry
                check_story(spans, job)
                _check_items(spans, job)
        self._check_steps(spans)

    def _check_steps(self, spans: Sequence[Received]) -> None:
        """As many steps were completed, left and lost as there are spans that say so."""
        keys = ("tracedjobs.job.name", "tracedjobs.step.name", "tracedjobs.step.outcome")
        told = Counter(
            tuple(span.attributes[key] for key in keys)
            for span in spans
            if span.name.startswith("step ")
        )
        with urlopen(f"{self._exporter.address}/metrics") as page:
            samples = parsed(_without_buckets(page.read().decode()))
        counted = {
            (labels["job_name"], labels["step"], labels["outcome"]): number
            for labels, number in samples["tracedjobs_steps_total"]
            if number
        }
        assert counted == dict(told)

    def _once(self, spans: Sequence[Received]) -> list[Received]:
        """Each span once. Who was killed before it could note that it sent is the one excuse."""
        by_id: dict[str, list[Received]] = {}
        for span in spans:
            by_id.setdefault(span.span_id, []).append(span)
        for same in by_id.values():
            living = [
                span for span in same if span.resource["tracedjobs.worker"] not in self._killed
            ]
            assert len(living) <= 1, same
            assert len({repr(replace(span, resource={})) for span in same}) == 1, same
            self.figures.twice += len(same) - 1
        return [same[0] for same in by_id.values()]

    def _check_command(self) -> None:
        """The command itself, in a process of its own, says what was compared all the time."""
        for each in self._chance.sample(self.jobs, 1):
            url = runtime_url(self._runtime)
            words = [sys.executable, "-m", "tracedjobs", "show", each, "--json", "--store", url]
            said = subprocess.run(words, check=True, capture_output=True, cwd=REPOSITORY).stdout
            assert json.loads(said) == json.loads(json.dumps(job_as_json(self._runtime.get(each))))


def _answered(ask: Callable[[], Sequence[JobSnapshot]]) -> Sequence[JobSnapshot]:
    """The store's answer, be it slow beside other load: what is frozen may hold its lock too."""
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            return ask()
        except StoreUnavailableError:
            assert time.monotonic() < give_up
            time.sleep(0.1)


_Series = tuple[dict[str, str], float]


def runtime_url(runtime: Runtime) -> str:
    """The address of its store."""
    return runtime.store.url


def _without_buckets(text: str) -> str:
    """The page without what takes longest to parse, and has no other source to agree with."""
    return "".join(line for line in text.splitlines(keepends=True) if "_bucket{" not in line)


def _by_job(samples: Samples) -> dict[str, dict[str, _Series]]:
    """The series of each running job by their names."""
    found: dict[str, dict[str, _Series]] = {}
    for name, each in samples.items():
        for labels, number in each:
            if "job_id" in labels:
                short = name.removeprefix("tracedjobs_")
                found.setdefault(labels["job_id"], {})[short] = (labels, number)
    return found


def _number(series: Mapping[str, _Series], name: str) -> float | None:
    return series[name][1] if name in series else None


def _state(shown: Mapping[str, Any]) -> str:
    if shown["status"] != "running":
        return str(shown["status"])
    return "lost" if shown["lost"] else "stalled" if shown["stalled"] else "running"


def _check_states(samples: Samples, name: str, shown: Sequence[Mapping[str, Any]]) -> None:
    states = Counter(map(_state, shown))
    for state in (*Status, "lost", "stalled"):
        said = value(samples, "jobs", job_name=name, state=str(state))
        assert said == states[str(state)], (name, state, states)
    for state in ("lost", "stalled"):
        assert value(samples, f"jobs_{state}", job_name=name) == states[state], (name, state)


def _check_growing(
    samples: Samples, before: Mapping[str, _Seen], after: Mapping[str, _Seen]
) -> None:
    """What only grows was at the moment of the scrape between what it was before and after."""
    for name in {seen.stored.job.name for seen in before.values()}:
        first, last = (
            _grown([each.stored for each in records.values() if each.stored.job.name == name])
            for records in (before, after)
        )
        said = _grown_as_told(samples, name)
        for what in {*first, *last}:
            assert first[what] <= said[what] <= last[what], (name, what, first, said, last)


def _grown(jobs: Sequence[Stored]) -> Counter[str]:
    found: Counter[str] = Counter()
    for stored in jobs:
        head, position = stored.job, stored.open_position
        found["items"] += sum(step.items for step in stored.steps)
        found["items"] += 0 if position is None else position.items
        found["redone"] += head.items_redone
        found["runs begun"] += head.run
        found["resumptions"] += head.resumptions
        for run in stored.runs:
            if run.outcome is not None:
                found[f"runs {run.outcome}"] += 1
                found["jobs failed"] += run.outcome == "failed"  # and runs again, perhaps
        if head.ended_at is not None and head.status is not Status.FAILED:
            found[f"jobs {head.status}"] += 1
    return found


def _grown_as_told(samples: Samples, name: str) -> Counter[str]:
    def total(metric: str, **labels: str) -> int:
        return int(value(samples, metric, job_name=name, **labels))

    redone = total("items_redone_total")
    found = Counter(
        {
            "items": total("items_processed_total") - redone,
            "redone": redone,
            "resumptions": total("resumptions_total"),
            "runs begun": total("runs_total")
            + sum(total("jobs", state=state) for state in ("running", "lost", "stalled")),
        }
    )
    for outcome in ("lost", "completed", "failed", "interrupted", "paused", "cancelled"):
        found[f"runs {outcome}"] = total("runs_total", outcome=outcome)
        found[f"jobs {outcome}"] = total("jobs_finished_total", outcome=outcome)
    return found


def _check_items(spans: Sequence[Received], job: JobSnapshot) -> None:
    """The parts of each step that its spans tell of make up the whole, and the root has the sum."""
    mine = [span for span in spans if span.trace_id == job.trace_id]
    done: Counter[str] = Counter()
    for span in mine:
        if span.name.startswith("step "):
            said = span.attributes
            done[said["tracedjobs.step.name"]] += said["tracedjobs.items.processed"]
    assert {step.name: step.items for step in job.steps} == {
        step.name: done[step.name] for step in job.steps
    }, job
    for root in mine:
        if root.name.startswith("job "):
            said = root.attributes
            if said["tracedjobs.job.runs"] in _failed_before(job):
                continue  # its root is that of its first end
            assert said["tracedjobs.items.processed"] == job.items
            assert said["tracedjobs.items.redone"] == job.items_redone
            assert said["tracedjobs.job.runs"] == job.run
            assert said["tracedjobs.job.resumptions"] == job.resumptions


def _failed_before(job: JobSnapshot) -> set[int]:
    """The runs that failed and were not its last, as a worker had found it before it failed."""
    return {run.number for run in job.runs[:-1] if run.outcome == "failed"}


@contextlib.contextmanager
def _frozen(workers: Sequence[_Worker]) -> Any:
    """Stopped for the block, all of them."""
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)
    try:
        for worker in workers:
            until(lambda pid=worker.pid: state_of(pid) in "tTZ", "it is stopped")  # type: ignore[misc]  # a default binds
        yield
    finally:
        for worker in workers:
            os.kill(worker.pid, signal.SIGCONT)
