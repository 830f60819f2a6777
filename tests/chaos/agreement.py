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

from tests.chaos.agreement_checks import (
    Seen,
    Series,
    by_job,
    check_growing,
    check_items,
    check_states,
    number_of,
    without_buckets,
)
from tests.chaos.agreement_jobs import JOBS
from tests.processes import state_of, until
from tests.telemetry.collectors import check_story, check_whole, missing_spans
from tests.telemetry.scrapes import Watch, check_conserved, parsed, value
from tracedjobs._core.lost import is_lost
from tracedjobs.cli.as_json import job_as_json
from tracedjobs.errors import InvalidTransitionError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracedjobs import JobSnapshot, Runtime
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
            samples = parsed(without_buckets(page.read().decode()))
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
        check_growing(samples, before, after)
        of_each = by_job(samples)
        for each in same:
            self._check_job(shown[each], before[each], of_each.get(each, {}))
        for name in {seen.stored.job.name for seen in before.values()}:
            ours = [each for each in self.jobs if before[each].stored.job.name == name]
            if set(ours) <= set(same):
                check_states(samples, name, [shown[each] for each in ours])
        if still:
            self.figures.still += 1
            check_conserved(samples, map(self._runtime.get, self.jobs))
        return True

    def _records(self) -> dict[str, Seen]:
        found: dict[str, Seen] = {}
        for each in self.jobs:
            stored = self._runtime.store.load(each)
            assert stored is not None
            found[each] = Seen(stored, is_lost(self._runtime.store, stored.job))
        return found

    def _check_job(
        self, shown: Mapping[str, Any], seen: Seen, series: Mapping[str, Series]
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
            "run": number_of(series, "job_runs"),
            "items": number_of(series, "job_items_processed"),
            "total": number_of(series, "job_items_expected"),
        }
        assert told == {
            "step": shown["step"],
            "worker": shown["worker"],
            "trace_id": shown["trace_id"],
            "run": shown["run"],
            "items": None if step is None else step["items"],
            "total": None if step is None else step["total"],
        }, shown

    def _check_new_spans(self, spans: Sequence[Received], records: Mapping[str, Seen]) -> None:
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
                check_items(spans, job)
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
            samples = parsed(without_buckets(page.read().decode()))
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


def runtime_url(runtime: Runtime) -> str:
    """The address of its store."""
    return runtime.store.url


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
