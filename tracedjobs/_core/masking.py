"""What must not be told: values under keys that sound like secrets, at any depth, in texts too.

It never raises: what cannot be looked through is not told.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from operator import is_
from typing import Any, Final

__all__ = ["FILTERED", "filter_parameters", "mask", "mask_text", "shown"]

FILTERED: Final = "[FILTERED]"
UNREADABLE: Final = "[UNREADABLE]"
"""Stands for what raised when it was looked at."""
MOST_KNOWN: Final = 4096
"""Keys of which it is remembered whether they are masked."""
DEEPEST: Final = 32
"""Levels of nesting that are looked through; what lies deeper is not told."""
MOST_VISITED: Final = 10_000
"""Collections and texts that are looked through in one value; what comes later is not told."""
PAIR: Final = 2
_BARE: Final = frozenset({int, float, bool, type(None)})
_BEGINS_JSON: Final = frozenset('{["')

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

_USERINFO: Final = re.compile(r"(://[^\s/?#:@\"']*+:)[^\s/?#\"']*@")
_HIDDEN: Final = r"""
(
    (?:
        ["'][^"'\\]{0,100}? (?:PARTS) [^"'\\]{0,100}+ \\*+["']\s*+ (?::|,|=>?) \s*+
        | (?<![\w.%\[\]-]) [\w.%\[\]-]{0,100}? (?:PARTS) [\w.%\[\]-]{0,100}+ =
    )
    (?:\\++["'])?+
)
(
    (?<=\\["']) [^"'\\]*+
    | "(?:[^"\\]|\\.)*+"?+ | '(?:[^'\\]|\\.)*+'?+
    | (?!\[FILTERED) [\[{(].*+
    | (?:(?:basic|bearer|digest|token)\s++)?+ [^\s,;&#"'<>]++
)
"""
"""In a text that is no JSON: a key, in quotes or before a `=`, and what stands under it.

An object or a list takes all that is left, for where it ends only a parser could tell.
"""


@dataclass(frozen=True, slots=True)
class _Known:
    """What was decided of keys, by that list."""

    of: list[str]
    parts: tuple[str, ...]
    keys: dict[str, bool]

    def masked(self, key: object) -> bool:
        """Whether what stands under that key is masked."""
        if isinstance(key, bytes):
            key = key.decode("latin-1")
        elif not isinstance(key, str):
            return False
        found = self.keys.get(key)
        if found is None:
            low = key.lower()
            found = any(part in low for part in self.parts)
            if len(self.keys) < MOST_KNOWN:
                self.keys[key] = found
        return found


def _decide() -> _Known:
    of = [*filter_parameters]
    return _Known(of, tuple(str(each).lower() for each in of), {})


_known = _decide()


@lru_cache(maxsize=4)
def _in_text(parts: tuple[str, ...]) -> re.Pattern[str]:
    either = "|".join(map(re.escape, parts)) or "(?!)"
    return re.compile(_HIDDEN.replace("PARTS", either), re.VERBOSE | re.IGNORECASE | re.DOTALL)


def mask(value: Any) -> Any:
    """`value` with what stands under such keys masked; itself where nothing does."""
    global _known  # noqa: PLW0603 - replaced whole, so that threads need no lock
    if _known.of != filter_parameters:
        _known = _decide()
    if type(value) is dict and _tells_nothing(value, _known.keys):
        return value
    return _Masking(_known).value(value, 0)


def _tells_nothing(value: dict[Any, Any], known: dict[str, bool]) -> bool:
    """Whether nothing is to be masked, as far as one look at each key and value can tell."""
    for key, each in value.items():
        if known.get(key) is not False:
            return False
        kind = type(each)
        if kind not in _BARE and (kind is not str or _may_hide(each)):
            return False
    return True


def mask_text(text: str, limit: int = 256) -> str:
    """A stored value, as `values` writes it, masked and cut to `limit` characters."""
    text = mask(text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def shown(value: object) -> str:
    """What `value` says of itself, masked: for those who write what is no text."""
    try:
        return str(mask(str(mask(value))))
    except Exception:  # anybody's `__str__`
        return UNREADABLE


class _Masking:
    """One value that is looked through."""

    __slots__ = ("_known", "_left")

    def __init__(self, known: _Known) -> None:
        self._known = known
        self._left = MOST_VISITED

    def value(self, value: Any, depth: int) -> Any:
        """`value` masked, or itself."""
        kind = type(value)
        if kind in _BARE:
            return value
        if kind is str and not _may_hide(value):
            return value
        self._left -= 1
        if depth > DEEPEST or self._left < 0:
            return FILTERED  # or it holds itself
        try:
            return self._looked_through(value, depth)
        except Exception:  # anybody's object, which must not harm a job
            return UNREADABLE

    def _looked_through(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self._text(value, depth)
        if isinstance(value, (bytes, bytearray)):
            text = value.decode("utf-8", "surrogateescape")
            masked = self._text(text, depth)
            return value if masked == text else masked.encode("utf-8", "surrogateescape")
        if isinstance(value, Mapping):
            return self._items(value, depth)
        if is_dataclass(value) and not isinstance(value, type):
            return self._named(value, (each.name for each in fields(value)), depth)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return self._named(value, value._fields, depth)
        if isinstance(value, (list, tuple, AbstractSet, deque)):
            return self._elements(value, depth)
        return value

    def _items(self, value: Mapping[Any, Any], depth: int) -> Mapping[Any, Any]:
        known, keys = self._known, self._known.keys
        new: dict[Any, Any] = {}
        for key, each in value.items():
            hidden = keys.get(key) if type(key) is str else None
            if known.masked(key) if hidden is None else hidden:
                new[key] = FILTERED
            elif type(each) not in _BARE:
                masked = self.value(each, depth + 1)
                if masked is not each:
                    new[key] = masked
        return {**value, **new} if new else value

    def _named(self, value: Any, names: Iterable[str], depth: int) -> Any:
        found = {name: getattr(value, name, None) for name in names}
        masked = self._items(found, depth)
        return value if masked is found else masked

    def _elements(self, value: Collection[Any], depth: int) -> Any:
        if len(value) == PAIR and isinstance(value, (list, tuple)):
            # Of a mapping, perhaps: so are headers given, and dicts stored whose keys are no texts.
            key = value[0]
            if self._known.masked(key):
                return (key, FILTERED) if isinstance(value, tuple) else [key, FILTERED]
        new = [self.value(each, depth + 1) for each in value]
        if all(map(is_, value, new)):
            return value
        return tuple(new) if isinstance(value, tuple) else new

    def _text(self, text: str, depth: int) -> str:
        if text.lstrip()[:1] in _BEGINS_JSON:
            try:
                stored = json.loads(text)
            except RecursionError:
                return FILTERED
            except ValueError:
                pass  # it only looks like it, or is cut
            else:
                masked = self.value(stored, depth + 1)
                return text if masked is stored else json.dumps(masked, ensure_ascii=False)
        new = _USERINFO.sub(rf"\1{FILTERED}@", _in_text(self._known.parts).sub(_filtered, text))
        return text if new == text else new


def _may_hide(text: str) -> bool:
    # What is masked in a text is in quotes, or comes after a `=` or before an `@`.
    return '"' in text or "=" in text or "'" in text or "@" in text


def _filtered(found: re.Match[str]) -> str:
    quote = found[2][:1] if found[2][:1] in {'"', "'"} else ""
    return f"{found[1]}{quote}{FILTERED}{quote}"
