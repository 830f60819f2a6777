"""What a step of a job with 1,000 of them costs over a bare commit, at the start and at the end."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import TYPE_CHECKING, cast

from benchmarks.harness import (
    Figure,
    Plan,
    bare_update,
    interleaved,
    ratios,
    runtime,
    shown_each,
    wall,
)
from tracedjobs import Context, job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tracedjobs import Runtime

__all__ = ["measure", "steps_timed"]


@job
def steps_timed(ctx: Context, n: int) -> list[float]:
    took: list[float] = []
    for number in range(n):
        name = f"step {number}"
        began = wall()
        ctx.step(name, _nothing)
        took.append(wall() - began)
    return took


def _nothing() -> None:
    pass


def measure(plan: Plan) -> Iterator[Figure]:
    """The median step, and the last hundred over the first hundred."""
    n = plan.size(1_000, 20)
    part = n // 10
    first: list[float] = []
    last: list[float] = []
    with runtime() as here, bare_update("FULL") as update:
        found = interleaved(
            plan.rounds_or(7),
            {
                "bare": partial(_updates, update, n),
                "step": partial(_performed, here, n, part, first, last),
            },
        )
    yield Figure(
        what="a step of 1,000, over a bare commit",
        goal=3.0,
        rounds=ratios(found["step"], found["bare"]),
        measured=shown_each({"ours": found["step"], "bare UPDATE": found["bare"]}),
    )
    yield Figure(
        what="the last 100 of 1,000 steps, over the first 100",
        goal=1.25,
        rounds=ratios(last, first),
        measured=shown_each({"first": first, "last": last}),
    )


def _updates(update: Callable[[], None], n: int) -> float:
    took: list[float] = []
    for _ in range(n):
        began = wall()
        update()
        took.append(wall() - began)
    return median(took)


def _performed(here: Runtime, n: int, part: int, first: list[float], last: list[float]) -> float:
    took = cast("list[float]", here.perform(here.submit(steps_timed, n)).result)
    first.append(median(took[:part]))
    last.append(median(took[-part:]))
    return median(took)
