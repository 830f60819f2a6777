"""What has to be the same in a scrape, in spans and in records; it drives nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.telemetry.scrapes import Samples, value
from tracedjobs import Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracedjobs import JobSnapshot
    from tracedjobs._core.records import Stored
    from tracedjobs.demo.receiver import Received

__all__ = [
    "Seen",
    "Series",
    "by_job",
    "check_growing",
    "check_items",
    "check_states",
    "number_of",
    "without_buckets",
]


@dataclass(frozen=True, slots=True)
class Seen:
    stored: Stored
    lost: bool


Series = tuple[dict[str, str], float]


def without_buckets(text: str) -> str:
    """The page without what takes longest to parse, and has no other source to agree with."""
    return "".join(line for line in text.splitlines(keepends=True) if "_bucket{" not in line)


def by_job(samples: Samples) -> dict[str, dict[str, Series]]:
    """The series of each running job by their names."""
    found: dict[str, dict[str, Series]] = {}
    for name, each in samples.items():
        for labels, number in each:
            if "job_id" in labels:
                short = name.removeprefix("tracedjobs_")
                found.setdefault(labels["job_id"], {})[short] = (labels, number)
    return found


def number_of(series: Mapping[str, Series], name: str) -> float | None:
    return series[name][1] if name in series else None


def _state(shown: Mapping[str, Any]) -> str:
    if shown["status"] != "running":
        return str(shown["status"])
    return "lost" if shown["lost"] else "stalled" if shown["stalled"] else "running"


def check_states(samples: Samples, name: str, shown: Sequence[Mapping[str, Any]]) -> None:
    states = Counter(map(_state, shown))
    for state in (*Status, "lost", "stalled"):
        said = value(samples, "jobs", job_name=name, state=str(state))
        assert said == states[str(state)], (name, state, states)
    for state in ("lost", "stalled"):
        assert value(samples, f"jobs_{state}", job_name=name) == states[state], (name, state)


def check_growing(samples: Samples, before: Mapping[str, Seen], after: Mapping[str, Seen]) -> None:
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


def check_items(spans: Sequence[Received], job: JobSnapshot) -> None:
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
