"""Each queue with each kind of its workers, for the conformance suite."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest

from tests.postgres import postgres_for_tests
from tests.queues.harness import Kind, Place
from tests.queues.on_celery import OnCelery
from tests.queues.on_huey import OnHuey
from tests.queues.on_procrastinate import OnProcrastinate, database, template

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KINDS: Final = (
    "huey threads",
    "huey processes",
    "celery prefork",
    "celery threads",
    "celery solo",
    "procrastinate threads",
)


@pytest.fixture
def place_of(tmp_path: Path) -> Iterator[Callable[[Kind], Place]]:
    """Makes an application on that queue."""
    made: list[Place] = []

    def make(kind: Kind) -> Place:
        name = f"app_{os.urandom(4).hex()}"
        made.append(Place(kind, tmp_path, name, f"sqlite:///{tmp_path}/jobs.db"))
        return made[-1]

    yield make
    for each in made:
        each.close()


def kind_of(name: str, request: pytest.FixtureRequest) -> Kind:
    """The queue and the workers of that name."""
    queue, workers = name.split(" ")
    if queue == "huey":
        return OnHuey(workers)
    if queue == "procrastinate":
        kind: OnProcrastinate = request.getfixturevalue("procrastinate")
        return kind
    server = request.getfixturevalue("redis_server")
    return OnCelery(workers, server.url, f"tj{os.urandom(4).hex()}")


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Place:
    """An application on each queue in turn."""
    kind = kind_of(request.param, request)  # before its workers, so that it is there until they end
    place: Place = request.getfixturevalue("place_of")(kind)
    return place


@pytest.fixture
def celery_on_redis(request: pytest.FixtureRequest) -> OnCelery:
    """Celery's prefork pool on a broker of the test's own."""
    kind = kind_of("celery prefork", request)
    assert isinstance(kind, OnCelery)
    return kind


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL that the session shares."""
    yield from postgres_for_tests()


@pytest.fixture(scope="session")
def procrastinate_schema(postgres: str) -> str:
    """The address of a database that is copied for each test."""
    return template(postgres)


@pytest.fixture
def procrastinate(postgres: str, procrastinate_schema: str) -> Iterator[OnProcrastinate]:
    """Procrastinate on a database of the test's own."""
    with database(postgres, procrastinate_schema) as address:
        made = OnProcrastinate(address)
        yield made
        made.close()
