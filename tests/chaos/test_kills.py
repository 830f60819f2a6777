from __future__ import annotations

import os
import random
from contextlib import nullcontext
from typing import TYPE_CHECKING

from tests.chaos.kills import Figures, torture
from tests.chaos.plan import make_plan

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

LONG = os.environ.get("TRACEDJOBS_CHAOS") == "long"
KILLS = 1000 if LONG else 40


def test_jobs_that_are_killed_at_random_lose_nothing_and_redo_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = os.environ.get("TRACEDJOBS_CHAOS_SEED")
    seeds = random.Random()
    figures = Figures()
    while figures.kills < KILLS:
        seed = int(given) if given else seeds.randrange(10**9)
        folder = tmp_path / f"job{figures.jobs}"
        (folder / "run").mkdir(parents=True, mode=0o700)
        monkeypatch.setenv("TRACEDJOBS_RUN_DIR", str(folder / "run"))
        try:
            torture(folder, seed, figures)
        except BaseException as error:
            error.add_note(f"again: TRACEDJOBS_CHAOS_SEED={seed}\n{make_plan(seed)}\n{figures}")
            raise
        if given:
            break
    with capsys.disabled() if LONG else nullcontext():
        print(f"\n{figures}")  # noqa: T201 - the figures are what the long form is for
