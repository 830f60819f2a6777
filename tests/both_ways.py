"""One job body, run as a `def` job and as an `async def` job, on either embedded store.

Bodies are written with `await` and `async for`; for the `def` job a thin wrapper drives them
without an event loop, on the plain `Context`. What only one kind of job has is tested by itself.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

import tracedjobs

if TYPE_CHECKING:
    from tracedjobs import AsyncContext, Context, Job, JobSnapshot, Loop, Outcome, Runtime

T = TypeVar("T")
Flavour = Literal["def", "async def"]
Body = Callable[..., Coroutine[Any, Any, object]]


class Lab:
    """Defines jobs of one flavour and runs them on one runtime."""

    def __init__(self, runtime: Runtime, flavour: Flavour) -> None:
        self.runtime = runtime
        self.flavour = flavour

    @property
    def is_async(self) -> bool:
        return self.flavour == "async def"

    def job(self, body: Body, **options: Any) -> Job[..., Any]:
        """The job of this flavour that does what `body` says."""
        make: Any = tracedjobs.job(**options)
        return cast("Job[..., Any]", make(body if self.is_async else plain_job(body)))

    def submit(self, body: Body, *args: object, **options: Any) -> str:
        """The id of a new job of `body`."""
        return self.runtime.submit(self.job(body, **options), *args)

    def perform(self, job_id: str, *, stopping: Callable[..., Any] | None = None) -> Outcome:
        """One run of the job; an assertion that fails in it fails the test."""
        if self.is_async:
            outcome = asyncio.run(self.runtime.perform_async(job_id, stopping=stopping))
        else:
            outcome = self.runtime.perform(job_id, stopping=stopping)
        if isinstance(outcome.error, AssertionError):
            raise outcome.error
        return outcome

    def run(self, body: Body, *args: object, **options: Any) -> Outcome:
        """The first run of a new job of `body`."""
        return self.perform(self.submit(body, *args, **options))

    def get(self, job_id: str) -> JobSnapshot:
        """The job as it is in the store."""
        return self.runtime.get(job_id)


def plain_job(body: Body) -> Callable[..., object]:
    """A `def` function that does what `body` says, with a plain `Context`."""

    @functools.wraps(body)
    def plain(ctx: Context, *args: object, **keywords: object) -> object:
        return ended(body(cast("AsyncContext", _AwaitedContext(ctx)), *args, **keywords))

    return plain


def ended(coroutine: Awaitable[T]) -> T:
    """What the coroutine returns, which has nothing to wait for."""
    try:
        cast("Coroutine[Any, Any, T]", coroutine).send(None)
    except StopIteration as stop:
        return cast("T", stop.value)
    raise AssertionError("a def job waited for an event loop")


class _AwaitedContext:
    """A `Context` whose steps can be awaited and whose loops are for `async for`."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)

    async def step(self, name: str, fn: Any = None, *args: object, **options: Any) -> Any:
        if inspect.iscoroutinefunction(fn):
            fn = _plain_step(fn)
        return self._ctx.step(name, fn, *args, **options)

    def each(self, name: str, source: Any, **options: Any) -> _AwaitedLoop[Any]:
        return _AwaitedLoop(self._ctx.each(name, source, **options))


class _AwaitedLoop(Generic[T]):
    def __init__(self, loop: Loop[T]) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "_loop":
            super().__setattr__(name, value)
        else:
            setattr(self._loop, name, value)

    def __aiter__(self) -> AsyncIterator[T]:
        return _Items(iter(self._loop))


class _Items(AsyncIterator[T]):
    def __init__(self, items: Iterator[T]) -> None:
        self._items = items

    async def __anext__(self) -> T:
        try:
            return next(self._items)
        except StopIteration:
            raise StopAsyncIteration from None


def _plain_step(fn: Callable[..., Awaitable[T]]) -> Callable[..., T]:
    @functools.wraps(fn)
    def plain(*args: object, **keywords: object) -> T:
        return ended(fn(*args, **keywords))

    return plain
