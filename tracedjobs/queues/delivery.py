"""A message as it came to a worker, and what may come of it: the same for every queue."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tracedjobs._core import values
from tracedjobs.errors import TracedJobsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


__all__ = ["Again", "Delivery", "Done", "Over", "Verdict", "text_of_message"]

_log: Final = logging.getLogger("tracedjobs")


@dataclass(slots=True)
class Delivery:
    """A message as it came: the id of the job, and what the caller gave."""

    job_id: str
    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)
    message: Callable[[], object] = lambda: None
    """What is needed to send it again, asked when the job is recorded: see `Continuable.send`."""
    wait: float = 0.0
    """Seconds from now on before which the queue is not to bring it to a worker."""
    followed: bool = False
    """Whether the queue sends other messages when it is told of the job's end: see `answered`."""
    again: bool = False
    """Whether the broker says that it gave this message to a worker before."""


@dataclass(slots=True)
class Done:
    """The job is completed, by this run or one before: give `result` to the queue."""

    result: object
    answered: bool = False
    """Whether the queue was told, and has sent what follows: nothing is to be sent again."""


@dataclass(slots=True)
class Again:
    """The job goes on in `delay` seconds: send the message again in the queue's own way.

    The same id, the same number of retries, and nothing that the caller could take for an end.
    """

    delay: float
    reason: str


@dataclass(slots=True)
class Over:
    """Nothing is to be done for this message: acknowledge it, and store no result.

    `reason` is `duplicate`, `lease_lost` (the job goes on elsewhere), `paused`, `cancelled`,
    `answered` (it failed, and the queue was told), or `gone`: there is no record of it any more.
    """

    reason: str


Verdict = Done | Again | Over


def text_of_message(delivery: Delivery) -> str | None:
    """What is kept of it, as it is recorded."""
    try:
        message = delivery.message()
        return None if message is None else values.encode(message, path="message")
    except TracedJobsError as error:
        _log.warning(
            "Of the message of job %s nothing is kept, so if it is lost the job is sent again "
            "without its options and what was chained to it: %s",
            delivery.job_id,
            error,
        )
        return None
