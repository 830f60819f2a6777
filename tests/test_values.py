"""Values come back from their text with the same type and the same value, or are refused."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import functools
import inspect
import io
import json
import math
import os
import struct
import subprocess
import sys
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, localcontext
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracedjobs._core.values import (
    MAX_CURSOR_BYTES,
    MAX_DEPTH,
    decode,
    encode,
    encode_cursor,
    register_type,
)
from tracedjobs.errors import SerializationError


@register_type
class Color(enum.Enum):
    RED = 1
    CRIMSON = RED
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


register_type(Level, name="level")


@register_type
class Access(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()
    RUN = enum.auto()


@register_type
class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2


@register_type
@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: object
    y: object = 0


@dataclasses.dataclass
class User:
    name: str
    born: object = None
    tags: dict[object, object] = dataclasses.field(default_factory=dict)
    shout: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.shout = self.name.upper()


register_type(User, name="app.user")


class Mood(enum.Enum):
    GOOD = 1


class Loose(enum.IntEnum):
    A = 1


@dataclasses.dataclass
class Stranger:
    x: int = 0


class Name(str):
    __slots__ = ()


class Pair(NamedTuple):
    left: int
    right: int


class OddZone(tzinfo):
    def utcoffset(self, _when: datetime | None) -> timedelta:
        return timedelta(hours=1)

    dst = utcoffset

    def tzname(self, _when: datetime | None) -> str:
        return "odd"


def seen(value: Any) -> object:
    """Everything that must survive, as what `==` can compare: types, folds, zones, signs, order."""
    cls = type(value)
    if isinstance(value, enum.Enum):
        return cls, value.name
    if cls is float:
        return cls, "nan" if math.isnan(value) else value.hex()
    if cls is Decimal:
        return cls, value.as_tuple()
    if cls in (list, tuple):
        return cls, [seen(item) for item in value]
    if cls in (set, frozenset):
        return cls, [seen(item) for item in sorted(value, key=encode)]
    if cls is dict:
        return cls, [(seen(key), seen(item)) for key, item in value.items()]
    if cls in (datetime, time):
        zone = value.tzinfo
        key = zone.key if isinstance(zone, ZoneInfo) else None
        offset = (value.utcoffset(), value.tzname()) if isinstance(zone, timezone) else None
        return cls, value.replace(tzinfo=None).isoformat(), value.fold, type(zone), key, offset
    if dataclasses.is_dataclass(value):
        return cls, [(f.name, seen(getattr(value, f.name))) for f in dataclasses.fields(value)]
    return cls, value


def assert_round_trip(value: object) -> str:
    text = encode(value)
    assert text.isascii()
    assert seen(decode(text)) == seen(value)
    assert encode(decode(text)) == text
    json.loads(text, parse_constant=pytest.fail)
    return text


ZONES = st.one_of(
    st.none(),
    st.sampled_from(
        [UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York"), ZoneInfo("UTC")]
    ),
    st.builds(
        timezone,
        st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59)),
    ),
    st.builds(timezone, st.just(timedelta(hours=-3)), st.text(max_size=5)),
)
KEYS_ALIKE = st.sampled_from(["$t", "$d", "$", "$c", "$new", "a", ""])
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(590, 700).map(lambda digits: -(10**digits)),
    st.floats(),
    st.text(),
    KEYS_ALIKE,
    st.binary(),
    st.datetimes(timezones=ZONES),
    st.times(timezones=ZONES),
    st.builds(lambda when: when.replace(fold=1), st.datetimes(timezones=ZONES)),
    st.builds(lambda when: when.replace(fold=1), st.times(timezones=ZONES)),
    st.dates(),
    st.timedeltas(),
    st.decimals(),
    st.sampled_from([Decimal("sNaN7"), Decimal("-0E+9"), Decimal("1E-400"), Decimal("1.20")]),
    st.uuids(),
    st.sampled_from([Color.RED, Color.BLUE, Level.LOW]),
    st.sampled_from([Access.READ, Access.READ | Access.RUN, Access(0), ~Access.READ]),
)


@st.composite
def scalars(draw: st.DrawFn) -> object:
    # A function, because Hypothesis warns of the size of what stands here in full.
    return draw(_SCALARS)


SCALARS = scalars()
# A signalling NaN has no hash.
HASHABLE_SCALARS = SCALARS.filter(lambda value: not (type(value) is Decimal and value.is_snan()))
HASHABLE = st.recursive(
    HASHABLE_SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(inner, max_size=3),
        st.builds(Point, inner, inner),
    ),
    max_leaves=4,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=5) | KEYS_ALIKE, inner, max_size=4),
        st.dictionaries(HASHABLE, inner, max_size=3),
        st.sets(HASHABLE, max_size=3),
        st.frozensets(HASHABLE, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(User, st.text(), inner, st.dictionaries(st.text(), inner, max_size=2)),
    ),
    max_leaves=12,
)


@given(VALUES)
def test_any_nesting_of_values_comes_back_the_same(value: object) -> None:
    assert_round_trip(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (-7, "-7"),
        (1.0, "1.0"),
        (-0.0, "-0.0"),
        (1e22, "1e+22"),
        ("é\0", r'"\u00e9\u0000"'),
        ([], "[]"),
        ({}, "{}"),
        ({"b": 1, "a": [True, None]}, '{"b":1,"a":[true,null]}'),
        ({True: 2, 0: 3}, '{"$d":[[true,2],[0,3]]}'),
        ({(1, 2): "x", None: 1.5}, '{"$d":[[{"$t":[1,2]},"x"],[null,1.5]]}'),
        ({"$t": 1}, '{"$d":[["$t",1]]}'),
        ({"a": 1, "$": 2}, '{"$d":[["a",1],["$",2]]}'),
        ({"a$": 1}, '{"a$":1}'),
        ((), '{"$t":[]}'),
        ({3, 1, 20}, '{"$s":[1,20,3]}'),
        (frozenset("ba"), '{"$fs":["a","b"]}'),
        (float("-inf"), '{"$f":"-inf"}'),
        (b"\x00\xff", '{"$b":"AP8="}'),
        (b"", '{"$b":""}'),
        (datetime(2024, 10, 27, 2, 30), '{"$dt":"2024-10-27T02:30:00"}'),  # noqa: DTZ001
        (
            datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
            '{"$dt":["2024-10-27T02:30:00",1,"Europe/Berlin"]}',
        ),
        (datetime(1, 1, 1, tzinfo=UTC), '{"$dt":["0001-01-01T00:00:00",0,[0,null]]}'),
        (
            datetime(9999, 12, 31, tzinfo=timezone(timedelta(hours=-1), "X")),
            '{"$dt":["9999-12-31T00:00:00",0,[-3600000000,"X"]]}',
        ),
        (time(1, 2, 3, 4), '{"$time":"01:02:03.000004"}'),
        (time(1, fold=1), '{"$time":["01:00:00",1,null]}'),
        (date(2024, 2, 29), '{"$date":"2024-02-29"}'),
        (timedelta(microseconds=-1), '{"$td":[-1,86399,999999]}'),
        (Decimal("1.20"), '{"$dec":"1.20"}'),
        (uuid.UUID(int=1), '{"$uuid":"00000000-0000-0000-0000-000000000001"}'),
        (Color.CRIMSON, f'{{"$e":["{__name__}:Color","RED"]}}'),
        (Level.HIGH, '{"$e":["level","HIGH"]}'),
        (Access.READ | Access.RUN, f'{{"$e":["{__name__}:Access",["READ","RUN"]]}}'),
        (Point(1, (2,)), f'{{"$c":["{__name__}:Point",{{"x":1,"y":{{"$t":[2]}}}}]}}'),
        (User("a"), '{"$c":["app.user",{"name":"a","born":null,"tags":{}}]}'),
    ],
)
def test_the_stored_format_does_not_change(value: object, text: str) -> None:
    assert assert_round_trip(value) == text


def test_huge_ints_come_back_under_the_smallest_digit_limit() -> None:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        for number in (10**600 - 1, 10**600, 10**650, 10**5000, -(10**5000), 1 << 100_000):
            assert decode(encode([number])) == [number]
            assert decode(encode_cursor(number)) == number
    finally:
        sys.set_int_max_str_digits(limit)


def test_the_fold_of_a_datetime_decides_its_offset_after_the_round_trip() -> None:
    late = datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
    back = decode(encode([late, late.replace(fold=0)]))
    assert isinstance(back, list)
    assert [moment.utcoffset() for moment in back] == [timedelta(hours=1), timedelta(hours=2)]
    assert back[0].tzinfo is late.tzinfo


def test_a_decimal_is_stored_the_same_in_any_context() -> None:
    with localcontext() as context:
        context.capitals = 0
        context.prec = 2
        context.clear_traps()
        text = encode(Decimal("1.2345E+50"))
        assert text == '{"$dec":"1.2345E+50"}'
        assert repr(decode(text)) == "Decimal('1.2345e+50')"
        assert decode('{"$dec":"NaN"}').is_nan()  # type: ignore[attr-defined]  # an object to mypy
        with pytest.raises(SerializationError):
            decode('{"$dec":"1E+99999999999999999999"}')


def test_sets_that_are_equal_have_the_same_text_in_every_process() -> None:
    program = (
        "from tracedjobs._core.values import encode\n"
        "print(encode({f'k{i}' for i in range(50)} | {(i, 'x') for i in range(50)}))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1


# What is refused, and where


def test_a_path_may_lead_through_a_key_that_has_no_repr() -> None:
    with pytest.raises(SerializationError, match=r"^value\[<int( instance)?[^]]*>\] cannot be"):
        encode({10**5000: len})


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [1, object()]}, "arguments['a'][1]"),
        ({"users": [0, 1, 2, User("a", born=print)]}, "arguments['users'][3].born"),
        ((1, {2: [b"", 1j]}), "arguments[1][2][1]"),
        ({(1, 2): object()}, "arguments[(1, 2)]"),
        ({"a": 1, Name("b"): 2}, "arguments.keys()[1]"),
        ([{("x", frozenset([len])): 2}], "arguments[0].keys()[0][1]{...}"),
        ({"s": {1, ("x", len)}}, "arguments['s']{...}[1]"),
        ({Color.RED: {Color.BLUE: lambda: 0}}, "arguments[<Color.RED: 1>][<Color.BLUE: 'blue'>]"),
        (len, "arguments"),
    ],
)
def test_the_path_to_what_cannot_be_stored_is_named(value: object, where: str) -> None:
    with pytest.raises(SerializationError) as caught:
        encode(value, path="arguments")
    message = str(caught.value)
    assert message.startswith(f"{where} cannot be stored: ")
    assert "register_type" in message


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (Level, "make its type an enum or a dataclass, with tracedjobs.register_type"),
        (Mood.GOOD, "call tracedjobs.register_type(Mood) right after the class is defined"),
        (Stranger(), "call tracedjobs.register_type(Stranger) right after the class is defined"),
        (
            collections.OrderedDict(a=1),
            "collections.OrderedDict, and would come back as a plain dict",
        ),
        (collections.defaultdict(list), "would come back as a plain dict"),
        (Pair(1, 2), "would come back as a plain tuple"),
        (Name("x"), "would come back as a plain str"),
        (Loose.A, "Loose is not registered; call tracedjobs.register_type(Loose)"),
        (bytearray(b"x"), "is of type bytearray; convert it"),
        (Point, "is of type type; convert it"),
        ((n for n in [1]), "is of type generator; convert it"),
        (
            datetime(2024, 1, 1, tzinfo=OddZone()),
            "whose rules would be lost; use zoneinfo.ZoneInfo or datetime.timezone",
        ),
        (Bits.ONE | 8, "is no member"),
    ],
)
def test_what_would_come_back_as_another_type_is_refused_with_a_way_out(
    value: object, hint: str
) -> None:
    with pytest.raises(SerializationError) as caught:
        encode([value])
    assert str(caught.value).startswith("value[0] cannot be stored: ")
    assert hint in str(caught.value)


def test_a_zone_that_could_not_be_found_again_is_refused() -> None:
    smallest = b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + bytes(6) + b"UTC\0"
    for key in (None, "Europe/Nowhere", "../zone"):
        zone = ZoneInfo.from_file(io.BytesIO(smallest), key=key)
        with pytest.raises(SerializationError, match="cannot be found again by its key; use"):
            encode(datetime(2024, 1, 1, tzinfo=zone))


def test_a_dict_may_grow_while_it_is_encoded() -> None:
    grows: dict[str, object] = {}

    @register_type
    @dataclasses.dataclass
    class Meddler:
        x: int

        def __getattribute__(self, name: str) -> object:
            grows[f"k{len(grows)}"] = 1
            return super().__getattribute__(name)

    grows["meddler"] = Meddler(1)
    assert encode(grows).startswith('{"meddler":')


def test_a_subclass_of_a_registered_dataclass_is_refused() -> None:
    class Child(User):
        pass

    with pytest.raises(SerializationError, match=r"call tracedjobs.register_type\(Child\)"):
        encode(Child("x"))


@given(st.text(), st.integers(0xD800, 0xDFFF).map(chr), st.text())
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(
    before: str, half: str, after: str
) -> None:
    text = f"{before}{half}{after}"
    for value, where in (
        (text, "state"),
        ([text], "state[0]"),
        ({text: 1}, "state.keys()[0]"),
        ({"k": (text,)}, "state['k'][0]"),
        (timezone(timedelta(0), text), None),
    ):
        moment = value if where else datetime(2024, 1, 1, tzinfo=value)  # type: ignore[arg-type]  # a zone
        with pytest.raises(SerializationError) as caught:
            encode(moment, path="state")
        assert f"half a surrogate pair, {half!a}, at index {len(before)}," in str(caught.value)
        if where:
            assert str(caught.value).startswith(f"{where} cannot be stored: ")


def nested(levels: int, wrap: Any) -> object:
    value: object = 1
    for _ in range(levels):
        value = wrap(value)
    return value


WRAPS: dict[str, Any] = {
    "list": lambda inner: [inner],
    "tuple": lambda inner: (inner,),
    "object": lambda inner: {"k": inner},
    "dict": lambda inner: {1: inner},
    "frozenset": lambda inner: frozenset([inner]),
    "dataclass": Point,
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_values_may_be_nested_to_the_limit_and_no_deeper(wrap: Any) -> None:
    assert_round_trip(nested(MAX_DEPTH, wrap))
    with pytest.raises(SerializationError, match=f"nested deeper than {MAX_DEPTH} levels"):
        encode(nested(MAX_DEPTH + 1, wrap))


def test_a_value_that_contains_itself_is_refused_with_a_short_path() -> None:
    ring: dict[str, object] = {}
    ring["next"] = [ring]
    with pytest.raises(SerializationError, match="or contains itself") as caught:
        encode(ring, path="state")
    assert str(caught.value).startswith("state['next'][0]['next'][0]")
    assert len(str(caught.value)) < 300


def test_a_call_stack_that_is_nearly_full_is_no_recursion_error() -> None:
    deep = nested(MAX_DEPTH, WRAPS["tuple"])
    text = encode(deep)
    refused: list[SerializationError] = []
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 60)
    try:
        for convert in (functools.partial(encode, deep), functools.partial(decode, text)):
            try:
                convert()
            except SerializationError as error:
                refused.append(error)
    finally:
        sys.setrecursionlimit(limit)
    # Reading is done in C, which counts its levels apart since 3.12.
    assert "the call stack was nearly full" in str(refused[0])
    assert all("nested" in str(error) for error in refused)


@given(VALUES, st.data())
def test_a_damaged_text_raises_nothing_but_a_serialization_error(
    value: object, data: st.DataObject
) -> None:
    text = encode(value)
    cut = data.draw(st.integers(0, len(text)))
    put = data.draw(st.sampled_from(["", "0", '"', "[", "}", "$", "null", "e"]))
    with contextlib.suppress(SerializationError):
        decode(text[:cut] + put + text[cut + 1 :])


# Cursors


def test_a_cursor_has_the_text_of_any_value() -> None:
    for cursor in (0, -1, 2**63, 10**5000, -(10**5000), None, True, "id-7", (1, "a"), 1.5):
        assert encode_cursor(cursor) == encode(cursor)
        assert seen(decode(encode_cursor(cursor))) == seen(cursor)


def test_a_cursor_of_64_kib_is_stored_and_a_larger_one_refused() -> None:
    assert len(encode_cursor("x" * (MAX_CURSOR_BYTES - 2))) == MAX_CURSOR_BYTES == 65_536
    with pytest.raises(SerializationError) as caught:
        encode_cursor("x" * (MAX_CURSOR_BYTES - 1))
    assert str(caught.value) == (
        "cursor cannot be stored: it takes 65537 bytes, and 65536 are allowed; keep in it only the "
        "position (an id, an offset), and the rest in ctx.state"
    )
    with pytest.raises(SerializationError, match="it takes"):
        encode_cursor(10**100_000)


def test_a_cursor_that_cannot_be_stored_is_named() -> None:
    with pytest.raises(SerializationError, match=r"^cursor\[1\] cannot be stored: <function"):
        encode_cursor((1, lambda: 0))
    with pytest.raises(SerializationError, match=r"^cursor cannot be stored: it is of type .*Mine"):
        encode_cursor(type("Mine", (int,), {})(3))
