"""The names of all metrics, and what each says: one table, for the collector and the documentation.

How the counters and histograms come about is in `tracedjobs._core.counting`. None is labelled by
`job` or `instance`, which are Prometheus' own.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["COUNTERS", "GAUGES", "HISTOGRAMS", "OF_EACH_JOB", "PREFIX", "Metric"]

PREFIX: Final = "tracedjobs_"
COMMON: Final = ("job_name", "queue")


class Metric(NamedTuple):
    """A metric: what it says, and its labels."""

    help: str
    labels: tuple[str, ...] = COMMON


def _by(*labels: str) -> tuple[str, ...]:
    return (*COMMON, *labels)


COUNTERS: Final = {
    "jobs_enqueued": Metric("Jobs that were submitted."),
    "jobs_finished": Metric("Jobs that ended: completed, failed or cancelled.", _by("outcome")),
    "runs": Metric(
        "Runs that ended; lost where the process died. An interrupted one is no failure.",
        _by("outcome"),
    ),
    "interruptions": Metric(
        "Runs that ended before their job did, which goes on from there.", _by("reason")
    ),
    "resumptions": Metric("Runs that went on from where another one stopped."),
    "steps": Metric(
        "Steps that a run completed, or left open as it ended.", _by("step", "outcome")
    ),
    "checkpoints": Metric("Positions that were saved.", _by("step")),
    "items_processed": Metric("Items done, those included that were done again.", _by("step")),
    "items_redone": Metric("Items done again, for a run was killed.", _by("step")),
    "duplicates_refused": Metric("Attempts to run a job that was running already."),
    "leases_lost": Metric("Runs that found their job taken over by another one."),
}
"""Without the `_total` that they are shown with."""

HISTOGRAMS: Final = {
    "queue_wait": Metric("From the submission of a job to its first run."),
    "resume_delay": Metric("From the moment a job could be resumed to its next run."),
    "run_duration": Metric("Of runs, from lease to end."),
    "step_duration": Metric("Of completed steps, interruptions included.", _by("step")),
    "job_duration": Metric("Of ended jobs, from submission to end."),
    "checkpoint_duration": Metric(
        "Of saves: the saver's, one for all runs of a process, and each job's own."
    ),
    "stop_latency": Metric("From the moment a run was asked to stop to its end."),
}
"""All in seconds, and without the `_seconds` that they are shown with."""

GAUGES: Final = {
    "jobs": Metric(
        "Jobs there are; lost and stalled ones are not among the running.", _by("state")
    ),
    "jobs_stalled": Metric("Running jobs whose cursor has not moved for their own threshold."),
    "jobs_lost": Metric("Jobs recorded as running whose process is gone."),
    "oldest_queued_timestamp_seconds": Metric("When the oldest pending job was submitted."),
    "oldest_interrupted_timestamp_seconds": Metric(
        "Since when the interrupted job that has waited longest could have been resumed."
    ),
    "oldest_progress_timestamp_seconds": Metric(
        "When the running job that has stood still longest last moved."
    ),
    "workers": Metric("Workers that run jobs.", ("state",)),
    "deadline_missed": Metric("Running jobs that are past their deadline."),
    "exporter_last_success_timestamp_seconds": Metric("When the store was last read.", ()),
    "exporter_collect_duration_seconds": Metric("How long that took.", ()),
    "exporter_jobs_omitted": Metric("Running jobs beyond those that have series of their own.", ()),
}

JOB: Final = _by("job_id")
OF_EACH_JOB: Final = {
    "job_info": Metric(
        "A running job: 1. Its state is running, stalled or lost.",
        (*JOB, "state", "worker", "step", "trace_id"),
    ),
    "job_progress_ratio": Metric("How much of the open step is done, 0 to 1.", JOB),
    "job_items_processed": Metric("Items of the open step that are done.", JOB),
    "job_items_expected": Metric("Items, or bytes, that the open step has.", JOB),
    "job_started_timestamp_seconds": Metric("When the job's first run began.", JOB),
    "job_run_started_timestamp_seconds": Metric("When this run began.", JOB),
    "job_step_started_timestamp_seconds": Metric("When the open step began.", JOB),
    "job_last_progress_timestamp_seconds": Metric("When its cursor last moved.", JOB),
    "job_heartbeat_timestamp_seconds": Metric("When its process last gave a sign of life.", JOB),
    "job_eta_timestamp_seconds": Metric("When the open step is expected to be done.", JOB),
    "job_deadline_timestamp_seconds": Metric("By when the job should be done.", JOB),
    "job_runs": Metric("Runs so far, this one included.", JOB),
    "job_stall_after_seconds": Metric("Its threshold: no progress for this long is a stall.", JOB),
}
"""Of running jobs alone, and of so many at most: the stalled, the lost and the latest first."""
