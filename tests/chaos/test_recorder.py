from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.recorder import EVERY, SLACK, Figures

LONG: Final = os.environ.get("TRACEDJOBS_CHAOS") == "long"
REPOSITORY: Final = Path(__file__).resolve().parents[2]


def killed(folder: Path, way: str, kills: int, capsys: pytest.CaptureFixture[str]) -> Figures:
    seed = os.environ.get("TRACEDJOBS_CHAOS_SEED") or str(random.randrange(10**9))
    command = [sys.executable, "-W", "error", "-m", "tests.chaos.recorder"]
    found = subprocess.run(
        [*command, str(folder), way, str(kills), seed],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
        text=True,
    )
    assert found.returncode == 0, f"again: TRACEDJOBS_CHAOS_SEED={seed}\n{found.stderr}"
    with capsys.disabled() if LONG else nullcontext():
        print(f"\n{way}: {found.stdout}")  # noqa: T201 - the figures are what the long form is for
    figures = Figures(**json.loads(found.stdout))
    assert figures.kills >= kills
    assert figures.lost == 0
    return figures


@pytest.mark.timeout(7200 if LONG else 120)
def test_a_killed_process_loses_no_item_and_redoes_the_one_in_hand_at_most(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # What is adopted, and what is reported as done again, is looked at after each kill.
    figures = killed(tmp_path, "kill", 10_000 if LONG else 200, capsys)
    assert figures.most_redone_exact <= 1
    assert figures.redone_exact <= figures.kills
    assert figures.adopted > figures.kills / 10, "few runs were ahead of their last save"


@pytest.mark.parametrize(("way", "kills"), [("power", 20), ("remove", 4)])
def test_without_what_the_recorder_had_no_more_is_redone_than_the_saves_allow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str, kills: int
) -> None:
    figures = killed(tmp_path, way, kills * 25 if LONG else kills, capsys)
    assert figures.adopted == 0
    assert figures.redone > 0
    assert figures.latest <= EVERY + SLACK
