"""Renders what a store knows as Prometheus metrics: totals, live jobs, and their states.

It only reads, and holds nothing that a worker told it: so a worker that died is still counted, and
any number of collectors say the same.
"""

from __future__ import annotations

import logging
import threading
import time
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from tracedjobs._core.counting import (
    BUCKET_LABELS,
    OTHER,
    OUTCOMES,
    STEP_OUTCOMES,
    bucket_of,
    uncounted,
)
from tracedjobs._core.owner import owner_is_dead
from tracedjobs._core.records import Living, Status, Survey, TotalKey
from tracedjobs._core.snapshot import hangs, time_left
from tracedjobs._core.stretch import Entered
from tracedjobs._core.trace import Trace
from tracedjobs.errors import TracedJobsError
from tracedjobs.stores.base import STEP_NAMES
from tracedjobs.telemetry.metrics import COUNTERS, GAUGES, HISTOGRAMS, OF_EACH_JOB, PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tracedjobs._core.runtime import Runtime

__all__ = ["StoreCollector"]

AGE: Final = 2.0
"""Seconds for which what was read is shown again."""
MOST_JOBS: Final = 200
STATES: Final = (*(status.value for status in Status), "lost", "stalled")

_log = logging.getLogger("tracedjobs")

Labels = tuple[str, ...]
Value = tuple[Labels, float]


class StoreCollector(Collector):
    """Collects the metrics of a runtime's store, for a registry.

    `most_jobs`: of how many running jobs there are series of their own, from 0 up; the stalled, the
    lost and the latest come first. While the store is away the last figures are shown, and
    `tracedjobs_exporter_last_success_timestamp_seconds` tells how old they are.
    """

    def __init__(self, runtime: Runtime, *, most_jobs: int = MOST_JOBS, age: float = AGE) -> None:
        """Read nothing yet."""
        self._runtime = runtime
        self._most_jobs = most_jobs
        self._age = age
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._shown: list[Metric] = []
        self._trouble: str | None = None
        self._told: set[str] = set()

    def describe(self) -> Iterable[Metric]:
        """Nothing: to register it reads no store."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All metrics, at most two seconds old."""
        with self._lock:  # scrapes at the same time wait for one reading
            if time.monotonic() - self._read_at >= self._age:
                self._read()
            return [*self._shown]

    def check(self) -> str | None:
        """What is wrong with the store, in a sentence; `None` when it could be read.

        As of the last reading, at most two seconds ago: a probe costs no more than a scrape.
        """
        self.collect()
        return self._trouble

    def _read(self) -> None:
        began = time.perf_counter()
        try:
            survey = self._runtime.store.survey()
            self._trouble = None
        except TracedJobsError as error:
            self._trouble = str(error)
            _log.warning("The metrics are as old as the last reading of the store: %s", error)
            return
        finally:
            self._read_at = time.monotonic()
        self._tell_of_folded(survey)
        dead = lru_cache(maxsize=None)(owner_is_dead)  # a process is looked at once, not a job
        living = sorted((_Live(each, dead) for each in survey.living), key=_Live.place)
        shown = living[: self._most_jobs]
        families = [
            *_counters(survey, living),
            *_histograms(survey, living),
            *_gauges(survey, living),
        ]
        families += _of_each(shown, survey.now)
        families += [
            _gauge("exporter_jobs_omitted", [((), len(living) - len(shown))]),
            _gauge("exporter_last_success_timestamp_seconds", [((), time.time())]),
            _gauge(
                "exporter_collect_duration_seconds",
                [((), time.perf_counter() - began)],
            ),
        ]
        self._shown = families

    def _tell_of_folded(self, survey: Survey) -> None:
        for name in {key[1] for key in survey.totals if key[3] == OTHER} - self._told:
            self._told.add(name)
            _log.warning(
                "The job %s has many step names: those after the first hundred are counted "
                "together, as step=%r. Give steps fixed names, and what varies to the cursor.",
                name,
                OTHER,
            )


class _Live:
    """A running job, and which of the states it is in."""

    def __init__(self, living: Living, dead: Callable[[str | None, str | None], bool]) -> None:
        self.job = living.job
        self.heartbeat = living.heartbeat
        self.labels = (living.job.name, living.job.queue or "")
        self.state = "running"
        if not living.alive or dead(living.job.owner, living.job.lease_boot):
            self.state = "lost"
        elif hangs(living.job, living.heartbeat):
            self.state = "stalled"

    def exemplify(
        self, found: dict[Labels, Exemplar], labels: Labels, amount: float, at: float | None
    ) -> None:
        """Let it stand for the series with those labels, if it has a trace to look at.

        The first one does: the jobs come in the order in which they are worth a look.
        """
        trace = None if labels in found else Trace.read(self.job.trace)
        if trace is not None and trace.sampled:
            found[labels] = Exemplar({"trace_id": trace.trace_id}, amount, at)

    def place(self) -> tuple[int, float, str]:
        first = {"stalled": 0, "lost": 1}.get(self.state, 2)
        return first, -(self.job.started_at or 0.0), self.job.id


