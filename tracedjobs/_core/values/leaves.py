"""Values without parts that JSON has no type for: each with its tag and both directions.

Not the containers, nor registered types: those are in `encoding` and `decoding`.
"""

from __future__ import annotations

import binascii
import re
import sys
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from tracedjobs._core.values import moments

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal
    from uuid import UUID

_HEXADECIMAL = re.compile(r"-?[0-9a-f]+")
_DECIMAL = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?(?:E[+-][0-9]+)?|s?NaN[0-9]*|Infinity)")


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tag, how a value becomes plain JSON under that tag, and how it comes back.

    `load` raises `ValueError`, `TypeError`, `LookupError` or `ArithmeticError` for what `store`
    never writes.
    """

    tag: str
    store: Callable[[Any], object]
    load: Callable[[Any], object]


def _store_int(value: int) -> str:
    return f"{value:x}"


def _load_int(payload: str) -> int:
    return int(_matching(_HEXADECIMAL, payload), 16)


def _load_float(payload: str) -> float:
    if payload not in ("nan", "inf", "-inf"):
        raise ValueError(payload)
    return float(payload)


def _store_bytes(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode("ascii")


def _load_bytes(payload: str) -> bytes:
    return binascii.a2b_base64(payload, strict_mode=True)


def _store_decimal(value: Decimal) -> str:
    # A context with capitals=0 writes a small "e"; no other text of a Decimal has one.
    return str(value).replace("e", "E")


def _load_decimal(payload: str) -> Decimal:
    from decimal import Decimal  # noqa: PLC0415 - few jobs need it

    value = Decimal(_matching(_DECIMAL, payload))
    # A context that does not trap InvalidOperation turns what is out of range into NaN.
    if value.is_nan() != ("NaN" in payload):
        raise ValueError(payload)
    return value


def _load_uuid(payload: object) -> UUID:
    from uuid import UUID  # noqa: PLC0415 - few jobs need it

    value = UUID(str(payload))
    if str(value) != payload:
        raise ValueError(payload)
    return value


def _matching(pattern: re.Pattern[str], payload: str) -> str:
    if pattern.fullmatch(payload) is None:
        raise ValueError(payload)
    return payload


LARGE_INT = Leaf("$i", _store_int, _load_int)
ODD_FLOAT = Leaf("$f", float.__repr__, _load_float)
_DECIMALS = Leaf("$dec", _store_decimal, _load_decimal)
_UUIDS = Leaf("$uuid", str, _load_uuid)

LEAVES: dict[type, Leaf] = {
    bytes: Leaf("$b", _store_bytes, _load_bytes),
    datetime: Leaf("$dt", moments.store_moment, moments.load_datetime),
    time: Leaf("$time", moments.store_moment, moments.load_time),
    date: Leaf("$date", moments.store_date, moments.load_date),
    timedelta: Leaf("$td", moments.store_timedelta, moments.load_timedelta),
}

LEAF_OF_TAG: dict[str, Leaf] = {
    leaf.tag: leaf for leaf in (*LEAVES.values(), LARGE_INT, ODD_FLOAT, _DECIMALS, _UUIDS)
}


def late_leaf(cls: type) -> Leaf | None:
    """Return the leaf of a type whose module is not imported here, to keep the import light."""
    for module, name, leaf in (("decimal", "Decimal", _DECIMALS), ("uuid", "UUID", _UUIDS)):
        if getattr(sys.modules.get(module), name, None) is cls:
            return leaf
    return None
