"""Words to arguments, by annotations."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from pathlib import Path  # noqa: TC003 - read when the test runs
from typing import Any, Literal

import pytest

from tracedjobs._core.job import Job
from tracedjobs._core.options import JobOptions
from tracedjobs.cli.arguments import converted
from tracedjobs.cli.options import Refused


def bare(ctx, a, b="x"): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 - as people write them


def numbers(ctx: object, whole: int, part: float = 0.5, flag: bool = False) -> None: ...  # noqa: FBT001, FBT002 - what is tested


def others(
    ctx: object,
    path: Path,
    day: date | None = None,
    *,
    price: Decimal = Decimal(0),
    at: datetime | None = None,
    mode: Literal["fast", "slow", 3] = "fast",
    ids: list[int] | None = None,
    extra: dict[str, object] | None = None,
    either: int | str = 0,
) -> None: ...


def rest(ctx: object, first: str, *more: int) -> None: ...


def sets(ctx: object, names: set[str]) -> None: ...


def job_of(function: Any) -> Job[..., Any]:
    return Job(function, "m:f", JobOptions())


@pytest.mark.parametrize(
    ("function", "words", "expected"),
    [
        (bare, ["1"], (["1"], {})),
        (bare, ["a=1", "b=y=z"], ([], {"a": "1", "b": "y=z"})),
        (bare, ["c=1", "ctx=2"], (["c=1", "ctx=2"], {})),
        (numbers, ["-3", "1e3", "YES"], ([-3, 1000.0, True], {})),
        (numbers, ["3", "flag=off"], ([3], {"flag": False})),
        (others, ["a/b.csv"], (["a/b.csv"], {})),
        (others, ["x", "2026-03-01"], (["x", date(2026, 3, 1)], {})),
        (others, ["x", "price=1.20"], (["x"], {"price": Decimal("1.20")})),
        (others, ["x", "at=2026-03-01T10:00"], (["x"], {"at": datetime(2026, 3, 1, 10)})),  # noqa: DTZ001 - naive, as typed
        (others, ["x", "mode=3"], (["x"], {"mode": 3})),
        (others, ["x", "ids=[1, 2]"], (["x"], {"ids": [1, 2]})),
        (others, ["x", 'extra={"a": 1}'], (["x"], {"extra": {"a": 1}})),
        (others, ["x", "either=7"], (["x"], {"either": 7})),
        (others, ["x", "either=y"], (["x"], {"either": "y"})),
        (rest, ["a", "1", "2"], (["a", 1, 2], {})),
    ],
)
def test_words_are_converted_by_the_annotations(
    function: Any, words: list[str], expected: tuple[list[object], dict[str, object]]
) -> None:
    found = converted(job_of(function), words)
    assert found == expected
    assert [type(each) for each in found[0]] == [type(each) for each in expected[0]]


@pytest.mark.parametrize(
    ("function", "words", "said"),
    [
        (numbers, ["x"], "The argument whole must be an int; found 'x'."),
        (numbers, ["1", "2", "maybe"], "The argument flag must be a bool (true or false); found"),
        (numbers, [], "missing a required argument: 'whole'. m:f takes: WHOLE [part=0.5] [flag="),
        (numbers, ["1", "1", "1", "1"], "'1' is one argument too many. m:f takes: WHOLE"),
        (numbers, ["whole=1", "whole=2"], "The argument whole is given twice."),
        (numbers, ["1", "whole=2"], "multiple values for argument 'whole'"),
        (
            others,
            ["x", "soon"],
            "The argument day must be a date such as 2026-03-01; found 'soon'.",
        ),
        (others, ["x", "mode=4"], "The argument mode must be 'fast' or 'slow' or 3; found '4'."),
        (others, ["x", "ids={}"], "must be a JSON list such as [\"a\", 1]; found '{}'."),
        (others, ["x", "price=a"], "The argument price must be a decimal number; found 'a'."),
        (sets, ["x"], "The argument names must be a set, which only Python code can give"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    function: Any, words: list[str], said: str
) -> None:
    with pytest.raises(Refused) as refused:
        converted(job_of(function), words)
    assert said in refused.value.message
