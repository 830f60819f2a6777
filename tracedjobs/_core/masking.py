"""What must not be told: values under keys that sound like secrets, at any depth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from typing import Any, Final

__all__ = ["FILTERED", "filter_parameters", "mask", "mask_text", "set_filter_parameters"]

FILTERED: Final = "[FILTERED]"
DEEPEST: Final = 32
"""Levels of nesting that are looked through; what lies deeper is not told."""
_PLAIN: Final = (str, bytes, int, float, bool, type(None))

_filters: tuple[str, ...] = (
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
)


def filter_parameters() -> Sequence[str]:
    """Parts of keys whose values are masked; letters of either case."""
    return _filters


def set_filter_parameters(parts: Sequence[str]) -> None:
    """Mask the values of keys that have one of `parts` in them, and no others.

    Raises `TypeError` for what is no sequence of texts.
    """
    global _filters  # noqa: PLW0603 - one a process, replaced whole
    if isinstance(parts, str) or not all(isinstance(part, str) and part for part in parts):
        msg = f"filter_parameters={parts!r} must be a list of texts that are not empty."
        raise TypeError(msg)
    _filters = tuple(part.lower() for part in parts)


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
    low = key.lower()
    return any(part in low for part in _filters)


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
