"""The folder in which commands are typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.typed import Desk

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)
