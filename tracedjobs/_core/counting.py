"""What each change of a job adds to the totals: the one place that knows the counters' meaning.

Pure: the amounts go to the store with the change they belong to, and are added in the same atomic
write. So they are true after a kill, and never counted twice. What a running job has done since its
last change is not in the totals yet: readers add `uncounted` of each living job.

Histograms are kept as one total a bucket, `<metric>_bucket` with its upper bound as label, not
cumulated, and `<metric>_sum`.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from tracedjobs._core.records import FINISHED, Count, JobRecord, Position, Status, StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "BUCKETS",
    "BUCKET_LABELS",
    "OTHER",
    "OUTCOMES",
    "STEP_OUTCOMES",
    "Pending",
    "Tally",
    "bucket_of",
    "ended",
    "finished",
    "items",
    "lost",
    "reason_label",
    "started",
    "step_completed",
    "submitted",
    "uncounted",
]

OTHER: Final = "other"
"""What stands for the step names and reasons that are not told apart."""

_WAITS: Final = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14_400, 86_400)
_WORK: Final = (0.1, 1, 5, 15, 60, 300, 900, 3600, 14_400, 43_200, 86_400, 604_800)
BUCKETS: Final[dict[str, tuple[float, ...]]] = {
    "queue_wait": _WAITS,
    "resume_delay": _WAITS,
    "run_duration": _WORK,
    "step_duration": _WORK,
    "job_duration": _WORK,
    "checkpoint_duration": (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
    "stop_latency": (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
}
"""Upper bounds of each histogram's buckets in seconds; above the last is `+Inf`."""
_SAVE_BUCKETS: Final = BUCKETS["checkpoint_duration"]
BUCKET_LABELS: Final = {
    metric: (*(repr(float(bound)) for bound in bounds), "+Inf")
    for metric, bounds in BUCKETS.items()
}

REASONS: Final = frozenset(
    {
        "stopping",
        "exit",
        "paused",
        "cancelled",
        "max_runtime",
        "isolating",
        "error",
        "store_unavailable",
        "KeyboardInterrupt",
        "SystemExit",
        "CancelledError",
        "GeneratorExit",
    }
)
"""The reasons of our own; those of applications are any text, and one label together."""

OUTCOMES: Final = {
    "jobs_finished": tuple(sorted(FINISHED)),
    "runs": ("interrupted", "paused", *sorted(FINISHED), "lost"),
    "interruptions": (*sorted(REASONS), OTHER),
}
"""What the last label of these counters may be."""
STEP_OUTCOMES: Final = ("completed", "interrupted", "failed", "lost")
"""And that of `steps`."""


def reason_label(reason: str | None) -> str:
    """The label of a reason."""
    return reason if reason in REASONS else OTHER


def bucket_of(metric: str, seconds: float) -> str:
    """The label of the bucket that those seconds belong to: its upper bound."""
    return BUCKET_LABELS[metric][bisect_left(BUCKETS[metric], seconds)]


def uncounted(head: JobRecord) -> int:
    """Items of the open step that are not in the totals yet."""
    return max(head.items - head.counted, 0)


class Tally:
    """Collects the counts of one job, with the labels that all of them have."""

    def __init__(self, head: JobRecord) -> None:
        """Count for that job."""
        self._name = head.name
        self._queue = head.queue or ""
        self._counts: list[Count] = []

    def add(self, metric: str, amount: float = 1, *, step: str = "", label: str = "") -> Tally:
        """Count `amount`; nothing is nothing."""
        if amount:
            told = (metric, self._name, self._queue, step, label, amount)
            self._counts.append(tuple.__new__(Count, told))  # as in `Step.position`
        return self

    def observe(self, metric: str, seconds: float, *, step: str = "") -> Tally:
        """Count one observation of a histogram; a clock that was set back counts as no time."""
        seconds = max(seconds, 0.0)
        self.add(f"{metric}_bucket", step=step, label=bucket_of(metric, seconds))
        return self.add(f"{metric}_sum", seconds, step=step)

    def __iter__(self) -> Iterator[Count]:
        """What was counted."""
        return iter(self._counts)


