"""What a store keeps of a job, as plain data, and how it differs from one moment to the next.

Texts such as `arguments` and `cursor` are the typed JSON of `values`; nothing here decodes them.
Times are seconds since the epoch, but for `lease_until`, which is on the store's own lease clock.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "ALLOWED",
    "FINISHED",
    "LOST_GAP",
    "NOWHERE",
    "POSITION_COLUMNS",
    "READ_FROM_TIME",
    "RECORD_VERSION",
    "SEQ_GAP",
    "Change",
    "ControlRecord",
    "Count",
    "JobRecord",
    "Living",
    "Position",
    "RunEnd",
    "RunRecord",
    "Save",
    "SpansSent",
    "Status",
    "StepRecord",
    "Stored",
    "Survey",
    "TotalKey",
    "position_columns",
]

RECORD_VERSION: Final = 1
"""The version of the record below; a store refuses to read a newer one."""
SEQ_GAP: Final = 1_000_000
"""By how much a step's completion raises `saved_seq`: more saves than can be begun while one is
written."""
LOST_GAP: Final = SEQ_GAP // 2
"""What is further ahead of `saved_seq` is of a run of which the store has lost a completed step."""


class Status(StrEnum):
    """Where a job stands. `lost` and `stalled` are read from time, and never stored."""

    PENDING = "pending"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


READ_FROM_TIME: Final = ("lost", "stalled")
"""What a running job may be besides, see `Status`; attributes of its snapshot."""

FINISHED: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})

ALLOWED: Final[Mapping[Status, frozenset[Status]]] = {
    # From what a job's status may change to what. The one table: every store refuses all else in
    # the same atomic write that would make the change. A running job that starts again was lost.
    Status.PENDING: frozenset({Status.RUNNING, Status.PAUSED, Status.CANCELLED}),
    Status.RUNNING: frozenset(
        {
            Status.RUNNING,
            Status.INTERRUPTED,
            Status.PAUSED,
            Status.COMPLETED,
            Status.FAILED,
            Status.CANCELLED,
        }
    ),
    Status.INTERRUPTED: frozenset(
        # to failed: found lost, and over its limit of resumptions
        {
            Status.RUNNING,
            Status.INTERRUPTED,
            Status.PAUSED,
            Status.FAILED,
            Status.CANCELLED,
        }
    ),
    Status.PAUSED: frozenset({Status.PENDING, Status.INTERRUPTED, Status.PAUSED, Status.CANCELLED}),
    Status.COMPLETED: frozenset({Status.INTERRUPTED}),
    Status.FAILED: frozenset({Status.RUNNING, Status.INTERRUPTED}),
    Status.CANCELLED: frozenset(),
}


class Position(NamedTuple):
    """The open step and how far it got: everything before `cursor` is done.

    A tuple, as `Save` is: both are made at each item that is saved durably, and a frozen dataclass
    takes three times as long to make. Its values stand in the order of `POSITION_COLUMNS`.
    """

    step: str
    cursor: str = "null"
    items: int = 0
    total: int | None = None
    unit: str | None = None
    """What `total` counts: `bytes` (then the cursor is one too), else items."""
    started_at: float = 0.0
    fingerprint: str | None = None
    """What the source said of itself when the step began, to see that it is still the same."""
    entered: str | None = None
    """Where the run that is at it took it up: a `stretch.Entered` as text."""

    @property
    def done(self) -> int:
        """How much is done of what `total` counts."""
        if self.unit == "bytes" and self.cursor.isdecimal():
            return int(self.cursor)
        return self.items


class Count(NamedTuple):
    """What is to be added to one of the totals that the store keeps, see `counting`."""

    metric: str
    job_name: str
    queue: str
    step: str
    label: str
    """The outcome or the reason; of a histogram's bucket its upper bound."""
    amount: float

    @property
    def key(self) -> TotalKey:
        """Which total it belongs to."""
        return self[:5]


TotalKey = tuple[str, str, str, str, str]
"""Metric, job name, queue, step and label."""


@dataclass(frozen=True, slots=True)
class Living:
    """A running job as the store sees it at one moment."""

    job: JobRecord
    heartbeat: float | None
    """When its run last renewed its lease; `None` where that cannot be told any more."""
    alive: bool
    """Whether the lease still holds."""


