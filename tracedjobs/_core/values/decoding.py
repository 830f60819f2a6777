"""JSON text becomes the value it was made from, or is refused with a reason.

Nothing is imported on behalf of the text; the one code of others that runs is `__init__` of
dataclasses that this process registered itself.
"""

from __future__ import annotations

import enum
import functools
import json
import operator
from collections.abc import Sized
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from tracedjobs._core.values.leaves import LEAF_OF_TAG
from tracedjobs._core.values.refusal import shown, type_name
from tracedjobs._core.values.registry import registered_name
from tracedjobs.errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from tracedjobs._core.values.registry import RegisteredType

_Sized = TypeVar("_Sized", bound=Sized)


def decode(text: str) -> object:
    """Return the value whose text `encode` made, with the same type.

    Raises `SerializationError` when the text is damaged, was written by a newer version, or holds
    a type that is not registered in this process.

    >>> decode('{"$t":[1,2]}')
    (1, 2)
    """
    tagged = "$" in text or "\\u0024" in text
    try:
        return (_TAGGED if tagged else _PLAIN).decode(text)
    except SerializationError:
        raise
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:  # no JSON, or an int over the digit limit
        reason = str(error)
    raise SerializationError(
        f"the stored text {shown(text)} cannot be read: {reason}; it is damaged, or was not "
        "written by tracedjobs: restore it from a backup, or start the job anew"
    )


def _from_pairs(pairs: list[tuple[str, Any]]) -> object:
    for key, payload in pairs:
        if key[:1] == "$":
            return _from_tag(key, payload, alone=len(pairs) == 1)
    return dict(pairs)


def _from_tag(tag: str, payload: object, *, alone: bool) -> object:
    reader = _READERS.get(tag)
    if reader is None or not alone:
        raise SerializationError(
            f"the stored value has the tag {shown(tag)}, which this version of tracedjobs does not "
            "know; a newer version wrote it: upgrade tracedjobs here"
        )
    try:
        return reader(payload)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise SerializationError(
            f"the stored value {shown(payload)} does not fit its tag {tag!r}; the record is "
            "damaged: restore it from a backup, or start the job anew"
        ) from error


def _tuple(payload: object) -> tuple[object, ...]:
    return tuple(_list(payload))


def _set(payload: object) -> set[Hashable]:
    return _all_kept(set(_list(payload)), payload)


def _frozenset(payload: object) -> frozenset[Hashable]:
    return _all_kept(frozenset(_list(payload)), payload)


def _dict(payload: object) -> dict[Hashable, object]:
    return _all_kept(dict(map(_list, _list(payload))), payload)


def _enum(payload: object) -> enum.Enum:
    name, member = _list(payload)
    registered = _registered(name)
    cls = registered.cls
    if not issubclass(cls, enum.Enum):
        _misfit(registered, "a member of an enum")
    members = cls.__members__
    try:
        if isinstance(member, str):
            return members[member]
        if issubclass(cls, enum.Flag):
            return functools.reduce(operator.or_, [members[flag] for flag in _list(member)], cls(0))
    except KeyError:
        raise SerializationError(
            f"the stored {member!r} is no member of the enum {type_name(cls)}; "
            "was it renamed or removed? Add it again, also as an alias"
        ) from None
    raise TypeError(member)


def _dataclass(payload: object) -> object:
    name, fields = _list(payload)
    registered = _registered(name)
    if registered.fields is None:
        _misfit(registered, "a dataclass")
    if not isinstance(fields, dict):
        raise TypeError(fields)
    unknown = [shown(field) for field in fields if field not in registered.fields]
    if unknown:
        raise SerializationError(
            f"the stored {type_name(registered.cls)} has fields that the class has not: "
            f"{', '.join(unknown)}; newer code wrote it, or they were renamed or removed: "
            "deploy that code here, or add the fields again"
        )
    try:
        return registered.cls(**fields)
    except Exception as error:  # any, from the class's own __init__
        raise SerializationError(
            f"the stored {type_name(registered.cls)} could not be rebuilt from {shown(fields)}: "
            f"{error!r}; give fields that were added a default, and let __post_init__ accept what "
            "older records hold"
        ) from error


def _registered(name: object) -> RegisteredType:
    if not isinstance(name, str):
        raise TypeError(name)
    registered = registered_name(name)
    if registered is None:
        raise SerializationError(
            f"the stored value is of a type named {name!r}, which is not registered in this "
            f"process; call tracedjobs.register_type(cls, name={name!r}) before, or import "
            "the module that does"
        )
    return registered


def _misfit(registered: RegisteredType, stored_as: str) -> NoReturn:
    raise SerializationError(
        f"the stored value is {stored_as}, but {type_name(registered.cls)}, registered under its "
        f"name {registered.name!r}, is none; register the class that was stored, or this one under "
        "another name"
    )


def _all_kept(value: _Sized, payload: object) -> _Sized:
    """Refuse a set or dict in which equal members took each other's place."""
    if len(value) != len(_list(payload)):
        raise ValueError(payload)
    return value


def _list(payload: object) -> list[Any]:
    # Exactly: a str of two letters would pass as a pair.
    if type(payload) is not list:
        raise TypeError(payload)
    return payload


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


_READERS: dict[str, Callable[[Any], object]] = {
    "$t": _tuple,
    "$s": _set,
    "$fs": _frozenset,
    "$d": _dict,
    "$e": _enum,
    "$c": _dataclass,
    **{tag: leaf.load for tag, leaf in LEAF_OF_TAG.items()},
}
_PLAIN = json.JSONDecoder(parse_constant=_no_constant)
_TAGGED = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_from_pairs)
