"""Processes that are killed and frozen at random moments: each item is there exactly once."""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.processes import PATIENCE, Child, until
from tests.transactions.conftest import made_database
from tests.transactions.worker import fill
from tracedjobs import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.transactions.databases import Database, Server

LONG: Final = os.environ.get("TRACEDJOBS_CHAOS") == "long"
KILLS: Final = {"sqlite": 500, "postgresql": 300} if LONG else {"sqlite": 15, "postgresql": 10}
FREEZES: Final = 50 if LONG else 2
LEASE: Final = 0.6


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str, str, float], Child]]:
    """Starts workers, and leaves none behind."""
    children: list[Child] = []

    def started(store: str, job_id: str, lease_ttl: float) -> Child:
        command = [sys.executable, "-m", "tests.transactions.worker"]
        root = str(Path(__file__).parents[2])
        children.append(
            Child(
                [*command, store, job_id, str(lease_ttl)],
                {**os.environ, "PYTHONPATH": root},
                tmp_path,
                f"worker{len(children)}",
            )
        )
        return children[-1]

    yield started
    for child in children:
        if child.process.poll() is None:
            child.process.kill()
        child.process.wait(PATIENCE)


@pytest.mark.parametrize("server", ["sqlite", "postgresql"])
def test_killed_at_random_moments_each_item_is_there_once(
    server: Server,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    start: Callable[[str, str, float], Child],
) -> None:
    database, seed = made_database(server, tmp_path, request), random.randrange(10**9)
    moments, items = random.Random(seed), 60 * KILLS[server]
    store = f"sqlite:///{tmp_path}/jobs.db"
    with Runtime(store) as runtime:
        job_id = runtime.submit(fill, server, database.address, items)
        for _ in range(KILLS[server]):
            child = start(store, job_id, 30.0)
            spoken(child)
            time.sleep(moments.uniform(0, 0.03))
            child.process.kill()
            child.process.wait(PATIENCE)
            assert_once(database, seed)
            if runtime.get(job_id).status == "completed":
                break
        else:
            start(store, job_id, 30.0).ends()
        assert runtime.get(job_id).status == "completed"
    assert database.items == list(range(2 * items + 1)), f"seed {seed}"


@pytest.mark.parametrize("server", ["sqlite", "postgresql"])
def test_frozen_at_a_random_moment_and_taken_over_it_commits_nothing_more(
    server: Server,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    start: Callable[[str, str, float], Child],
) -> None:
    database, seed = made_database(server, tmp_path, request), random.randrange(10**9)
    moments, items = random.Random(seed), 400
    for round_ in range(FREEZES):
        database.make()
        store = f"sqlite:///{tmp_path}/jobs{round_}.db"
        with Runtime(store, lease_ttl=LEASE, handle_signals=False) as runtime:
            job_id = runtime.submit(fill, server, database.address, items)
            old = start(store, job_id, LEASE)
            spoken(old)
            time.sleep(moments.uniform(0, 0.05))
            old.stop()
            lease_ended(runtime, job_id)
            new = start(store, job_id, LEASE)
            spoken(new)  # or could not begin
            old.cont()
            told = old.ends()
            assert "lease lost" in told, (told, new.text())
            new.ends()
            if "database_locked" in new.text():
                # It was frozen with a lock in its hand: the job waited for another run.
                assert runtime.perform(job_id).ok
        assert database.items == list(range(2 * items + 1)), f"seed {seed}"


def spoken(child: Child) -> None:
    """Wait until it says anything, such as that it has an item in hand."""

    def spoke() -> bool:
        assert child.process.poll() in {None, 0}, child.text()
        return bool(child.text())

    until(spoke, "a word of the worker")


def lease_ended(runtime: Runtime, job_id: str) -> None:
    """Wait until another run may take the job over."""
    until(lambda: runtime.get(job_id).lost, "the end of the lease")


def assert_once(database: Database, seed: int) -> None:
    """No number twice, none left out before the last."""
    items = database.items
    assert items == list(range(len(items))), f"seed {seed}"
