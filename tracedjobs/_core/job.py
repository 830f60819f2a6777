"""`@job`: what makes a function a job function, and the table of those this process knows."""

from __future__ import annotations

import sys
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, TypeVar, overload

from tracedjobs._core.options import Duration, JobOptions
from tracedjobs.errors import TracedJobsError, UnknownJobError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from inspect import Signature

    from tracedjobs._core.context import AsyncContext, Context
    from tracedjobs._core.outcome import Outcome
    from tracedjobs._core.runtime import Runtime
    from tracedjobs._core.trace import Scope

__all__ = ["Job", "find_job", "job", "known_jobs"]

P = ParamSpec("P")
R = TypeVar("R")

_RETENTION: Final = timedelta(days=7)
_jobs: dict[str, Job[..., Any]] = {}


class Job(Generic[P, R]):
    """A job function with its name and options.

    `fn` is the function itself, for unit tests: `import_users.fn(ctx, "users.csv")`.
    """

    def __init__(
        self, fn: Callable[Concatenate[Any, P], Any], name: str, options: JobOptions
    ) -> None:
        """Wrap `fn`; use `@job` instead, which also makes it known."""
        self.fn = fn
        self.name = name
        self.options = options
        self.__doc__ = fn.__doc__
        self.__name__ = getattr(fn, "__name__", name)
        self.__qualname__ = getattr(fn, "__qualname__", name)
        self.__module__ = fn.__module__
        self.__wrapped__ = fn

    def __repr__(self) -> str:
        """Its name."""
        return f"<job {self.name}>"

    def __call__(self, *_args: object, **_keywords: object) -> Any:
        """Not to be called: raises `TypeError` that says what to call."""
        msg = (
            f"{self.__name__} is a job: call {self.__name__}.run(…) to run it, or "
            f"{self.__name__}.fn(ctx, …) for the plain function."
        )
        raise TypeError(msg)

    @cached_property
    def is_async(self) -> bool:
        """Whether it is an `async def` function."""
        from inspect import iscoroutinefunction  # noqa: PLC0415 - a slow import

        return iscoroutinefunction(self.fn)

    @cached_property
    def signature(self) -> Signature:
        """The function's parameters, `ctx` the first of them."""
        from inspect import signature  # noqa: PLC0415 - a slow import

        return signature(self.fn)

    @cached_property
    def plain_parameters(self) -> tuple[str, ...] | None:
        """The names of the parameters after `ctx`, if each is given by its place or by its name."""
        parameters = list(self.signature.parameters.values())
        if any(each.kind is not each.POSITIONAL_OR_KEYWORD for each in parameters):
            return None
        return tuple(each.name for each in parameters[1:])

    def submit(self, *args: object, job_id: str | None = None, **kwargs: object) -> str:
        """Record a job as pending on the default runtime; its id. See `Runtime.submit`."""
        return _default_runtime().submit(self, *args, job_id=job_id, via=None, **kwargs)

    def run(self, *args: object, job_id: str | None = None, **kwargs: object) -> Outcome:
        """Submit and perform on the default runtime; see `Runtime.submit` and `perform`.

        `job_id="…"` runs that job, if it was submitted before with the same arguments.
        """
        if self.is_async:
            msg = f"{self.name} is an async def job; use run_async."
            raise TypeError(msg)
        runtime = _default_runtime()
        return runtime.perform(runtime.submitted(self, args, kwargs, job_id, None))

    async def run_async(
        self, *args: object, job_id: str | None = None, **kwargs: object
    ) -> Outcome:
        """See `run`, for `async def` jobs."""
        if not self.is_async:
            msg = f"{self.name} is a def job; use run."
            raise TypeError(msg)
        runtime = _default_runtime()
        return await runtime.perform_async(runtime.submitted(self, args, kwargs, job_id, None))


def _default_runtime() -> Runtime:
    import tracedjobs  # noqa: PLC0415 - the runtime imports this module

    return tracedjobs.default_runtime()


@overload
def job(fn: Callable[Concatenate[Context, P], R], /) -> Job[P, R]: ...


@overload
def job(fn: Callable[Concatenate[AsyncContext, P], Awaitable[R]], /) -> Job[P, R]: ...


@overload
def job(
    *,
    name: str | None = ...,
    max_resumptions: int | None = ...,
    resume_delay: Duration = ...,
    resume_errors_after_advancing: bool = ...,
    checkpoint_every: Duration = ...,
    max_runtime: Duration | None = ...,
    stall_after: Duration = ...,
    deadline: Duration | None = ...,
    steps: Sequence[str] | int | None = ...,
    retention: Duration = ...,
    trace: Scope = ...,
) -> Callable[[Callable[Concatenate[Any, P], R]], Job[P, R]]: ...


