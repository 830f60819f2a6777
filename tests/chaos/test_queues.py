from __future__ import annotations

import os
import random
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

import pytest

from tests.chaos.queue_checks import check
from tests.chaos.queue_fleet import LEASE, MORE, Fleet, Form
from tests.queues.conftest import kind_of
from tests.queues.harness import Place
from tests.queues.test_conformance import MAIN

if TYPE_CHECKING:
    from pathlib import Path

LONG: Final = os.environ.get("TRACEDJOBS_CHAOS") == "long"
SHORT_FORM: Final = Form()
LONG_FORM: Final = Form(
    workers=3,
    jobs=200,
    rolling=20,
    restarts=0,
    kills=20,
    items=400,
    pace=0.02,
    pause=0.5,
    soon=0.5,
)
SOME: Final = ("huey threads", "celery prefork")
"""In the short form: the one that loses the messages of killed workers, and one that keeps them."""


@pytest.mark.timeout(1800 if LONG else 120)
@pytest.mark.parametrize("queue", MAIN if LONG else SOME)
def test_a_fleet_that_is_restarted_and_killed_loses_nothing_and_does_nothing_twice(
    queue: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed = int(os.environ.get("TRACEDJOBS_CHAOS_SEED", random.randrange(10**9)))
    kind = kind_of(queue, request)
    kind.more += MORE
    name = f"fleet_{os.urandom(4).hex()}"
    place = Place(kind, tmp_path, name, f"sqlite:///{tmp_path}/jobs.db", LEASE)
    fleet = Fleet(place, LONG_FORM if LONG else SHORT_FORM, seed)
    try:
        fleet.run()
        figures = check(place, fleet)
    except BaseException as error:
        error.add_note(f"again: TRACEDJOBS_CHAOS_SEED={seed}")
        raise
    finally:
        place.close()
    assert figures.redone <= figures.killed_runs
    assert figures.latency <= (1.0 if LONG else 5.0)
    with capsys.disabled() if LONG else nullcontext():
        print(  # noqa: T201 - the figures are what the long form is for
            f"\n{queue}: {len(fleet.history.kills)} kills, {len(fleet.history.restarts)} restarts "
            f"in {fleet.history.seconds:.0f} s; {figures}"
        )
