"""A value becomes JSON text, or is refused with the path to what cannot be stored.

The text is written here and not by `json.dumps`, which flattens subclasses, writes int keys as str
and does not say where it failed; the table of what is written is in the package's docstring.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import operator
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as _quoted
from typing import TYPE_CHECKING, Any

from tracedjobs._core.values.leaves import LARGE_INT, LEAVES, ODD_FLOAT, late_leaf
from tracedjobs._core.values.refusal import RefusedError, shown, type_name
from tracedjobs._core.values.registry import registered_class
from tracedjobs.errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracedjobs._core.values.leaves import Leaf
    from tracedjobs._core.values.registry import RegisteredType

MAX_CURSOR_BYTES = 65_536
# A level is up to three of JSON's and two frames, well within every recursion limit.
MAX_DEPTH = 100

# CPython may be told to refuse decimal texts of ints over 640 digits, and to read none that long.
_LARGEST_PLAIN = 10**600
_SMALLEST_PLAIN = -_LARGEST_PLAIN

_Writer = Callable[[Any, int], str]


def encode(value: object, *, path: str = "value") -> str:
    """Return the ASCII JSON text of a value; `path` is what it is called in errors.

    Raises `SerializationError`, naming the path within the value, when anything in it cannot be
    stored.

    >>> encode({"at": (1, 2)})
    '{"at":{"$t":[1,2]}}'
    """
    try:
        return _encode(value, 0)
    except RefusedError as refused:
        raise SerializationError(refused.located(path)) from refused.__cause__
    except RecursionError:
        raise SerializationError(
            f"{path} cannot be stored: it is nested deeper than the {MAX_DEPTH} levels that are "
            "allowed, or the call stack was nearly full already; store it flatter"
        ) from None


def encode_cursor(value: object) -> str:
    """Return the text of a cursor, like `encode`, but of at most `MAX_CURSOR_BYTES` bytes.

    Raises `SerializationError` when it cannot be stored or is larger.

    >>> encode_cursor(12)
    '12'
    """
    # Nearly every cursor is one of these, and loops save them between two items.
    if type(value) is int and _SMALLEST_PLAIN < value < _LARGEST_PLAIN:
        return str(value)
    if value is None:
        return "null"
    text = encode(value, path="cursor")
    if len(text) > MAX_CURSOR_BYTES:
        raise SerializationError(
            f"cursor cannot be stored: it takes {len(text)} bytes, and {MAX_CURSOR_BYTES} are "
            "allowed; keep in it only the position (an id, an offset), and the rest in ctx.state"
        )
    return text


def _encode(value: object, depth: int) -> str:
    cls = type(value)
    writer = _WRITERS.get(cls)
    if writer is not None:
        return writer(value, depth)
    registered = registered_class(cls)
    if registered is not None:
        return _registered(value, registered, depth)
    leaf = late_leaf(cls)
    if leaf is not None:
        return _leaf(leaf, value)
    raise RefusedError(_way_out(value))


def _none(_value: None, _depth: int) -> str:
    return "null"


def _bool(value: bool, _depth: int) -> str:  # noqa: FBT001 - the value itself
    return "true" if value else "false"


def _int(value: int, _depth: int) -> str:
    return str(value) if _SMALLEST_PLAIN < value < _LARGEST_PLAIN else _leaf(LARGE_INT, value)


def _float(value: float, _depth: int) -> str:
    return repr(value) if math.isfinite(value) else _leaf(ODD_FLOAT, value)


def _str(value: str, _depth: int) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RefusedError(
                f"it has half a surrogate pair, {value[error.start]!a}, at index {error.start}, "
                "which is no text that a store could hold; clean it, or keep it as bytes: "
                "value.encode('utf-8', 'surrogatepass')"
            ) from None
    return _quoted(value)


def _list(value: list[object] | tuple[object, ...], depth: int) -> str:
    _check_depth(depth)
    parts: list[str] = []
    try:
        for item in value:
            parts.append(_encode(item, depth + 1))  # noqa: PERF401 - its length is the path
    except RefusedError as refused:
        refused.within(f"[{len(parts)}]")
        raise
    return "[" + ",".join(parts) + "]"


def _tuple(value: tuple[object, ...], depth: int) -> str:
    return f'{{"$t":{_list(value, depth)}}}'


def _set(value: set[object], depth: int) -> str:
    return f'{{"$s":{_sorted(value, depth)}}}'


def _frozenset(value: frozenset[object], depth: int) -> str:
    return f'{{"$fs":{_sorted(value, depth)}}}'


def _sorted(value: set[object] | frozenset[object], depth: int) -> str:
    _check_depth(depth)
    try:
        texts = [_encode(item, depth + 1) for item in list(value)]
    except RefusedError as refused:
        refused.within("{...}")
        raise
    return "[" + ",".join(sorted(texts)) + "]"


def _dict(value: dict[object, object], depth: int) -> str:
    # A copy: another thread may add keys meanwhile.
    items = list(value.items())
    entries = _entries(items, depth, _key_step)
    for key, _ in items:
        if type(key) is not str or key[:1] == "$":
            pairs = ",".join([f"[{name},{text}]" for name, text in entries])
            return f'{{"$d":[{pairs}]}}'
    return _object(entries)


def _object(entries: list[tuple[str, str]]) -> str:
    return "{" + ",".join([f"{name}:{text}" for name, text in entries]) + "}"


def _entries(
    items: Iterable[tuple[object, object]], depth: int, step: Callable[[object], str]
) -> list[tuple[str, str]]:
    _check_depth(depth)
    entries: list[tuple[str, str]] = []
    try:
        for key, item in items:
            name = None
            name = _encode(key, depth + 1)
            entries.append((name, _encode(item, depth + 1)))
    except RefusedError as refused:
        refused.within(f".keys()[{len(entries)}]" if name is None else step(key))
        raise
    return entries


def _key_step(key: object) -> str:
    return f"[{shown(key)}]"


def _field_step(name: object) -> str:
    return f".{name}"


def _registered(value: object, registered: RegisteredType, depth: int) -> str:
    name = _str(registered.name, depth)
    if isinstance(value, enum.Enum):
        return f'{{"$e":[{name},{_encode(_member(value), depth)}]}}'
    fields = [(field, _field(value, field)) for field in registered.fields or ()]
    return f'{{"$c":[{name},{_object(_entries(fields, depth, _field_step))}]}}'


def _member(value: enum.Enum) -> object:
    """Return the name of a member, or the names of the flags that a combination is made of."""
    cls = type(value)
    if cls.__members__.get(value.name) is value:
        return value.name
    if isinstance(value, enum.Flag):
        flags = list(value)
        if functools.reduce(operator.or_, flags, cls(0)) == value:
            return [flag.name for flag in flags]
    raise RefusedError(
        f"{shown(value)} is no member of {type_name(cls)} and no combination of its members"
    )


def _field(value: object, name: str) -> object:
    try:
        return getattr(value, name)
    except AttributeError:
        raise RefusedError(
            f"{type_name(type(value))} has no value for its field {name!r}; set it"
        ) from None


def _leaf(leaf: Leaf, value: object) -> str:
    return f'{{"{leaf.tag}":{_encode(leaf.store(value), 0)}}}'


def _check_depth(depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise RefusedError(
            f"it is nested deeper than {MAX_DEPTH} levels, or contains itself; "
            "store it flatter, or refer to its parts by an id"
        )


def _way_out(value: object) -> str:
    cls = type(value)
    name = type_name(cls)
    if isinstance(value, enum.Enum) or dataclasses.is_dataclass(cls):
        return (
            f"its type {name} is not registered; "
            f"call tracedjobs.register_type({cls.__name__}) right after the class is defined"
        )
    base = next((base for base in cls.__mro__ if base in _WRITERS), None)
    if base is not None:
        return (
            f"it is of type {name}, and would come back as a plain {base.__name__}; "
            "make it one, or a registered dataclass (tracedjobs.register_type)"
        )
    return (
        f"{shown(value)} is of type {name}; convert it to what can be stored (None, bool, int, "
        "float, str, list, tuple, dict, set, frozenset, bytes, datetime, date, time, timedelta, "
        "Decimal, UUID), or make its type an enum or a dataclass, with tracedjobs.register_type"
    )


def _writer_of(leaf: Leaf) -> _Writer:
    return lambda value, _depth: _leaf(leaf, value)


_WRITERS: dict[type, _Writer] = {
    type(None): _none,
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    list: _list,
    tuple: _tuple,
    dict: _dict,
    set: _set,
    frozenset: _frozenset,
    **{cls: _writer_of(leaf) for cls, leaf in LEAVES.items()},
}