class Pending:
    """What a run's saves add, until the next change of the run or the saver takes it along.

    Filled by the job's thread and by the saver's. A kill loses what was not taken: of saves alone,
    never of items. Durations are kept by bucket, for a job may save thousands of times a second.
    """

    def __init__(self) -> None:
        """Have nothing."""
        self._lock = threading.Lock()
        self._saves: dict[str, list[float]] = {}
        """Of each step how many saves are in each bucket, and then how long all of them took."""

    def checkpoint(self, step: str, seconds: float) -> None:
        """A position of that step was saved, in that time."""
        bucket = bisect_left(_SAVE_BUCKETS, seconds)
        with self._lock:
            found = self._saves.get(step)
            if found is None:
                found = self._saves[step] = [0] * (len(_SAVE_BUCKETS) + 2)
            found[bucket] += 1
            found[-1] += seconds

    def take(self, head: JobRecord) -> tuple[Count, ...]:
        """All of it."""
        if not self._saves:
            return ()  # as of most steps; what comes just now is taken the next time
        with self._lock:
            saves, self._saves = self._saves, {}
        tally = Tally(head)
        for step, taken in saves.items():
            tally.add("checkpoints", sum(taken[:-1]), step=step)
        *amounts, seconds = (sum(each) for each in zip(*saves.values(), strict=True))
        for label, amount in zip(BUCKET_LABELS["checkpoint_duration"], amounts, strict=True):
            tally.add("checkpoint_duration_bucket", amount, label=label)
        return tuple(tally.add("checkpoint_duration_sum", seconds))


def submitted(head: JobRecord) -> tuple[Count, ...]:
    """A job was recorded."""
    return tuple(Tally(head).add("jobs_enqueued"))


def started(head: JobRecord, now: float) -> Tally:
    """A run begins, of the job as it was before."""
    tally = Tally(head)
    if head.run == 0:
        tally.observe("queue_wait", now - head.submitted_at)
    elif head.resume_at is not None:
        tally.observe("resume_delay", now - head.resume_at)
    return tally


def lost(tally: Tally, ended_at: float, started_at: float | None, step: str | None) -> Tally:
    """A run was found lost, with that step open, which it had taken up."""
    tally.add("runs", label="lost")
    if started_at is not None:
        tally.observe("run_duration", ended_at - started_at)
    if step is not None:
        tally.add("steps", step=step, label="lost")
    return tally


def items(
    tally: Tally, head: JobRecord, position: Position | None, redone: int = 0, redone_in: str = ""
) -> Tally:
    """The job goes on at `position`, and does `redone` items again that had been done.

    `redone_in` is their step where there is no position, for the store had not heard of it: without
    a name where nobody knows that any more. Afterwards all its items are counted. Where it goes
    back to before what was counted, as it may after a store lost its newest writes, nothing is
    taken back.
    """
    if position is not None:
        already = head.counted if head.step == position.step else 0
        done = max(position.items - already, 0) + redone
        tally.add("items_processed", done, step=position.step)
        tally.add("items_redone", redone, step=position.step)
    else:
        tally.add("items_processed", redone, step=redone_in)
        tally.add("items_redone", redone, step=redone_in)
    return tally


def ended(
    head: JobRecord,
    *,
    status: Status,
    reason: str | None,
    started_at: float,
    now: float,
    position: Position | None,
    counted: int,
    left: bool = False,
) -> Tally:
    """A run ended in `status`, with the step open where `position` is.

    `left` is whether this run had taken it up: one that ends before is not counted with the step.
    """
    tally = Tally(head)
    tally.add("runs", label=status.value)
    tally.observe("run_duration", now - started_at)
    if status in {Status.INTERRUPTED, Status.PAUSED}:
        tally.add("interruptions", label=reason_label(reason))
    if position is not None:
        outcome = "failed" if status is Status.FAILED else "interrupted"
        tally.add("steps", int(left), step=position.step, label=outcome)
        tally.add("items_processed", max(position.items - counted, 0), step=position.step)
    if status in FINISHED:
        finished(tally, head, status, now)
    return tally


def finished(tally: Tally, head: JobRecord, status: Status, now: float) -> Tally:
    """The job ended, with a run or without one."""
    tally.add("jobs_finished", label=status.value)
    return tally.observe("job_duration", now - head.submitted_at)


def step_completed(head: JobRecord, step: StepRecord, counted: int) -> Tally:
    """A step was done."""
    tally = Tally(head)
    tally.add("steps", step=step.name, label="completed")
    tally.add("items_processed", max(step.items - counted, 0), step=step.name)
    return tally.observe("step_duration", step.ended_at - step.started_at, step=step.name)
