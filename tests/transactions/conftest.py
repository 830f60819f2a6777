"""Fixtures of the tests of transactions: a server for the session, a database for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from tests.both_ways import Lab
from tests.postgres import postgres_for_tests
from tests.transactions.databases import KINDS, Database, Kind, Server
from tracedjobs import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL that the session shares."""
    yield from postgres_for_tests()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Every kind of connection in turn."""
    return cast("Kind", request.param)


@pytest.fixture
def database(kind: Kind, tmp_path: Path, request: pytest.FixtureRequest) -> Database:
    """An empty database of that kind."""
    return made_database(kind.server, tmp_path, request)


@pytest.fixture
def sqlite(tmp_path: Path, request: pytest.FixtureRequest) -> Database:
    """An empty SQLite database."""
    return made_database("sqlite", tmp_path, request)


@pytest.fixture
def postgresql(tmp_path: Path, request: pytest.FixtureRequest) -> Database:
    """An empty PostgreSQL database."""
    return made_database("postgresql", tmp_path, request)


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """A runtime with a store of its own, which knows nothing of the user's database."""
    with Runtime("memory://", handle_signals=False) as made:
        yield made


@pytest.fixture
def lab(kind: Kind, runtime: Runtime) -> Lab:
    """Runs jobs of the flavour that the connection is for."""
    return Lab(runtime, kind.flavour)


def made_database(server: Server, folder: Path, request: pytest.FixtureRequest) -> Database:
    """An empty database of that server."""
    if server == "sqlite":
        database = Database("sqlite", str(folder / "app.db"))
    else:
        database = Database("postgresql", request.getfixturevalue("postgres"))
    database.make()
    return database