def job(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    max_resumptions: int | None = None,
    resume_delay: Duration = 5.0,
    resume_errors_after_advancing: bool = True,
    checkpoint_every: Duration = 1.0,
    max_runtime: Duration | None = None,
    stall_after: Duration = 60.0,
    deadline: Duration | None = None,
    steps: Sequence[str] | int | None = None,
    retention: Duration = _RETENTION,
    trace: Scope = "shared",
) -> Any:
    """Make a function a job function. Its first parameter is `ctx`.

    Durations are seconds or `timedelta`.

    - `name`: stable identity in stores; default `module:qualname`, for a script the file's stem.
    - `max_resumptions`: more resumptions than this fail the job with `ResumeLimitError`.
    - `resume_delay`: delay asked of the queue before an interrupted job runs again.
    - `resume_errors_after_advancing`: a run that raises after it made progress is interrupted with
      reason `error`, and not failed.
    - `checkpoint_every`: how old the saved cursor may get; `0` saves at every advance, before the
      next item starts.
    - `max_runtime`: a run longer than this is interrupted at its next checkpoint.
    - `stall_after`: in a step with a cursor: no movement for this long counts as stalled.
    - `deadline`: time from submission by which the job should be done; nothing is stopped.
    - `steps`: the names or number of steps, for "2 of 5".
    - `retention`: how long a finished job's record stays; `math.inf` keeps it. Of a job with a
      sampled trace it stays for 10 minutes at least, for its spans are made from it.
    - `trace`: `shared`, all runs of a job in one trace, or `per_run`, a trace a run, linked, for
      jobs of days: trace backends limit a trace's size and age.

    Raises `TypeError` or `ValueError` for a wrong option, and `TracedJobsError` when another
    function has the name.
    """
    options = JobOptions.checked(
        max_resumptions=max_resumptions,
        resume_delay=resume_delay,
        resume_errors_after_advancing=resume_errors_after_advancing,
        checkpoint_every=checkpoint_every,
        max_runtime=max_runtime,
        stall_after=stall_after,
        deadline=deadline,
        steps=steps,
        retention=retention,
        trace=trace,
    )

    def decorate(function: Callable[..., Any]) -> Job[..., Any]:
        return _register(function, name, options)

    return decorate if fn is None else decorate(fn)


def find_job(name: str) -> Job[..., Any]:
    """The job function of that name; raises `UnknownJobError` that lists the known ones."""
    found = _jobs.get(name)
    if found is None:
        known = ", ".join(sorted(_jobs)) or "none"
        msg = (
            f"No job function named {name!r} is registered in this process (known: {known}). "
            f"Import the module that defines it, or name it in modules= or TRACEDJOBS_MODULES. "
            f"The job was left as it was."
        )
        raise UnknownJobError(msg)
    return found


def known_jobs() -> dict[str, Job[..., Any]]:
    """The job functions of this process, by name."""
    return dict(_jobs)


def _register(function: Callable[..., Any], name: str | None, options: JobOptions) -> Job[..., Any]:
    if not callable(function) or not hasattr(function, "__qualname__"):
        msg = f"@job decorates a function, found {function!r}."
        raise TypeError(msg)
    if name is not None and (not isinstance(name, str) or not name.strip()):
        msg = f"name={name!r} of job {function.__qualname__} must be a text that is not empty."
        raise TypeError(msg)
    made: Job[..., Any] = Job(function, name or default_name(function), options)
    _check_takes_ctx(made)
    taken = _jobs.get(made.name)
    if taken is not None and _place(taken.fn) != _place(function):
        msg = (
            f"The job name {made.name!r} is taken by {'.'.join(_place(taken.fn))}; give "
            f"{'.'.join(_place(function))} another one with @job(name=…)."
        )
        raise TracedJobsError(msg)
    _jobs[made.name] = made
    return made


def _check_takes_ctx(made: Job[..., Any]) -> None:
    code = getattr(made.fn, "__code__", None)
    if code is not None and code.co_argcount == 0 and not code.co_flags & 0x04:
        msg = f"The job function {made.name} takes no arguments; its first parameter must be ctx."
        raise TypeError(msg)


def _place(function: Callable[..., Any]) -> tuple[str, str]:
    return module_name(function), function.__qualname__


def default_name(function: Callable[..., Any]) -> str:
    """`module:qualname`."""
    return f"{module_name(function)}:{function.__qualname__}"


def module_name(function: Callable[..., Any]) -> str:
    """The function's module; for a script the module it would be when imported."""
    module = function.__module__
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return str(spec.name.removesuffix(".__main__"))
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else module
