"""Each queue with each kind of its workers, for the conformance suite."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest

from tests.queues.harness import Kind, Place
from tests.queues.on_celery import OnCelery
from tests.queues.on_huey import OnHuey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KINDS: Final = (
    "huey threads",
    "huey processes",
    "celery prefork",
    "celery threads",
    "celery solo",
)


def kind_of(name: str, request: pytest.FixtureRequest) -> Kind:
    """The queue and the workers of that name."""
    queue, workers = name.split(" ")
    if queue == "huey":
        return OnHuey(workers)
    server = request.getfixturevalue("redis_server")
    return OnCelery(workers, server.url, f"tj{os.urandom(4).hex()}")


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An application on each queue in turn."""
    name = f"app_{os.urandom(4).hex()}"
    made = Place(kind_of(request.param, request), tmp_path, name, f"sqlite:///{tmp_path}/jobs.db")
    yield made
    made.close()
