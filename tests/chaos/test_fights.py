from __future__ import annotations

import os
import random
from contextlib import nullcontext
from typing import TYPE_CHECKING

from tests.chaos.fights import FightFigures, fight
from tests.chaos.plan import make_plan

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

LONG = os.environ.get("TRACEDJOBS_CHAOS") == "long"
FIGHTS = 100 if LONG else 3


def test_two_processes_that_are_frozen_at_random_never_both_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = os.environ.get("TRACEDJOBS_CHAOS_SEED")
    seeds = random.Random()
    figures = FightFigures()
    while figures.fights < FIGHTS:
        seed = int(given) if given else seeds.randrange(10**9)
        folder = tmp_path / f"fight{figures.fights}"
        for name in ("a", "b"):
            (folder / name / "run").mkdir(parents=True, mode=0o700)
        try:
            fight(folder, seed, figures)
        except BaseException as error:
            error.add_note(f"again: TRACEDJOBS_CHAOS_SEED={seed}\n{make_plan(seed)}\n{figures}")
            raise
        if given:
            break
    with capsys.disabled() if LONG else nullcontext():
        print(f"\n{figures}")  # noqa: T201 - the figures are what the long form is for
