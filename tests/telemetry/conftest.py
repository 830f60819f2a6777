from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.telemetry.test_tracing import Traced
from tracedjobs._core import trace

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    """Telemetry that sends when it is flushed, and not before."""
    made = Traced()
    monkeypatch.setattr(made.tracing.sender, "_start", lambda: None)
    monkeypatch.setattr(trace, "installed", made.tracing)
    yield made
    made.provider.shutdown()
