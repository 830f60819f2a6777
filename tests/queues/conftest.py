"""Each queue with each kind of its workers, for the conformance suite."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest

from tests.queues.harness import Kind, Place
from tests.queues.on_celery import OnCelery
from tests.queues.on_huey import OnHuey
from tests.queues.on_taskiq import OnTaskiq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KINDS: Final = (
    "huey threads",
    "huey processes",
    "celery prefork",
    "celery threads",
    "celery solo",
    "taskiq list",
    "taskiq stream",
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
    server = request.getfixturevalue("redis_server")
    if queue == "taskiq":
        return OnTaskiq(workers, server.url.removesuffix("/0") + "/6")
    return OnCelery(workers, server.url, f"tj{os.urandom(4).hex()}")


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, place_of: Callable[[Kind], Place]) -> Place:
    """An application on each queue in turn."""
    return place_of(kind_of(request.param, request))


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
