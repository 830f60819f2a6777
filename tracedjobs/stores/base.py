"""What every store does, and what each of its methods promises.

A store keeps records and refuses what is not allowed; it knows nothing of job functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from tracedjobs._core.records import RECORD_VERSION
from tracedjobs.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracedjobs._core.first_run import FirstRun
    from tracedjobs._core.records import (
        Change,
        Count,
        JobRecord,
        Save,
        SpansSent,
        Status,
        StepRecord,
        Stored,
        Survey,
    )

__all__ = ["LONGEST_CLAIM", "STEP_NAMES", "Creating", "Saved", "Store", "written_by_newer"]

STEP_NAMES: Final = 100
LONGEST_CLAIM: Final = 3600.0
"""Seconds: a claim that ends later than this from now is from before the clock was set back."""

Saved = tuple[str | None, str | None] | StoreError
"""The token and the wish that a job has now; or why its save failed, where others did not."""


def written_by_newer(job_id: object, version: object) -> StoreError:
    """The error for a record of a version that this tracedjobs does not know."""
    return StoreError(
        f"The job {job_id} was written by a newer tracedjobs (record version {version}; this one "
        f"reads up to {RECORD_VERSION}). Upgrade tracedjobs here; the job was not changed."
    )


class Creating(Protocol):
    """`creating` of a store that has it: one whose answers are worth doing something meanwhile."""

    def __call__(self, job: JobRecord, counts: Sequence[Count] = ()) -> Callable[[], bool]:
        """Ask for what `Store.create` does, and give what waits for the answer, to be called once.

        Either raises what `create` does.
        """
        ...


class Store(Protocol):
    """Where jobs are kept.

    Methods are synchronous and may be called from any thread. Each is one atomic step, durable
    when it returns. All raise `StoreUnavailableError` when trying again may help, and
    `StoreError` when it will not; after either nothing was changed, or the change is one that
    may be repeated.

    The fence: a run writes with its random `token`, which no two runs of a job share. Whoever
    takes the job over replaces it in the same atomic change that raises the run's number, so
    that from then on no write of the old run finds a row.

    Counts are added to the totals in the write that they come with, all of it or nothing. Of each
    job name the first `STEP_NAMES` step names are told apart there, and the others counted as
    `counting.OTHER` together: so the totals are bounded, whatever jobs call their steps.
    """

    url: str
    """The address without its secrets."""

    def create(self, job: JobRecord, counts: Sequence[Count] = ()) -> bool:
        """Add a job; `False` when one of that id is there already, which is left as it is."""
        ...

    def load(self, job_id: str) -> Stored | None:
        """The job of that id, or `None`."""
        ...

    def begin(self, job_id: str, first: FirstRun) -> tuple[Stored | None, bool]:
        """The job of that id, or `None`; and whether its first run was begun in the same step.

        It is begun if nothing has happened to the job since it was submitted, and its name is that
        of `first`: what is read is the job as it is then. All others are left as they are, and read
        as by `load`. It does what `load` and `FirstRun.change` do, and nobody comes in between.
        """
        ...

    def page(
        self, *, status: Status | None, name: str | None, before: str | None, limit: int
    ) -> list[Stored]:
        """Up to `limit` jobs, newest first, beginning after the job `before`."""
        ...

    def change(self, change: Change) -> bool:
        """Make the change, or return `False` where the revision or the lease has moved on.

        Raises `InvalidTransitionError` when the statuses' table does not allow it.
        """
        ...

    def save(self, saves: Sequence[Save]) -> Mapping[str, Saved]:
        """Save the positions of many runs and renew their leases, in one round trip.

        A save whose token is not the job's, or whose `seq` is not above the last, changes
        nothing. Returns the token and the wish that each job has now; a job that is gone is
        missing. A store that may lose what it has acknowledged fences off a run whose completed
        steps it has lost, which `LOST_GAP` tells: its position is in a later step. Where jobs are
        on several servers, one of which is away, its jobs have the error in that place; when none
        answers the error is raised.
        """
        ...

    def save_one(self, save: Save) -> bool:
        """Save one position; `False` when the fence or the order refused it."""
        ...

    def complete_step(
        self,
        job_id: str,
        token: str,
        step: StepRecord,
        *,
        position: int,
        seq: int,
        state: str | None,
        lease_ttl: float | None = None,
        counts: Sequence[Count] = (),
    ) -> bool:
        """Record that a step is done, with the state after it; `False` when fenced off.

        No step is open afterwards, and `seq` is the job's `saved_seq`: a save that was begun
        before comes too late. So the lease is renewed here, where `lease_ttl` says for how long:
        a run whose steps are short would not get one save through. `position` is its place among
        the job's completed steps, from 0: so the same call may be made again when its answer did
        not arrive, and counts once.
        """
        ...

    def lease_alive(self, job: JobRecord) -> bool:
        """Whether the lease of `job`, as it was read, still holds on the store's clock."""
        ...

    def expired(self, *, limit: int) -> list[JobRecord]:
        """Up to `limit` running jobs whose lease has ended on the store's clock, longest first."""
        ...

    def steps_of_last_completed(self, name: str) -> int | None:
        """How many steps the latest completed job of that name had."""
        ...

    def count(self, counts: Sequence[Count]) -> None:
        """Add to the totals what no change of a job tells. May be lost, never made again."""
        ...

    def survey(self) -> Survey:
        """The totals, and the jobs that are not done, together as of one moment.

        A store of several servers takes each server's part of both as of one moment: so no item
        is missed or seen twice while a run's items move from the one to the other.
        """
        ...

    def time(self) -> float:
        """The store's clock, in seconds since the epoch: what all times in records are on."""
        ...

    def heartbeat(self, job: JobRecord) -> float | None:
        """When the run of `job`, as it was read, last renewed its lease, on that clock.

        `None` where that cannot be told, as for a run from before a reboot.
        """
        ...

    def claim_spans(self, ids: Sequence[str], *, seconds: float) -> Mapping[str, float]:
        """Claim the sending of the spans that those jobs owe; of each that was free, its claim.

        A claim is when it ends, on the store's clock, `LONGEST_CLAIM` from now at most. Until then
        nobody else has one, so no span is sent twice; what was sent before is in the job as it is
        read after the claim.
        """
        ...

    def spans_sent(self, sent: Sequence[SpansSent]) -> None:
        """Note what was sent, and give the claims back.

        May be repeated, and come late: what was noted is never taken back. Steps are not noted
        once the claim is another's or a rewind has ended it: what was counted may be others.
        """
        ...

    def owing(self, *, limit: int) -> list[str]:
        """Up to `limit` jobs that owe spans and are claimed by nobody, longest first."""
        ...

    def waiting(self, *, limit: int, after: float = 0.0) -> list[JobRecord]:
        """Up to `limit` interrupted jobs of queues whose `hand_at` has come, longest first.

        Of those alone for which that was later than `after`: so one call may go on where another
        came to.
        """
        ...

    def unbegun(self, *, limit: int, after: float = 0.0) -> list[JobRecord]:
        """Up to `limit` pending jobs of queues whose `hand_at` has come; else as `waiting`."""
        ...

    def elect(self, name: str, holder: str, *, seconds: float) -> bool:
        """Whether `holder` is the one who does what `name` stands for, on the store's clock.

        It is elected when nobody else is, for `seconds` from now, or for half of that at least
        where it was already. With 0 seconds it gives the election back.
        """
        ...

    def purge(self, *, limit: int) -> int:
        """Delete up to `limit` finished jobs whose retention has ended; how many there were."""
        ...

    def close(self) -> None:
        """Let go of connections; later calls raise `StoreError`."""
        ...