@dataclass(frozen=True, slots=True)
class Survey:
    """All that a store knows in figures, at one moment of its clock `now`."""

    now: float
    totals: Mapping[TotalKey, float]
    """The value of each total by the key of its counts."""
    jobs: Mapping[tuple[str, str, str], int]
    """How many jobs there are by name, queue and status."""
    living: Sequence[Living]
    oldest_pending: Mapping[tuple[str, str], float]
    """When the oldest pending job was submitted, by name and queue."""
    oldest_interrupted: Mapping[tuple[str, str], float]
    """Since when the job that has waited longest could have been resumed, by name and queue."""


class StepRecord(NamedTuple):
    """A completed step."""

    name: str
    result: str
    cursor: str
    items: int
    total: int | None
    unit: str | None
    started_at: float
    ended_at: float
    run: int
    entered: str | None = None
    """Where that run took it up, see `Position.entered`."""


class RunRecord(NamedTuple):
    """One run: from the taking of the lease to its outcome, which is `None` while it runs."""

    number: int
    worker: str
    started_at: float
    resumed: bool
    ended_at: float | None = None
    outcome: str | None = None
    reason: str | None = None
    left: str | None = None
    """The step it left open: a `stretch.Left` as text."""


class RunEnd(NamedTuple):
    """How a run ended."""

    number: int
    outcome: str
    reason: str | None
    ended_at: float
    left: str | None = None


class SpansSent(NamedTuple):
    """What the holder of a claim has sent of a job's spans, see `Store.claim_spans`."""

    job_id: str
    claim: float
    """When the claim ends."""
    revision: int
    """That of the job which was read under the claim: nothing is owed while it is the same."""
    steps: int
    """How many of its completed steps have been sent, from the first on."""
    runs: int
    """How many of its runs, from the first on, with the steps they left open."""
    root: bool


class ControlRecord(NamedTuple):
    """What an operator asked of the job, who it was, and when."""

    at: float
    action: str
    by: str
    detail: str | None = None


@dataclass(frozen=True)
class JobRecord:
    """The head of a job: what changes as a whole, under `revision`, but for the saver's part.

    `step` to `state`, `lease_until` and `saved_seq` are written by saves, which do not raise
    `revision`: they are fenced by `token` and ordered by `saved_seq` instead.
    """

    id: str
    name: str
    arguments: str
    submitted_at: float
    version: int = RECORD_VERSION
    status: Status = Status.PENDING
    revision: int = 0
    run: int = 0
    token: str | None = None
    worker: str | None = None
    owner: str | None = None
    """The name of the lock file that the running process holds, see `owner`."""
    lease_until: float = 0.0
    lease_boot: str | None = None
    lost_token: str | None = None
    """The token of a run that was found lost by who could not read its flight recorder."""
    rewinds: int = 0
    """How often it was rewound, to tell a cursor in the user's database from before."""
    wish: str | None = None
    """`pause` or `cancel`, for the run to see at its next save."""
    resumptions: int = 0
    items_redone: int = 0
    """Items that were done again, in all runs together, because a run was killed."""
    reason: str | None = None
    error: str | None = None
    result: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    resume_at: float | None = None
    deadline_at: float | None = None
    expires_at: float | None = None
    retention: float = 7 * 24 * 3600.0
    """Seconds that the record is kept after the job has ended."""
    steps_expected: int | None = None
    step: str | None = None
    cursor: str = "null"
    items: int = 0
    total: int | None = None
    unit: str | None = None
    step_started_at: float | None = None
    fingerprint: str | None = None
    entered: str | None = None
    progressed_at: float | None = None
    state: str | None = None
    saved_seq: int = 0
    meter: str | None = None
    """What the estimate of the open step's time left is made from, see `estimate`."""
    counted: int = 0
    """How many of the open step's items are in the totals."""
    queue: str | None = None
    run_started_at: float | None = None
    lease_ttl: float | None = None
    """The lease that the running process takes each time: when it ends tells the last renewal."""
    stall: str | None = None
    """Where the job hangs, or hung when its process died, see `stalls`."""
    trace: str | None = None
    """The trace it belongs to: a `Trace` as text; `None` before the first with telemetry."""
    spans_due: float | None = None
    """When whoever finds it may claim the sending of what it owes; `None` where it owes nothing."""
    steps_sent: int = 0
    runs_sent: int = 0
    root_sent: int = 0
    """1 once the root of its trace was sent."""
    message: str | None = None
    """What its queue needs, besides the arguments, to send the message again: typed JSON."""
    handed_at: float | None = None
    """When it was last handed back to its queue by who found it without a run; of a pending job
    also when a worker last told that it has its message, or when that was missed in the broker."""
    hand_at: float | None = None
    """When it is to be handed back, if it still waits then, see `due`; of a pending job, when its
    message is to be looked for."""

    def changed(self, columns: Mapping[str, object]) -> JobRecord:
        """The record with those columns in the place of its own, as `dataclasses.replace` has it.

        In a tenth of its time, and each delivery of a message needs it twice: so the columns are
        in the record's `__dict__`, which is copied at once, and not in slots.
        """
        made = object.__new__(JobRecord)
        made.__dict__.update(self.__dict__)
        made.__dict__.update(columns)
        return made

    @property
    def position(self) -> Position | None:
        """The open step as last saved; a step that has completed since may still stand here."""
        if self.step is None:
            return None
        return Position(
            step=self.step,
            cursor=self.cursor,
            items=self.items,
            total=self.total,
            unit=self.unit,
            started_at=self.step_started_at or 0.0,
            fingerprint=self.fingerprint,
            entered=self.entered,
        )


