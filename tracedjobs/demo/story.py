"""The demo from its beginning to its end, told piece by piece to whoever draws it.

It prints nothing and waits for nobody: the command line shows it to people, a test to nobody.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracedjobs import Runtime
from tracedjobs.demo.acts import JOB_ID, SCRIPT, Act, Pulse, play
from tracedjobs.demo.check import Finding, check
from tracedjobs.demo.data import DemoError, Folder, archive
from tracedjobs.demo.flights import opened
from tracedjobs.demo.witness import Testimony, agreement, hear, listening

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["Opening", "Verdict", "tell"]


@dataclass(frozen=True, slots=True)
class Opening:
    """The file is there and the first run is about to start; its size in bytes."""

    size: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The runs, what was checked at the end, and the seconds from the first run to here."""

    acts: tuple[Act, ...]
    findings: tuple[Finding, ...]
    seconds: float
    told: Testimony | None = None
    """What telemetry says; `None` where OTLP is not installed."""

    @property
    def ok(self) -> bool:
        """Whether every figure is as promised."""
        return all(finding.ok for finding in self.findings)


def tell(
    folder: Folder,
    *,
    rows: int | None = None,
    between: Callable[[Act], object] = lambda _act: None,
) -> Generator[Opening | Pulse | Act | Verdict]:
    """Do it all, and tell each piece as it happens.

    - `rows`: import so many rows, instead of all.
    - `between`: called after each act, as by a test that damages something.

    Raises `MissingExtraError` when there are no flights to import, `DemoError` when the folder is
    not the demo's, and `RunFailedError` when a run does not go as the script says. Closing the
    generator in the middle interrupts the run gracefully; it can be resumed by hand.
    """
    archive()
    _refuse_second(folder)
    folder.clear()
    size = folder.extract(rows)
    opened(str(folder.database)).close()
    yield Opening(size)
    began = time.monotonic()
    acts: list[Act] = []
    told: Testimony | None = None
    with listening() as (receiver, environment):
        for run, ending in enumerate(SCRIPT, start=1):
            act = yield from play(folder, run, ending, size, environment)
            acts.append(act)
            yield act
            between(act)
        seconds = time.monotonic() - began
        with closing(Runtime(folder.store)) as runtime:
            job = runtime.get(JOB_ID)
            findings = check(folder, acts, job)
            if receiver is not None:
                told = hear(receiver, runtime, job.trace_id)
                findings += agreement(told, acts[-1].after.rows, sum(act.redone for act in acts))
    yield Verdict(tuple(acts), tuple(findings), seconds, told)


def _refuse_second(folder: Folder) -> None:
    if not folder.store_path.exists():
        return
    with closing(Runtime(folder.store)) as runtime:
        running = [job for job in runtime.list(status="running") if not job.lost]
    if running:
        msg = (
            f"A run of the demo is at work in {folder.path} ({running[0].worker}); wait for it, "
            f"stop it, or take another folder: --folder NAME."
        )
        raise DemoError(msg)
