from __future__ import annotations

import os
import random
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.chaos.redis_checks import SINCE_SNAPSHOT, UNWRITTEN, check_fleet, check_keys
from tests.chaos.redis_fleet import Fleet, Form
from tests.stores.redis_servers import running_redis
from tests.telemetry.scrapes import check_conserved, scraped

if TYPE_CHECKING:
    from pathlib import Path

LONG = os.environ.get("TRACEDJOBS_CHAOS") == "long"
SHORT_FORM = Form()
LONG_FORM = Form(
    workers=20,
    jobs=200,
    kills=1000,
    freezes=60,
    rolling=10,
    stops=8,
    crashes=8,
    silences=12,
    lease_ttl=3.0,
)


@pytest.mark.timeout(3600 if LONG else 120)
@pytest.mark.parametrize("persistence", ["log", "snapshots"])
def test_a_fleet_on_one_redis_loses_nothing_and_has_one_writer_a_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], persistence: str
) -> None:
    seed = int(os.environ.get("TRACEDJOBS_CHAOS_SEED", random.randrange(10**9)))
    form = LONG_FORM if LONG else SHORT_FORM
    settings, unwritten = {"appendonly": "yes", "appendfsync": "everysec"}, UNWRITTEN
    if persistence == "snapshots":  # seconds of what was acknowledged are gone at each crash
        settings, unwritten = {"save": "1 1"}, SINCE_SNAPSHOT
        few = {"stops": 0, "silences": 0, "rolling": 0, "freezes": form.freezes // 4}
        form = replace(form, jobs=form.jobs // 3, kills=form.kills // 8, crashes=3, **few)
    with running_redis(**settings) as server:
        fleet = Fleet(tmp_path, server, form, seed)
        try:
            fleet.run()
            began = time.monotonic()
            figures = check_fleet(fleet, tmp_path / "log", form.lease_ttl, unwritten=unwritten)
            check_keys(fleet, server)
            check_conserved(scraped(fleet.runtime), map(fleet.runtime.get, fleet.jobs))
        except BaseException as error:
            error.add_note(f"again: TRACEDJOBS_CHAOS_SEED={seed}\n{fleet.history.outages}")
            raise
        finally:
            fleet.runtime.close()
    told = fleet.errors.splitlines()
    assert [line for line in told if "writes snapshots alone" not in line] == []
    assert fleet.history.scrapes > 0
    with capsys.disabled() if LONG else nullcontext():
        print(  # noqa: T201 - the figures are what the long form is for
            f"\n{len(fleet.history.kills)} kills, {fleet.history.terms} SIGTERMs, "
            f"{len(fleet.history.freezes)} freezes, {len(fleet.history.outages)} outages in "
            f"{fleet.history.seconds:.0f} s; {figures}; checked in {time.monotonic() - began:.1f} s"
        )
