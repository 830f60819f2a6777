"""What is said of a queue's package that is not there, too old, or newer than was tried."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from tracedjobs.queues.versions import check_version, missing

if TYPE_CHECKING:
    import pytest


def test_a_package_that_is_not_there_or_too_old_is_told_with_what_to_install() -> None:
    none = missing("celery", ModuleNotFoundError(name="kombu"))
    assert none == (
        "tracedjobs.queues.celery needs kombu, which is not installed: "
        "pip install 'tracedjobs[celery]'."
    )
    old = missing("rq", ModuleNotFoundError(name="rq.rate_limit"))
    assert old == (
        f"tracedjobs.queues.rq works with rq>=3.0, and rq {version('rq')} is installed: "
        "pip install 'tracedjobs[rq]'."
    )


def test_a_major_version_that_was_not_tried_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert check_version("celery", (5,), "its stop may not be seen")
    assert not caplog.records
    assert not check_version("celery", (6, 7), "its stop may not be seen")
    (said,) = caplog.messages
    assert said == (
        f"celery {version('celery')} is not a version that tracedjobs was tried with (6.x, 7.x): "
        "its stop may not be seen."
    )