def _counters(survey: Survey, living: Sequence[_Live]) -> Iterator[Metric]:
    values = _by_metric(survey.totals)
    items = values.setdefault("items_processed", {})
    exemplars: dict[str, dict[Labels, Exemplar]] = {name: {} for name in COUNTERS}
    """Of each counter a running job that is among them, by its trace."""
    steps: dict[str, set[str]] = {}
    for _, name, _, step, _ in survey.totals:
        if step:
            steps.setdefault(name, set()).add(step)
    for live in living:
        amount = uncounted(live.job)
        if amount and live.job.step is not None:
            told_apart = steps.setdefault(live.job.name, set())
            if len(told_apart) < STEP_NAMES:  # as the store will, when it counts them
                told_apart.add(live.job.step)
            of_step = (*live.labels, live.job.step if live.job.step in told_apart else OTHER)
            items[of_step] = items.get(of_step, 0.0) + amount
            live.exemplify(exemplars["items_processed"], of_step, amount, live.job.progressed_at)
            live.exemplify(exemplars["checkpoints"], of_step, 1, live.job.progressed_at)
            if live.job.items_redone:
                redone = live.job.items_redone
                live.exemplify(exemplars["items_redone"], of_step, redone, live.job.run_started_at)
        live.exemplify(exemplars["jobs_enqueued"], live.labels, 1, live.job.submitted_at)
        if live.job.resumptions:
            live.exemplify(exemplars["resumptions"], live.labels, 1, live.job.run_started_at)
    _begin_at_0(values)
    for name, metric in COUNTERS.items():
        family = CounterMetricFamily(PREFIX + name, metric.help, labels=metric.labels)
        for labels, value in sorted(values.get(name, {}).items()):
            family.add_metric(labels, value, exemplar=exemplars[name].get(labels))
        yield family


def _begin_at_0(values: dict[str, dict[Labels, float]]) -> None:
    """Tell what has not happened yet as 0, of each job name and step that is known.

    What Prometheus sees appear it cannot tell from what was there before: the first failure of a
    job would be no increase.
    """
    for common in values.get("jobs_enqueued", {}):
        for name in ("resumptions", "duplicates_refused", "leases_lost"):
            values.setdefault(name, {}).setdefault(common, 0.0)
        for name, outcomes in OUTCOMES.items():
            for outcome in outcomes:
                values.setdefault(name, {}).setdefault((*common, outcome), 0.0)
    steps = {labels[:3] for name in ("items_processed", "steps") for labels in values.get(name, {})}
    for of_step in steps:
        values.setdefault("items_redone", {}).setdefault(of_step, 0.0)
        for outcome in STEP_OUTCOMES:
            values.setdefault("steps", {}).setdefault((*of_step, outcome), 0.0)


def _by_metric(
    totals: Mapping[TotalKey, float],
) -> dict[str, dict[Labels, float]]:
    """The totals of each counter by its labels."""
    found: dict[str, dict[Labels, float]] = {}
    for (name, job_name, queue, step, label), value in totals.items():
        if name in COUNTERS:
            given = {"job_name": job_name, "queue": queue, "step": step}
            labels = tuple(given.get(each, label) for each in COUNTERS[name].labels)
            found.setdefault(name, {})[labels] = value
    return found


def _histograms(survey: Survey, living: Sequence[_Live]) -> Iterator[Metric]:
    counts: dict[str, dict[Labels, dict[str, float]]] = {}
    sums: dict[tuple[str, Labels], float] = {}
    for (name, job_name, queue, step, label), value in survey.totals.items():
        of, _, part = name.rpartition("_")
        if of not in HISTOGRAMS:
            continue
        labels = (job_name, queue, step)[: len(HISTOGRAMS[of].labels)]
        if part == "bucket":
            counts.setdefault(of, {}).setdefault(labels, {})[label] = value
        else:
            sums[of, labels] = value
    for name, common in product(HISTOGRAMS, {key[1:3] for key in survey.totals}):
        if len(HISTOGRAMS[name].labels) == len(common):
            counts.setdefault(name, {}).setdefault(common, {})
    waits = _waits(living)
    for name, metric in HISTOGRAMS.items():
        full = f"{PREFIX}{name}_seconds"
        family = HistogramMetricFamily(full, metric.help, labels=metric.labels)
        for labels, by_bound in sorted(counts.get(name, {}).items()):
            so_far = 0.0
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
            for bound in BUCKET_LABELS[name]:
                so_far += by_bound.get(bound, 0.0)
                of_job = waits.get((*labels, bound)) if name == "queue_wait" else None
                buckets.append((bound, so_far) if of_job is None else (bound, so_far, of_job))
            family.add_metric(labels, buckets, sums.get((name, labels), 0.0))
        yield family


