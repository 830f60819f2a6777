"""The queues' brokers, for the fleets on them."""

from __future__ import annotations

from tests.queues.conftest import (  # noqa: F401 - fixtures
    postgres,
    procrastinate,
    procrastinate_schema,
)
