"""Jobs whose processes are killed at a known item, and what is found of them then."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from tracedjobs import AsyncContext, Context, Job, Runtime, Step, job
from tracedjobs._core import owner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tracedjobs._core.records import Stored
    from tracedjobs._core.takeover import Takeover

KINDS: Final = ("range", "part of a range", "list", "tuple", "pairs", "set", "advance")
SIZE: Final = 12
AT: Final = 7
"""The item at which the process of a run is killed, which is then done again."""


def pairs(cursor: Any) -> Iterator[tuple[int, int]]:
    for at in range(cursor or 0, SIZE):
        yield at, at + 1


SOURCES: Final[dict[str, Any]] = {
    "range": range(SIZE),
    "part of a range": range(20, 20 + 2 * SIZE, 2),
    "list": list(range(SIZE)),
    "tuple": tuple(range(SIZE)),
    "pairs": pairs,
}
done: list[int] = []


def do(item: int, *, deadly: bool) -> None:
    if deadly and len(done) == AT:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(item)


@job(name="takeover", checkpoint_every=1000)
def taken(ctx: Context, kind: str) -> list[int]:
    """Is killed in its first run; what it did in this one."""
    done.clear()
    if kind in SOURCES:
        for item in ctx.each("items", SOURCES[kind]):
            do(item, deadly=ctx.run == 1)
        return [*done]

    def by_hand(step: Step) -> None:
        for item in range(step.cursor, SIZE):
            do(item, deadly=ctx.run == 1)
            if kind == "set":
                step.set(item + 1)
            else:
                step.advance()

    ctx.step("items", by_hand, start=0)
    return [*done]


@job(name="takeover-async", checkpoint_every=1000)
async def taken_async(ctx: AsyncContext, kind: str) -> list[int]:
    """The same."""
    done.clear()
    if kind in SOURCES:
        async for item in ctx.each("items", SOURCES[kind]):
            do(item, deadly=ctx.run == 1)
        return [*done]

    async def by_hand(step: Step) -> None:
        for item in range(step.cursor, SIZE):
            do(item, deadly=ctx.run == 1)
            await (step.set(item + 1) if kind == "set" else step.advance())

    await ctx.step("items", by_hand, start=0)
    return [*done]


def perform(runtime: Runtime, job_id: str) -> Any:
    if runtime.get(job_id).name.endswith("async"):
        return asyncio.run(runtime.perform_async(job_id)).result
    return runtime.perform(job_id).result


def die(runtime: Runtime, job_id: str) -> None:
    """Perform the job in a process, which it kills."""
    child = os.fork()
    if child == 0:
        try:
            perform(runtime, job_id)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def wrecked(runtime: Runtime, kind: str = "range", function: Job[..., Any] = taken) -> str:
    """A job whose process was killed when seven items were done, none of them saved."""
    job_id = runtime.submit(function, kind)
    die(runtime, job_id)
    return job_id


def loaded(runtime: Runtime, job_id: str) -> Stored:
    stored = runtime.store.load(job_id)
    assert stored is not None
    return stored


def file_of(runtime: Runtime, job_id: str) -> Path:
    name = loaded(runtime, job_id).job.owner
    assert name is not None
    return owner.lock_path(name)


def at(found: Takeover) -> tuple[str, int] | None:
    return None if found.position is None else (found.position.cursor, found.position.items)


def changed(stored: Stored, **columns: Any) -> Stored:
    return stored._replace(job=replace(stored.job, **columns))
