from __future__ import annotations

import os
import random
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from tests.chaos.agreement import LEASE_TTL, AgreementForm, Fleet
from tests.telemetry.collectors import receiving
from tracedjobs import Runtime
from tracedjobs.telemetry.exporter import Exporter

if TYPE_CHECKING:
    from pathlib import Path

LONG = os.environ.get("TRACEDJOBS_CHAOS") == "long"
LONG_FORM = AgreementForm(jobs=200, workers=6, events=200)


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
@pytest.mark.timeout(3600 if LONG else 180)
def test_show_metrics_and_spans_say_the_same_of_each_job_at_every_moment(
    kind: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed = int(os.environ.get("TRACEDJOBS_CHAOS_SEED", random.randrange(10**9)))
    url = f"sqlite:///{tmp_path}/jobs.db"
    if kind == "redis":
        url = f"{request.getfixturevalue('redis_server').url}?prefix=tj{os.urandom(6).hex()}"
    with (
        receiving("http/protobuf") as (receiver, environment),
        Runtime(url, lease_ttl=LEASE_TTL) as runtime,
        Exporter(runtime, port=0) as exporter,
    ):
        exporter._collector._age = 0.0  # each scrape reads the store
        fleet = Fleet(
            runtime,
            exporter,
            receiver,
            folder=tmp_path,
            environment=environment,
            form=LONG_FORM if LONG else AgreementForm(),
            seed=seed,
        )
        try:
            fleet.run()
        except BaseException as error:
            error.add_note(f"again: TRACEDJOBS_CHAOS_SEED={seed}\n{fleet.figures}\n{fleet.errors}")
            raise
    assert not fleet.errors
    figures = fleet.figures
    assert figures.still > 4
    assert figures.running > 10
    assert figures.lost > 0
    with capsys.disabled() if LONG else nullcontext():
        print(f"\n{kind}, seed {seed}: {figures}")  # noqa: T201 - the figures are what the long form is for
