"""How `continuable` makes a task of a function: what belongs to the job, and what to the queue."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from tracedjobs._core.job import job as make_job

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracedjobs._core.job import Job
    from tracedjobs.queues.base import Continuable

__all__ = ["decorator"]


def decorator(
    make: Callable[[Job[..., Any]], Continuable],
    refusal: Callable[[Job[..., Any], dict[str, Any]], str | None],
    options: dict[str, Any],
) -> Callable[[Callable[..., Any]], Any]:
    """What makes a task of a function: options of `@job` go to the job, all others to the queue.

    `make` is given the job, and `refusal` the job and the queue's options: it takes out those that
    the queue is not to see, and says what is wrong, if anything is. That is raised as `TypeError`.
    """
    ours, theirs = _split(options)

    def decorate(fn: Callable[..., Any]) -> Any:
        job = make_job(**ours)(fn)
        wrong = refusal(job, theirs)
        if wrong is not None:
            raise TypeError(wrong)
        made = make(job)

        def call(*args: object, **kwargs: object) -> object:
            return made.execute(args, kwargs)

        async def call_async(*args: object, **kwargs: object) -> object:
            return await made.execute_async(args, kwargs)

        return made.as_task(_entry(job, call_async if job.is_async else call), theirs)

    return decorate


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of `@job`, and all others; `name` is one of both."""
    ours = set(inspect.signature(make_job).parameters) - {"fn"}
    return (
        {key: value for key, value in options.items() if key in ours},
        {key: value for key, value in options.items() if key not in ours or key == "name"},
    )


def _entry(job: Job[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` under the name of the job's function, and with its parameters but for `ctx`."""
    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(call, attribute, getattr(job.fn, attribute))
    signature = job.signature
    rest = list(signature.parameters.values())[1:]
    call.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]  # inspect reads it
    return call