def _waits(living: Sequence[_Live]) -> dict[Labels, Exemplar]:
    """Of each bucket of `queue_wait` a running job that waited so long, by its trace."""
    found: dict[Labels, Exemplar] = {}
    for live in living:
        began = live.job.started_at
        if began is not None:
            seconds = max(began - live.job.submitted_at, 0.0)
            bucket = (*live.labels, bucket_of("queue_wait", seconds))
            live.exemplify(found, bucket, seconds, began)
    return found


def _gauges(survey: Survey, living: list[_Live]) -> Iterator[Metric]:
    # A scrape without jobs has the series too that alerts compare with 0.
    groups = {key[:2] for key in survey.jobs} | {live.labels for live in living} or {("", "")}
    states = {(*group, state): 0.0 for group in sorted(groups) for state in STATES}
    for key, count in survey.jobs.items():
        states[key] += count
    for group in groups:
        # As many as are listed as running: of a store of several servers the two counts are not of
        # the same moment.
        states[*group, "running"] = 0.0
    for live in living:
        states[*live.labels, live.state] += 1
    yield _gauge("jobs", states.items())
    for state in ("stalled", "lost"):
        yield _gauge(f"jobs_{state}", [(group, states[*group, state]) for group in sorted(groups)])
    yield _gauge("oldest_queued_timestamp_seconds", survey.oldest_pending.items())
    yield _gauge("oldest_interrupted_timestamp_seconds", survey.oldest_interrupted.items())
    progress: dict[Labels, float] = {}
    missed: dict[Labels, float] = dict.fromkeys(sorted(groups), 0.0)
    workers = {"alive": set[str](), "lost": set[str]()}
    for live in living:
        job = live.job
        if job.progressed_at is not None:
            oldest = progress.get(live.labels, job.progressed_at)
            progress[live.labels] = min(oldest, job.progressed_at)
        missed[live.labels] += job.deadline_at is not None and job.deadline_at < survey.now
        workers["lost" if live.state == "lost" else "alive"].add(job.worker or "")
    yield _gauge("oldest_progress_timestamp_seconds", progress.items())
    yield _gauge("deadline_missed", missed.items())
    yield _gauge("workers", [((state,), len(names)) for state, names in workers.items()])


def _of_each(living: Iterable[_Live], now: float) -> Iterator[Metric]:
    values: dict[str, list[Value]] = {name: [] for name in OF_EACH_JOB}
    for live in living:
        job = live.job
        labels: Labels = (*live.labels, job.id)
        trace = Trace.read(job.trace)
        told = "" if trace is None else trace.trace_id
        info = (*labels, live.state, job.worker or "", job.step or "", told)
        values["job_info"].append((info, 1.0))
        position = job.position
        entered = Entered.read(job.entered)
        left = None
        if position is not None:
            left = time_left(job, stalled=live.state != "running")
            values["job_items_processed"].append((labels, position.items))
            if position.total:
                ratio = min(position.done / position.total, 1.0)
                values["job_progress_ratio"].append((labels, ratio))
        moments = {
            "job_items_expected": None if position is None else position.total,
            "job_started_timestamp_seconds": job.started_at,
            "job_run_started_timestamp_seconds": job.run_started_at,
            "job_step_started_timestamp_seconds": job.step_started_at,
            "job_last_progress_timestamp_seconds": job.progressed_at,
            "job_heartbeat_timestamp_seconds": live.heartbeat,
            "job_eta_timestamp_seconds": None if left is None else now + left,
            "job_deadline_timestamp_seconds": job.deadline_at,
            "job_runs": job.run,
            "job_stall_after_seconds": None if entered is None else entered.stall_after,
        }
        for name, value in moments.items():
            if value is not None:
                values[name].append((labels, value))
    for name, found in values.items():
        yield _gauge(name, found)


def _gauge(name: str, values: Iterable[Value]) -> Metric:
    metric = GAUGES.get(name) or OF_EACH_JOB[name]
    family = GaugeMetricFamily(PREFIX + name, metric.help, labels=metric.labels)
    for labels, value in values:
        family.add_metric(labels, value)
    return family
