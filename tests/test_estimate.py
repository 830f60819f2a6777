"""The time left is told from the time in which something was done, and from nothing else."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tracedjobs._core.estimate import HALF_LIFE, Estimator, estimate

if TYPE_CHECKING:
    from collections.abc import Iterable

rates = st.integers(1, 10_000)
spans = st.integers(3, 2_000)


class Feed(NamedTuple):
    done: int
    at: float


def fed(feeds: Iterable[tuple[int, float]], estimator: Estimator | None = None) -> Estimator:
    estimator = estimator or Estimator()
    for done, at in feeds:
        estimator.feed(done, at)
    return estimator


def steady(rate: float, seconds: int, *, done: int = 0, at: float = 0.0) -> list[Feed]:
    """A feed each second."""
    return [Feed(done + int(rate * second), at + second) for second in range(seconds + 1)]


def state(estimator: Estimator) -> list[float]:
    return [float(number) for number in estimator.text().split(" ")]


def same(one: Estimator, other: Estimator) -> bool:
    return state(one) == pytest.approx(state(other), rel=1e-4)


def left(estimator: Estimator, items: int) -> float:
    """The time left of so many items."""
    told = estimator.time_left(0, items)
    assert told is not None
    return told


def test_a_steady_rate_is_told_exactly() -> None:
    estimator = fed(steady(10, 30))

    assert estimator.rate == pytest.approx(10)
    assert estimator.time_left(300, 1300) == pytest.approx(100)
    assert estimator.time_left(1300, 1300) == 0.0


@pytest.mark.parametrize(
    ("feeds", "done", "total"),
    [
        ([], 0, 10),
        ([(5, 0.0)], 5, 10),
        ([(0, 0.0), (5, 0.0)], 5, 10),
        ([(0, 0.0), (5, 1.9)], 5, 10),
        ([(0, 0.0), (0, 60.0)], 0, 10),
        ([(0, 0.0), (5, 60.0)], 5, None),
        ([(0, 0.0), (5, 60.0)], 5, 4),
        ([(0, 0.0), (1, 60.0)], 1, 10**400),
    ],
    ids=[
        "nothing fed",
        "a beginning",
        "items in no time",
        "less than two seconds",
        "no item",
        "no total",
        "over the total",
        "longer than anyone lives",
    ],
)
def test_there_is_no_estimate_from(
    feeds: list[tuple[int, float]], done: int, total: int | None
) -> None:
    assert fed(feeds).time_left(done, total) is None


@given(rate=rates, first=spans, second=spans, pause=st.floats(0, 1e7))
def test_a_pause_between_two_runs_changes_nothing(
    rate: int, first: int, second: int, pause: float
) -> None:
    whole = fed(steady(rate, first + second))

    before = fed(steady(rate, first))
    # the clock of another process, and in the pause the items of a rewind or of nobody
    after = fed(
        steady(rate, second, done=rate * first // 2, at=pause), Estimator.from_text(before.text())
    )

    assert same(whole, after)


@given(
    pieces=st.lists(st.integers(1, 50), min_size=1, max_size=30), rate=rates, at=st.floats(0, 1e6)
)
def test_a_constant_rate_may_be_fed_in_any_pieces(pieces: list[int], rate: int, at: float) -> None:
    seconds = [sum(pieces[:count]) for count in range(len(pieces) + 1)]

    one = fed([(0, at), (rate * seconds[-1], at + seconds[-1])])
    many = fed([(rate * second, at + second) for second in seconds])

    assert same(one, many)
    assert many.rate == pytest.approx(rate, rel=1e-6)


@given(every=st.integers(1, 100), seconds=st.integers(1, 50))
def test_looking_more_often_than_items_end_changes_nothing(every: int, seconds: int) -> None:
    ends = every * seconds

    rarely = fed([(second // every, second) for second in range(0, ends + 1, every)])
    often = fed([(tenth // (10 * every), tenth / 10) for tenth in range(10 * ends + 1)])

    assert same(rarely, often)


@given(
    silence=st.integers(1, 120),
    burst=st.integers(1, 100_000),
    bursts=st.integers(2, 20),
    often=st.booleans(),
)
@example(silence=30, burst=3000, bursts=4, often=True)
def test_bursts_do_not_swing_the_estimate(
    silence: int, burst: int, bursts: int, *, often: bool
) -> None:
    mean = burst / silence
    estimator = fed([(0, 0.0), (burst, silence)])

    for second in range(silence + 1, silence * bursts + 1):
        if often or second % silence == 0:
            estimator.feed(burst * (second // silence), second)
            assert estimator.rate == pytest.approx(mean, rel=1e-6)


@given(jumps=st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 100)), min_size=1, max_size=40))
def test_the_rate_is_never_above_all_that_were_fed(jumps: list[tuple[int, float]]) -> None:
    assume(all(seconds > 1e-3 for _, seconds in jumps))
    estimator = fed([(0, 0.0)])
    done, at, fastest = 0, 0.0, 0.0
    for items, seconds in jumps:
        before = at
        done, at = done + items, at + seconds
        fastest = max(fastest, items / (at - before))
        estimator.feed(done, at)

        assert 0 <= estimator.rate <= fastest * (1 + 1e-9)


def test_items_of_no_time_count_as_what_they_are() -> None:
    at_once = fed([(0, 0.0), (0, 30.0), (2900, 30.0), (3000, 30.0)])
    late = fed([(0, 0.0), (2900, 30.0), (3000, 30.0)])

    assert same(at_once, late)
    # 2,900 over 30 s, and 100 now, over the weight of 30 s
    weight = -math.expm1(-30 * math.log(2) / HALF_LIFE) * HALF_LIFE / math.log(2)
    assert late.rate == pytest.approx(2900 / 30 + 100 / weight)


def test_items_of_five_minutes_do_not_swing_the_estimate() -> None:
    estimator = fed([(0, 0.0), (1, 300.0)])

    for second in range(301, 3000):
        estimator.feed(second // 300, second)
        assert left(estimator, 10) == pytest.approx(3000)


def test_what_takes_longer_than_it_should_makes_the_estimate_longer_and_longer() -> None:
    estimator = fed(steady(10, 120))
    told = []
    for second in range(10, 3600, 10):
        estimator.feed(1200, 120 + second)
        told.append(left(estimator, 100))

    assert told == sorted(told)
    assert told[0] < 15
    assert told[-1] > 3600

    estimator.feed(1210, 120 + 3600)
    assert left(estimator, 100) > 3600


@given(total=st.integers(0, 10**9), seconds=spans, rate=rates)
def test_a_total_may_come_late_and_may_change(total: int, seconds: int, rate: int) -> None:
    estimator, done = Estimator(), 0
    for done, at in steady(rate, seconds):
        estimator.feed(done, at)
        assert estimator.time_left(done, None) is None

    told = estimator.time_left(done, total)
    if done > total:
        assert told is None
    else:
        assert told == pytest.approx((total - done) / rate)
        assert estimator.time_left(done, total + rate) == pytest.approx((told or 0) + 1)


@given(rate=rates, other=rates, done=st.integers(0, 99), at=st.floats(0, 1e6))
def test_a_rewind_starts_anew(rate: int, other: int, done: int, at: float) -> None:
    rewound = fed([(0, at), (100, at + 100 / rate), *steady(other, 20, done=done, at=at + 1000)])

    assert same(rewound, fed(steady(other, 20)))


def test_a_clock_that_goes_back_is_another_one() -> None:
    estimator = fed([*steady(10, 60, at=1000.0), *steady(10, 60, done=600)])

    assert same(estimator, fed(steady(10, 120)))


hostile_times = st.floats() | st.floats(0, 100)
hostile_counts = st.integers() | st.integers(0, 100) | st.just(10**400)


@given(
    feeds=st.lists(st.tuples(hostile_counts, hostile_times), max_size=30),
    done=hostile_counts,
    total=st.none() | hostile_counts,
)
def test_whatever_is_fed_no_estimate_is_negative_or_no_number(
    feeds: list[tuple[int, float]], done: int, total: int | None
) -> None:
    estimator = Estimator()
    for items, at in feeds:
        estimator.feed(items, at)
        assert all(math.isfinite(number) and number >= 0 for number in state(estimator))
        told = estimator.time_left(done, total)
        assert told is None or (math.isfinite(told) and told >= 0)

        text = estimator.text()
        assert text.isascii()
        assert len(text) <= 60
        assert same(estimator, Estimator.from_text(text))


@given(text=st.text(max_size=80) | st.text("0123456789.e+- naif", max_size=70))
@example(text="nan 1 1")
@example(text="1 inf inf")
@example(text="1e999 86 9999")
@example(text="-1 1.98 2")
@example(text="1 0 2")
@example(text="1 86.5 2")
@example(text="1  1.97 2")
@example(text="١ 0 0")  # noqa: RUF001 - a digit, but not ours
@example(text="1 1.977 2\n")
@example(text="1_0 1.977 2")
@example(text="1e+18 1e-320 1e-320")
def test_a_text_that_makes_no_sense_gives_a_new_estimator(text: str) -> None:
    made = Estimator.from_text(text)

    told = made.time_left(1, 10)
    assert told is None or (math.isfinite(told) and told > 0)
    assert all(math.isfinite(number) and number >= 0 for number in state(made))


@pytest.mark.parametrize(
    "text", [None, "", "x", "nan 1 1", "1 inf inf", "1e+99 86.5617 9999", "1 1e-30 2", "1 86.5 2"]
)
def test_such_a_text_is_as_none(text: str | None) -> None:
    assert Estimator.from_text(text).text() == "0 0 0"


@given(rate=rates, seconds=spans)
def test_the_text_brings_the_estimate_back(rate: int, seconds: int) -> None:
    estimator = fed(steady(rate, seconds))
    back = Estimator.from_text(estimator.text())

    assert left(back, 1000) == pytest.approx(left(estimator, 1000), rel=1e-4)
    assert Estimator.from_text(back.text()).text() == back.text()


def test_the_text_is_the_weighted_items_the_weighted_seconds_and_the_active_seconds() -> None:
    assert fed(steady(10, 60)).text() == "432.809 43.2809 60"


@given(old=rates, new=rates, before=st.integers(10, 2000))
def test_after_three_half_lives_the_rate_went_85_percent_of_the_way(
    old: int, new: int, before: int
) -> None:
    estimator = fed(steady(old, before))
    fed(steady(new, int(3 * HALF_LIFE), done=old * before, at=before), estimator)

    assert abs(estimator.rate - new) <= 0.15 * abs(old - new) + 1e-6 * new


@given(old=rates, share=st.floats(0.5, 10), before=st.integers(10, 2000))
def test_after_three_half_lives_the_time_left_is_right_within_15_percent(
    old: int, share: float, before: int
) -> None:
    new = math.ceil(old * share)
    estimator = fed(steady(old, before))
    fed(steady(new, int(3 * HALF_LIFE), done=old * before, at=before), estimator)

    assert left(estimator, 1000) == pytest.approx(1000 / new, rel=0.15)


@given(rate=rates, pause=st.integers(120, 100_000))
def test_across_a_pause_it_is_right_where_the_mean_since_the_start_is_not(
    rate: int, pause: int
) -> None:
    total = rate * 300
    first = fed(steady(rate, 60))
    resumed = fed(steady(rate, 60, at=60.0 + pause), Estimator.from_text(first.text()))
    done = rate * 120

    truth = 180.0
    naive = (total - done) / (done / (120 + pause))
    told = resumed.time_left(done, total)
    assert told is not None
    assert abs(told - truth) <= 0.05 * truth
    assert abs(naive - truth) >= truth


def test_readers_get_the_estimate_from_the_text_but_not_of_a_stalled_job() -> None:
    text = fed(steady(10, 60)).text()

    assert estimate(text, 600, 1600, stalled=False) == pytest.approx(100, rel=1e-4)
    assert estimate(text, 600, 1600, stalled=True) is None
    assert estimate(text, 600, 599, stalled=False) is None
    assert estimate(None, 600, 1600, stalled=False) is None
    assert estimate("0 0 0", 600, 1600, stalled=False) is None


def test_a_new_run_is_told_from_what_the_last_one_did() -> None:
    text = fed(steady(10, 60)).text()
    begun = fed([(600, 5.0)], Estimator.from_text(text))

    assert begun.text() == text
    assert left(begun, 1000) == pytest.approx(100, rel=1e-4)
