"""What importing the library costs, over what it needs of the standard library anyway."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import tracedjobs
from benchmarks.harness import Figure, Plan, interleaved, ratios, shown_each

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["measure"]

_BASE: Final = "import json, sqlite3, dataclasses, threading"
_BARE: Final = "import tracedjobs"
_USED: Final = "from tracedjobs import job, Runtime"
_CHILD: Final = """
import sys, time
sys.path.append(sys.argv[1])
began = time.process_time()
{statement}
print(time.process_time() - began)
telemetry = ("opentelemetry", "prometheus_client", "structlog", "redis", "google", "grpc")
print(",".join(name for name in telemetry if name in sys.modules))
"""


def measure(plan: Plan) -> Iterator[Figure]:
    """The import of the package, and of what a job and a worker need of it."""
    for statement in (_BASE, _BARE, _USED):
        _child(statement)  # so that all of them are compiled
    found = interleaved(
        plan.rounds_or(21),
        {
            statement: partial(lambda statement: _child(statement)[0], statement)
            for statement in (_BASE, _BARE, _USED)
        },
    )
    for statement, goal in ((_BARE, 3.0), (_USED, 4.0)):
        yield Figure(
            what=f"`{statement}`, over `{_BASE}`",
            goal=goal,
            rounds=ratios(found[statement], found[_BASE]),
            measured=shown_each({"ours": found[statement], "standard library": found[_BASE]}),
        )
    loaded = _child(_USED)[1]
    yield Figure(
        what=f"telemetry packages that `{_USED}` loads",
        goal=0.0,
        rounds=[float(len(loaded))],
        measured={"loaded": ", ".join(loaded) or "none"},
    )


def _child(statement: str) -> tuple[float, list[str]]:
    child = subprocess.run(
        [sys.executable, "-I", "-c", _CHILD.format(statement=statement), _folder()],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    seconds, loaded = child.stdout.split("\n")[:2]
    return float(seconds), [name for name in loaded.split(",") if name]


def _folder() -> str:
    return str(Path(tracedjobs.__file__).parent.parent)
