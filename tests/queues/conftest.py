"""Each queue with each kind of its workers, for the conformance suite."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest

from tests.postgres import postgres_for_tests
from tests.queues.harness import Kind, Place
from tests.queues.on_celery import OnCelery
from tests.queues.on_dramatiq import OnDramatiq
from tests.queues.on_huey import OnHuey
from tests.queues.on_procrastinate import OnProcrastinate, database, template
from tests.queues.on_rq import OnRQ, empty_database
from tests.queues.on_taskiq import OnTaskiq
from tests.rabbit import INSTALLING, RabbitServer, rabbit_for_tests

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
    "celery prefork-rabbitmq",
    "dramatiq processes",
    "dramatiq threads",
    "dramatiq threads-rabbitmq",
    "rq fork",
    "rq spawn",
    "rq simple",
    "taskiq list",
    "taskiq stream",
)


@pytest.fixture(scope="session")
def rabbit_server() -> Iterator[RabbitServer]:
    """A node that the tests share, one at a time."""
    yield from rabbit_for_tests()


def on_rabbit(request: pytest.FixtureRequest) -> str:
    """The address of a broker that has no messages."""
    server = request.getfixturevalue("rabbit_server")
    assert isinstance(server, RabbitServer)
    server.forget("imports", "imports.DQ", "imports.XQ")
    return server.url


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
    workers, _, broker = workers.partition("-")
    rabbit = on_rabbit(request) if broker else None
    server = request.getfixturevalue("redis_server")
    if queue == "taskiq":
        return OnTaskiq(workers, server.url.removesuffix("/0") + "/6")
    if queue == "rq":
        scheduler = ("--with-scheduler",) if workers == "fork" else ()
        return OnRQ(workers, empty_database(server.url), options=scheduler)
    made = OnCelery if queue == "celery" else OnDramatiq
    return made(workers, server.url, f"tj{os.urandom(4).hex()}", rabbit)


SERVER_MAY_BE_INSTALLED: Final = pytest.mark.timeout(INSTALLING)


@pytest.fixture(
    params=[
        pytest.param(name, marks=SERVER_MAY_BE_INSTALLED if name.endswith("rabbitmq") else ())
        for name in KINDS
    ]
)
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


@pytest.fixture
def taskiq_on_redis(request: pytest.FixtureRequest) -> OnTaskiq:
    """Taskiq on lists of a broker of the test's own."""
    kind = kind_of("taskiq list", request)
    assert isinstance(kind, OnTaskiq)
    return kind


@pytest.fixture
def rq_on_redis(request: pytest.FixtureRequest) -> OnRQ:
    """RQ's forking worker on a database of the test's own."""
    kind = kind_of("rq fork", request)
    assert isinstance(kind, OnRQ)
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
