"""The benchmarks run, at a tiny size: what they measure is not a test's business."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from benchmarks.__main__ import BENCHMARKS, figures, main
from benchmarks.harness import Figure, Plan, interleaved

if TYPE_CHECKING:
    from pathlib import Path

PEERS = {"loops": "tqdm"}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_yields_figures_that_are_finite(name: str) -> None:
    if name in PEERS and find_spec(PEERS[name]) is None:
        pytest.skip(f"{PEERS[name]} is in the bench group, which is not installed")
    found = list(figures(name, Plan(tiny=True)))
    assert found
    for figure in found:
        assert math.isfinite(figure.figure), figure
        assert figure.figure >= 0, figure
        assert figure.measured, figure


def test_contestants_take_turns_and_the_order_is_reversed_each_round() -> None:
    turns: list[str] = []

    def contestant(name: str) -> float:
        turns.append(name)
        return float(len(turns))

    found = interleaved(2, {"a": lambda: contestant("a"), "b": lambda: contestant("b")})
    assert turns == ["a", "b", "b", "a"]
    assert found == {"a": [1.0, 4.0], "b": [2.0, 3.0]}


def test_a_missed_goal_shows_in_the_table_the_file_and_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = Figure("something slow", goal=1.0, rounds=[3.0, 2.0, 9.0], measured={"ours": "3 s"})
    monkeypatch.setattr("benchmarks.__main__.figures", lambda name, plan: iter([slow]))
    assert main(["csv", "--json", str(tmp_path / "found.json")]) == 1
    assert "something slow" in capsys.readouterr().out
    (written,) = json.loads((tmp_path / "found.json").read_text())["figures"]
    assert (written["figure"], written["met"]) == (3.0, False)
