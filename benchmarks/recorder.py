"""What the flight recorder takes in memory: its mapped file, and the objects that write to it."""

from __future__ import annotations

import gc
import tracemalloc
from typing import TYPE_CHECKING

from benchmarks.harness import Figure, Plan, runtime
from tracedjobs import Context, job
from tracedjobs._core import owner
from tracedjobs._core.cell_layout import AHEAD, EMPTY, private_numbers
from tracedjobs._core.flight_recorder import take_cell
from tracedjobs._core.records import Position

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["measure"]

_MIB = 1024 * 1024


@job
def _one_item(ctx: Context) -> None:
    for _ in ctx.each("items", range(1)):
        pass


def measure(plan: Plan) -> Iterator[Figure]:
    """Memory of that many runs' cells, all taken at once, as loops over integer pairs have them."""
    n = plan.size(1_000, 5)
    with runtime() as here:
        here.perform(here.submit(_one_item))  # so that the file is there
        rounds = [_objects(n) for _ in range(plan.rounds_or(3))]
        mapped = owner.held_path().stat().st_size
    yield Figure(
        what=f"memory of the flight recorder, {n:,} runs in one process",
        goal=1.0,
        rounds=[(mapped + objects) / _MIB for objects in rounds],
        unit=" MiB",
        measured={
            "file": f"{mapped / 1024:.0f} KiB",
            "objects": f"{min(rounds) / 1024:.0f} KiB",
        },
    )


def _numbers() -> memoryview:
    numbers = private_numbers()
    numbers[AHEAD] = EMPTY
    return numbers


def _objects(n: int) -> int:
    """Bytes of the objects, the list of free cells included that the process keeps afterwards."""
    gc.collect()
    tracemalloc.start()
    try:
        cells = [take_cell(f"job {number}", "token") for number in range(n)]
        for cell in cells:
            cell.open_step(Position("items"), _numbers())
            cell.slots()
        bytes_now, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    for cell in cells:
        cell.free()
    return bytes_now
