"""What may be registered, and texts that were not written here, or not by this version."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracedjobs._core.values import decode, encode, register_type
from tracedjobs._core.values.decoding import _READERS
from tracedjobs.errors import SerializationError


class Grade(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Person:
    name: str
    born: object = None
    tags: dict[object, object] = dataclasses.field(default_factory=dict)
    shout: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.shout = self.name.upper()


register_type(Grade, name="grade")
register_type(Right, name="right")
register_type(Person, name="app.person")


class Mood(enum.Enum):
    GOOD = 1


# Registering


def test_register_type_takes_only_enums_and_dataclasses_that_can_be_rebuilt() -> None:
    @dataclasses.dataclass
    class NeedsMore:
        x: int
        seed: dataclasses.InitVar[int]

    @dataclasses.dataclass(init=False)
    class OwnInit:
        x: int

        def __init__(self, text: str) -> None:
            self.x = int(text)

    @dataclasses.dataclass
    class Bag(dict[str, int]):
        x: int

    class Plain:
        pass

    refused: list[tuple[Any, str]] = [
        (Plain, "takes an enum or a dataclass, not <class"),
        (int, "takes an enum or a dataclass, not <class 'int'>"),
        (Mood.GOOD, "takes an enum or a dataclass, not <Mood.GOOD: 1>"),
        ("app.person", "takes an enum or a dataclass, not 'app.person'"),
        (NeedsMore, "give every InitVar a default"),
        (OwnInit, "let __init__ take x by keyword"),
        (Bag, "a dataclass and a builtin type as well"),
    ]
    for cls, reason in refused:
        with pytest.raises(TypeError) as caught:
            register_type(cls)
        assert reason in str(caught.value)


def test_another_class_under_a_taken_name_is_an_error_and_changes_nothing() -> None:
    with pytest.raises(ValueError, match=r"the name 'grade' is taken by .*\.Grade; register"):
        register_type(Mood, name="grade")
    with pytest.raises(ValueError, match="must be a text that is not empty"):
        register_type(Mood, name="")
    assert decode(encode(Grade.LOW)) is Grade.LOW
    with pytest.raises(SerializationError):
        encode(Mood.GOOD)


def test_a_reloaded_class_takes_the_place_of_its_former_self() -> None:
    def load(default: int) -> Any:
        @register_type
        @dataclasses.dataclass
        class Reloaded:
            x: int
            added: int = default

        return Reloaded

    former, latter = load(1), load(2)
    assert decode(encode(former(5))) == latter(5, 1)
    assert decode(encode(latter(5))) == latter(5, 2)


def test_a_class_under_a_second_name_is_stored_under_it_and_read_under_both() -> None:
    @dataclasses.dataclass
    class Moved:
        x: int

    assert register_type(Moved, name="old.place:Moved") is Moved
    old = encode(Moved(1))
    register_type(Moved, name="new.place:Moved")
    assert encode(Moved(1)) == '{"$c":["new.place:Moved",{"x":1}]}'
    assert decode(old) == Moved(1)


def test_a_class_of_a_script_is_named_after_its_file(tmp_path: Path) -> None:
    script = tmp_path / "nightly.py"
    script.write_text(
        "import enum\n"
        "from tracedjobs._core.values import encode, register_type\n"
        "@register_type\n"
        "class Kind(enum.Enum):\n    A = 1\n"
        "print(encode(Kind.A))\n"
    )
    root = str(Path(__file__).parents[1])
    for arguments in ([str(script)], ["-m", "nightly"]):
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([root, str(tmp_path)])},
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout == '{"$e":["nightly:Kind","A"]}\n'


def test_fields_without_init_are_computed_again_and_added_fields_take_their_default() -> None:
    person = decode('{"$c":["app.person",{"name":"ann"}]}')
    assert person == Person("ann", None, {})
    assert isinstance(person, Person)
    assert person.shout == "ANN"


# Texts that were not written here, or not by this version


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the stored text '' cannot be read: Expecting value"),
        ("[1", "it is damaged, or was not written by tracedjobs"),
        ("1 2", "Extra data"),
        ("NaN", "NaN is no JSON"),
        ('[NaN,{"$t":[]}]', "NaN is no JSON"),
        ("[-Infinity]", "-Infinity is no JSON"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"$t":' * 100_000, "it is nested too deeply"),
        ('{"$new":1}', "the tag '$new', which this version of tracedjobs does not know; a newer"),
        (r'{"\u0024new":1}', "the tag '$new', which this version"),
        ('{"$t":[],"more":1}', "upgrade tracedjobs here"),
        ('{"a":1,"$t":[]}', "upgrade tracedjobs here"),
        ('{"$t":1}', "the stored value 1 does not fit its tag '$t'"),
        ('{"$t":{"$t":[]}}', "the stored value () does not fit its tag '$t'"),
        ('{"$s":[[1]]}', "does not fit its tag '$s'"),
        ('{"$s":[1,true]}', "does not fit its tag '$s'"),
        ('{"$d":["ab"]}', "does not fit its tag '$d'"),
        ('{"$d":[[1,2],[1,3]]}', "does not fit its tag '$d'"),
        ('{"$d":[[[],2]]}', "does not fit its tag '$d'"),
        ('{"$i":"0x1f"}', "does not fit its tag '$i'"),
        ('{"$i":"1_0"}', "does not fit its tag '$i'"),
        ('{"$f":"1.5"}', "does not fit its tag '$f'"),
        ('{"$b":"a"}', "does not fit its tag '$b'"),
        ('{"$b":"a-b="}', "does not fit its tag '$b'"),
        ('{"$dt":"20240101"}', "does not fit its tag '$dt'"),
        ('{"$dt":"2024-01-01T00:00:00+01:00"}', "does not fit its tag '$dt'"),
        ('{"$dt":["2024-01-01T00:00:00",2,null]}', "does not fit its tag '$dt'"),
        ('{"$dt":["2024-01-01T00:00:00",0,[90000000000,null]]}', "does not fit its tag '$dt'"),
        ('{"$dt":["2024-01-01T00:00:00",0,"../../etc/passwd"]}', "install or upgrade the tzdata"),
        ('{"$dt":["2024-01-01T00:00:00",0,"Europe"]}', "'Europe' is not known on this machine"),
        ('{"$time":"25:00:00"}', "does not fit its tag '$time'"),
        ('{"$date":"2023-02-29"}', "does not fit its tag '$date'"),
        ('{"$td":[0,86400,0]}', "does not fit its tag '$td'"),
        ('{"$td":[true,0,0]}', "does not fit its tag '$td'"),
        ('{"$td":[99999999999,0,0]}', "does not fit its tag '$td'"),
        ('{"$dec":"one"}', "does not fit its tag '$dec'"),
        ('{"$uuid":"1"}', "does not fit its tag '$uuid'"),
        ('{"$uuid":"00000000000000000000000000000001"}', "does not fit its tag '$uuid'"),
        ('{"$e":["os:system","x"]}', "call tracedjobs.register_type(cls, name='os:system') before"),
        ('{"$c":["os:system",{}]}', "a type named 'os:system', which is not registered"),
        ('{"$e":["grade","MIDDLE"]}', "the stored 'MIDDLE' is no member of the enum"),
        ('{"$e":["grade",["LOW"]]}', "does not fit its tag '$e'"),
        ('{"$e":["app.person","x"]}', "Person, registered under its name 'app.person', is none"),
        ('{"$c":["grade",{}]}', "the stored value is a dataclass, but"),
        ('{"$c":["app.person",[]]}', "does not fit its tag '$c'"),
        ('{"$c":["app.person",{"name":"a","age":1}]}', "fields that the class has not: 'age'"),
        (
            '{"$c":["app.person",{"name":"a","shout":"A"}]}',
            "fields that the class has not: 'shout'",
        ),
        ('{"$c":["app.person",{}]}', "give fields that were added a default"),
        (
            '{"$c":["app.person",{"name":1}]}',
            "could not be rebuilt from {'name': 1}: AttributeError",
        ),
    ],
)
def test_a_text_that_does_not_fit_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(SerializationError) as caught:
        decode(text)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 500


def test_an_int_over_the_digit_limit_is_no_value_error() -> None:
    with pytest.raises(SerializationError, match="Exceeds the limit"):
        decode("1" * 5000)


PLAIN_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.dictionaries(st.sampled_from([*_READERS, "$x"]), inner, min_size=1, max_size=1),
        st.builds(
            lambda tag, name, payload: {tag: [name, payload]},
            st.sampled_from(["$e", "$c"]),
            st.sampled_from(["app.person", "grade", "right"]),
            inner | st.dictionaries(st.sampled_from(["x", "y", "name"]), inner),
        ),
    ),
    max_leaves=12,
)


@given(st.text() | PLAIN_JSON.map(json.dumps))
@settings(max_examples=300)
def test_no_text_raises_anything_but_a_serialization_error(text: str) -> None:
    with contextlib.suppress(SerializationError):
        decode(text)


def test_reading_imports_nothing() -> None:
    with pytest.raises(SerializationError):
        decode('{"$c":["turtledemo.chaos:main",{}]}')
    assert "turtledemo.chaos" not in sys.modules
    assert "turtledemo" not in sys.modules
