"""What an item costs that is saved before the next one starts, over a bare `UPDATE` of one row.

`checkpoint_every=0` promises that; the peer is a step of DBOS Transact, which is durable too.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from benchmarks.dbos_peer import dbos_steps
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

__all__ = ["measure"]


@job(checkpoint_every=0)
def _durable(ctx: Context, n: int) -> float:
    began = wall()
    for _ in ctx.each("items", range(n)):
        pass
    return wall() - began


def measure(plan: Plan) -> Iterator[Figure]:
    """The cost of a durable item, with each of the two settings of SQLite."""
    for synchronous in ("FULL", "NORMAL"):
        n = plan.size(500 if synchronous == "FULL" else 3_000, 20)
        with (
            runtime(f"?synchronous={synchronous.lower()}") as here,
            bare_update(synchronous) as update,
        ):
            contestants: dict[str, Callable[[], float]] = {
                "bare": partial(_updates, update, n),
                "durable": partial(_performed, here, n),
            }
            found = interleaved(plan.rounds_or(15), contestants)
        measured = shown_each(
            {"ours": found["durable"], "bare UPDATE": found["bare"]}, n, "an item"
        )
        if synchronous == "FULL" and not plan.tiny and find_spec("dbos") is not None:
            measured |= dbos_steps(plan.size(200, 5), found["bare"], n)
        yield Figure(
            what=f"an item saved durably, {synchronous}, over a bare UPDATE",
            goal=1.5,
            rounds=ratios(found["durable"], found["bare"]),
            measured=measured,
        )


def _updates(update: Callable[[], None], n: int) -> float:
    began = wall()
    for _ in range(n):
        update()
    return wall() - began


def _performed(here: Runtime, n: int) -> float:
    return float(str(here.perform(here.submit(_durable, n)).result))
