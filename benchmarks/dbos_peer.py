"""What a durable step of DBOS Transact on SQLite costs, measured in a process of its own.

As it comes: with its own settings of SQLite (a rollback journal, not WAL) and its own threads.
"""

from __future__ import annotations

import subprocess
import sys
from statistics import median
from typing import TYPE_CHECKING, Final

from benchmarks.harness import scratch, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["dbos_steps"]

_CHILD: Final = """
import json, sys, time
from dbos import DBOS

DBOS(config={
    "name": "bench", "system_database_url": "sqlite:///" + sys.argv[1] + "/dbos.sqlite",
    "log_level": "ERROR", "run_admin_server": False,
})

@DBOS.step()
def step(number: int) -> int:
    return number

@DBOS.workflow()
def workflow(steps: int) -> list:
    seconds = []
    for number in range(steps):
        began = time.perf_counter()
        step(number)
        seconds.append(time.perf_counter() - began)
    return seconds

DBOS.launch()
workflow(5)
print(json.dumps(workflow(int(sys.argv[2]))))
DBOS.destroy()
"""


def dbos_steps(steps: int, commits: Sequence[float], n: int) -> dict[str, str]:
    """The median of `steps` of them, and how many commits that is; `n` took `commits`."""
    with scratch() as folder:
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, str(folder), str(steps)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    if child.returncode != 0:
        return {"DBOS": f"failed: {child.stderr.strip().splitlines()[-1:]}"}
    line = next(line for line in child.stdout.splitlines() if line.startswith("["))
    step = median(float(each) for each in line.strip("[]").split(","))
    return {"a DBOS step": f"{shown(step)} ({step / (median(commits) / n):.0f} commits)"}
