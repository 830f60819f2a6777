"""What a scrape says, and what must hold of its counters whatever happened to the jobs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tracedjobs.telemetry.store_collector import StoreCollector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracedjobs import JobSnapshot, Runtime

__all__ = ["Samples", "Watch", "check_conserved", "parsed", "scraped", "value"]

Samples = dict[str, list[tuple[dict[str, str], float]]]
COUNTED = ("_total", "_count", "_bucket")
INTERRUPTED = frozenset({"interrupted", "paused"})


def scraped(runtime: Runtime, **options: int) -> Samples:
    """What a scrape says now, by the name of each sample."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(runtime, age=0, **options))
    return parsed(generate_latest(registry).decode())


def parsed(text: str) -> Samples:
    """What that page says."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum of the samples that have these labels."""
    wanted = labels.items()
    name = f"tracedjobs_{name}"
    return sum(number for has, number in samples.get(name, []) if wanted <= has.items())


class Watch:
    """Sees to it that no counter ever goes backwards."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def see(self, samples: Samples) -> None:
        """Compare with all that was seen before."""
        now = {
            (name, tuple(labels.items())): number
            for name, found in samples.items()
            if name.endswith(COUNTED)
            for labels, number in found
        }
        for key, before in self._last.items():
            assert now.get(key, 0.0) >= before, f"{key} went from {before} to {now.get(key)}"
        self._last |= now

    def forget(self) -> None:
        """Another store, or one that lost its newest writes."""
        self._last.clear()


def check_conserved(samples: Samples, jobs: Iterable[JobSnapshot]) -> None:
    """The counters of a store that nobody writes to, against the records of all its jobs."""
    all_jobs = [*jobs]
    for name in {job.name for job in all_jobs}:
        _check_one_name(samples, name, [job for job in all_jobs if job.name == name])


def _check_one_name(samples: Samples, name: str, jobs: list[JobSnapshot]) -> None:
    def total(metric: str, **labels: str) -> float:
        return value(samples, metric, job_name=name, **labels)

    redone = total("items_redone_total")
    assert total("items_processed_total") - redone == sum(job.items for job in jobs), name
    assert redone == sum(job.items_redone for job in jobs), name
    assert total("jobs_enqueued_total") == len(jobs), name

    running = sum(total("jobs", state=state) for state in ("running", "stalled", "lost"))
    ended = Counter(run.outcome for job in jobs for run in job.runs if run.outcome is not None)
    assert running == sum(job.status == "running" for job in jobs), name
    assert sum(job.run for job in jobs) == total("runs_total") + running, name
    for outcome in (*ended, "lost", "completed"):
        assert total("runs_total", outcome=str(outcome)) == ended[outcome], (name, outcome)
    assert total("interruptions_total") == sum(ended[each] for each in INTERRUPTED), name
    assert total("run_duration_seconds_count") == sum(ended.values()), name
    assert total("resumptions_total") == sum(job.resumptions for job in jobs), name

    finished = Counter(str(job.status) for job in jobs if job.ended_at is not None)
    finished["failed"] = ended["failed"]  # and one that runs again after it may do so again
    for status in ("completed", "failed", "cancelled"):
        outcome_total = total("jobs_finished_total", outcome=status)
        assert outcome_total == finished[status], (name, status)
    steps = Counter(step.name for job in jobs for step in job.steps if step.status == "completed")
    for step, count in steps.items():
        assert total("steps_total", step=step, outcome="completed") == count, (name, step)
