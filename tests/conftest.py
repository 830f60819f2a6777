"""Fixtures of all tests: stores, runtimes, and jobs of both kinds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, cast

import pytest
from hypothesis import HealthCheck, settings

from tests.both_ways import Flavour, Lab
from tests.processes import Children
from tests.run_directories import own_run_directory
from tests.stores.redis_servers import RedisCluster, RedisServer, running_cluster, running_redis
from tracedjobs import Runtime, events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tracedjobs.events import Event

ON_REDIS_TOO: Final = frozenset(
    {
        "test_context",
        "test_continuation",
        "test_controls",
        "test_handing",
        "test_interrupts",
        "test_items_in_spans",
        "test_leases",
        "test_lost_runs",
        "test_runtime",
        "test_state",
        "test_metrics",
        "test_stalled_jobs",
        "test_steps",
    }
)


# No test is timed: how long an example takes says more of what else the machine does.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
# What pytest-xdist sets is for a terminal; what is written to a pipe is as wide as it likes.
os.environ.pop("COLUMNS", None)


@pytest.fixture(scope="session", autouse=True)
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run directory that the tests share with the processes they start, and with nobody else."""
    directory = tmp_path_factory.mktemp("run")
    directory.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACEDJOBS_RUN_DIR", str(directory))
        yield directory


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A server that the tests share, each under a prefix of its own."""
    with running_redis(appendonly="yes") as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[RedisCluster]:
    """A cluster that the tests share, each under a prefix of its own."""
    with running_cluster() as cluster:
        yield cluster


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the modules that drive what a store does Redis too; all others the embedded stores."""
    if "store_url" in metafunc.fixturenames:
        stores = ["sqlite", "memory"]
        if metafunc.module.__name__.rpartition(".")[2] in ON_REDIS_TOO:
            stores.append("redis")
        metafunc.parametrize("store_url", stores, indirect=True)


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty store, of each kind in turn."""
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        return f"{server.url}?prefix=tj{os.urandom(6).hex()}"
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
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A run directory of the test's own, in which this process has no file yet."""
    with own_run_directory(tmp_path / "run") as directory:
        yield directory


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    """Starts child processes in the test's folder, and leaves none behind."""
    with Children(tmp_path) as made:
        yield made


@pytest.fixture
def told() -> Iterator[list[Event]]:
    """The events of the test, as they come."""
    seen: list[Event] = []
    events.subscribe(seen.append)
    yield seen
    events.unsubscribe(seen.append)
