"""What must not be told: values under keys that sound like secrets, at any depth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final

__all__ = ["FILTERED", "filter_parameters", "mask", "mask_text"]

FILTERED: Final = "[FILTERED]"
MOST_KNOWN: Final = 4096
"""Keys of which it is remembered whether they are masked."""
DEEPEST: Final = 32
"""Levels of nesting that are looked through; what lies deeper is not told."""
_PLAIN: Final = (str, bytes, int, float, bool, type(None))

filter_parameters: Final[list[str]] = [
    "passw",
    "secret",
    "token",
    "_key",
    "apikey",
    "api-key",
    "crypt",
    "salt",
    "certificate",
    "otp",
    "ssn",
    "cvv",
    "cvc",
    "authorization",
    "cookie",
    "credential",
    "private",
]
"""Parts of keys, in either case: what stands under a key that has one of them is masked.

One list a process, to be changed in place: `filter_parameters.append("iban")`.
"""


@dataclass(frozen=True, slots=True)
class _Known:
    """What was decided of keys, by that list."""

    of: list[str]
    keys: dict[str, bool]


_known = _Known([], {})


def _renewed() -> _Known:
    global _known  # noqa: PLW0603 - replaced whole, so that threads need no lock
    _known = _Known([*filter_parameters], {})
    return _known


def mask(value: Any) -> Any:
    """`value` with what stands under such keys masked; itself where nothing does."""
    return _mask(value, 0)


def mask_text(text: str, limit: int = 256) -> str:
    """A stored value, as `values` writes it, masked and cut to `limit` characters."""
    if "[" in text or "{" in text:
        try:
            text = json.dumps(_mask_stored(json.loads(text), 0), ensure_ascii=False)
        except (ValueError, RecursionError):
            text = json.dumps(FILTERED)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def masked_key(key: object) -> bool:
    """Whether what stands under that key is masked."""
    if not isinstance(key, str):
        return False
    known = _known
    if known.of != filter_parameters or len(known.keys) > MOST_KNOWN:
        known = _renewed()
    found = known.keys.get(key)
    if found is None:
        low = key.lower()
        found = known.keys[key] = any(part.lower() in low for part in known.of)
    return found


def _mask(value: Any, depth: int) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if depth > DEEPEST:
        return FILTERED  # or it holds itself
    if isinstance(value, Mapping):
        return _mask_items(value, depth)
    if is_dataclass(value) and not isinstance(value, type):
        found = {each.name: getattr(value, each.name, None) for each in fields(value)}
        masked = _mask_items(found, depth)
        return value if masked is found else masked
    if isinstance(value, (list, tuple, AbstractSet)):
        new = [_mask(each, depth + 1) for each in value]
        if all(a is b for a, b in zip(value, new, strict=True)):
            return value
        return tuple(new) if isinstance(value, tuple) else new
    return value


def _mask_items(value: Mapping[Any, Any], depth: int) -> Mapping[Any, Any]:
    new = {
        key: FILTERED if masked_key(key) else _mask(each, depth + 1) for key, each in value.items()
    }
    return value if all(new[key] is each for key, each in value.items()) else new


def _mask_stored(value: Any, depth: int) -> Any:
    # A dict whose keys are not all texts is stored as a list of pairs.
    if depth > DEEPEST:
        return FILTERED
    if isinstance(value, dict):
        return {
            key: FILTERED if masked_key(key) else _mask_stored(each, depth + 1)
            for key, each in value.items()
        }
    if isinstance(value, list):
        if len(value) == 2 and masked_key(value[0]):  # noqa: PLR2004 - a pair
            return [value[0], FILTERED]
        return [_mask_stored(each, depth + 1) for each in value]
    return value
