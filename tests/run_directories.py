"""A run directory of a test's own, in which this process has no file yet."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tracedjobs._core import flight_recorder, owner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["own_run_directory"]


@contextmanager
def own_run_directory(directory: Path) -> Iterator[Path]:
    """Let this process take its file there, and give it back its old one afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACEDJOBS_RUN_DIR", str(directory))
        patch.setattr(owner, "_held", None)
        patch.setattr(owner, "_warned", False)
        patch.setattr(flight_recorder, "_file", None)
        patch.setattr(flight_recorder, "_off", None)
        patch.setattr(flight_recorder, "_kept", {})
        yield directory
        if owner._held is not None:
            os.close(owner._held[1])
        if flight_recorder._file is not None:
            flight_recorder._file.close()