class Stored(NamedTuple):
    """A job with all that belongs to it."""

    job: JobRecord
    steps: tuple[StepRecord, ...] = ()
    runs: tuple[RunRecord, ...] = ()
    controls: tuple[ControlRecord, ...] = ()

    @property
    def open_position(self) -> Position | None:
        """The open step, if there is one.

        A step's completion is written by itself (see `Store.complete_step`) and leaves the
        position before it in the job: a position of a completed step is therefore none.
        """
        position = self.job.position
        if position is None or any(step.name == position.step for step in self.steps):
            return None
        return position


class Save(NamedTuple):
    """The newest position of one run, and the wish that its lease goes on for `lease_ttl` s."""

    job_id: str
    token: str
    seq: int
    lease_ttl: float
    position: Position | None
    progressed_at: float | None
    state: str | None = None
    """The state that belongs to this position, or `None` where it has not changed."""
    meter: str | None = None
    """See `JobRecord.meter`; `None` where it has not changed."""


class Change(NamedTuple):
    """One atomic change of a job, valid only while its revision is still `revision`."""

    job_id: str
    revision: int
    columns: Mapping[str, object]
    lease_ttl: float | None = None
    """Seconds of lease to take from now on the store's clock."""
    if_lease_until: float | None = None
    """The change holds only while the lease was not renewed since it was read."""
    if_token: str | None = None
    """The change holds only while the job has this token: a store that lost its newest writes may
    have handed the same revision to another run."""
    open_run: RunRecord | None = None
    close_run: RunEnd | None = None
    drop_steps: tuple[str, ...] = ()
    control: ControlRecord | None = None
    counts: tuple[Count, ...] = ()
    """What to add to the totals in the same atomic write."""
    known: Stored | None = None
    """The job as it was at `revision`, where the caller has it: a store need not read it first.

    What saves and completed steps write without a new revision may be older in it."""

    @property
    def owes_spans(self) -> bool:
        """Whether a job of a sampled trace owes spans from then on."""
        return self.close_run is not None or self.columns.get("status") in FINISHED


def position_columns(position: Position | None) -> dict[str, object]:
    """The columns of a `JobRecord` that hold `position`."""
    return dict(zip(POSITION_COLUMNS, position or NOWHERE, strict=True))


POSITION_COLUMNS: Final = (
    "step",
    "cursor",
    "items",
    "total",
    "unit",
    "step_started_at",
    "fingerprint",
    "entered",
)
NOWHERE: Final = (None, "null", 0, None, None, None, None, None)
"""What these columns hold while no step is open."""
JOB_COLUMNS: Final = tuple(each.name for each in fields(JobRecord))
STEP_COLUMNS: Final = StepRecord._fields
RUN_COLUMNS: Final = RunRecord._fields
CONTROL_COLUMNS: Final = ControlRecord._fields
