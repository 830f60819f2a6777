"""Fixtures of all tests: stores, runtimes, and jobs of both kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from tests.both_ways import Flavour, Lab
from tracedjobs import Runtime, events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tracedjobs.events import Event


@pytest.fixture(scope="session", autouse=True)
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run directory that the tests share with the processes they start, and with nobody else."""
    directory = tmp_path_factory.mktemp("run")
    directory.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACEDJOBS_RUN_DIR", str(directory))
        yield directory


@pytest.fixture(params=["sqlite", "memory"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty store, of each embedded kind in turn."""
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def runtime(store_url: str) -> Iterator[Runtime]:
    """A runtime on `store_url`."""
    with Runtime(store_url) as made:
        yield made


@pytest.fixture(params=["def", "async def"])
def lab(request: pytest.FixtureRequest, runtime: Runtime) -> Lab:
    """Runs jobs on `runtime`, those of either kind in turn."""
    return Lab(runtime, cast("Flavour", request.param))


@pytest.fixture
def told() -> Iterator[list[Event]]:
    """The events of the test, as they come."""
    seen: list[Event] = []
    events.subscribe(seen.append)
    yield seen
    events.unsubscribe(seen.append)
