"""Words of the command line to a job's arguments, by the annotations of its function."""

from __future__ import annotations

import json
import os
import types
import typing
from datetime import date, datetime, time
from decimal import Decimal
from inspect import Parameter
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, Literal, Union
from uuid import UUID

from tracedjobs.cli.options import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from inspect import Signature

    from tracedjobs._core.job import Job

__all__ = ["converted", "placeholder"]

_BOOLS: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def _bool(text: str) -> bool:
    try:
        return _BOOLS[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def _json_of(kind: type) -> Callable[[str], object]:
    def read(text: str) -> object:
        value = json.loads(text)
        if not isinstance(value, kind):
            raise ValueError(text)  # noqa: TRY004 - of the text, as for the others
        return value

    return read


_READERS: Final[Mapping[object, tuple[str, Callable[[str], object]]]] = {
    int: ("an int", int),
    float: ("a float", float),
    bool: ("a bool (true or false)", _bool),
    Decimal: ("a decimal number", Decimal),
    UUID: ("a UUID", UUID),
    datetime: ("a time such as 2026-03-01T14:05", datetime.fromisoformat),
    date: ("a date such as 2026-03-01", date.fromisoformat),
    time: ("a time of day such as 14:05", time.fromisoformat),
    list: ('a JSON list such as ["a", 1]', _json_of(list)),
    dict: ('a JSON object such as {"a": 1}', _json_of(dict)),
}


def converted(job: Job[..., Any], words: Sequence[str]) -> tuple[list[object], dict[str, object]]:
    """Positional and keyword arguments. `name=value` is a keyword where `name` is a parameter.

    Raises `Refused` for a word that does not fit its annotation, and for too many or too few.
    """
    signature = job.signature
    kinds = _annotations(job)
    given = list(signature.parameters.values())[1:]
    keywords = {
        each.name
        for each in given
        if each.kind in {Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY}
    }
    positions = [
        each
        for each in given
        if each.kind in {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}
    ]
    rest = next((each for each in given if each.kind is Parameter.VAR_POSITIONAL), None)
    args: list[object] = []
    named: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name in keywords:
            if name in named:
                raise Refused(f"The argument {name} is given twice.")
            named[name] = _read(value, name, kinds.get(name))
            continue
        parameter = positions[len(args)] if len(args) < len(positions) else rest
        if parameter is None:
            raise Refused(f"{word!r} is one argument too many. {_usage(job, signature)}")
        args.append(_read(word, parameter.name, kinds.get(parameter.name)))
    try:
        signature.bind(None, *args, **named)
    except TypeError as error:
        raise Refused(f"These arguments do not fit: {error}. {_usage(job, signature)}") from None
    return args, named


def placeholder(signature: Signature) -> str:
    """How the arguments are written: `PATH [limit=10]`."""
    words: list[str] = []
    for each in list(signature.parameters.values())[1:]:
        if each.kind is Parameter.VAR_POSITIONAL:
            words.append(f"[{each.name.upper()} ...]")
        elif each.kind is Parameter.VAR_KEYWORD:
            continue
        elif each.default is not Parameter.empty:
            words.append(f"[{each.name}={each.default!r}]")
        elif each.kind is Parameter.KEYWORD_ONLY:
            words.append(f"{each.name}=…")
        else:
            words.append(each.name.upper())
    return " ".join(words)


def _usage(job: Job[..., Any], signature: Signature) -> str:
    return f"{job.name} takes: {placeholder(signature) or 'no arguments'}"


def _annotations(job: Job[..., Any]) -> Mapping[str, object]:
    try:
        return typing.get_type_hints(job.fn)
    except (NameError, TypeError, AttributeError):
        # One that exists only for type checkers makes all unreadable; plain ones can still be told.
        names = {getattr(kind, "__name__", ""): kind for kind in _READERS}
        written = getattr(job.fn, "__annotations__", {})
        return {name: names.get(str(text), str) for name, text in written.items()}


def _read(text: str, name: str, kind: object) -> object:
    wanted: list[str] = []
    for member in _members(kind):
        if member is type(None):
            continue
        if typing.get_origin(member) is Literal:
            for choice in typing.get_args(member):
                if str(choice) == text:
                    return choice
                wanted.append(repr(choice))
            continue
        base = typing.get_origin(member) or member
        if base in _READERS:
            words, reader = _READERS[base]
            try:
                return reader(text)
            except (ValueError, ArithmeticError):
                wanted.append(words)
        elif _takes_text(base):
            return text
        else:
            wanted.append(f"a {getattr(base, '__name__', base)}, which only Python code can give")
    raise Refused(f"The argument {name} must be {' or '.join(wanted)}; found {text!r}.")


def _members(kind: object) -> Sequence[object]:
    if typing.get_origin(kind) in {Union, types.UnionType}:
        # What takes any text last, or the others would never have a turn.
        return sorted(typing.get_args(kind), key=lambda each: each is str)
    return (kind,)


def _takes_text(base: object) -> bool:
    if base in {None, str, object, Any, Parameter.empty, os.PathLike}:
        return True
    if isinstance(base, typing.TypeVar):
        return True
    return isinstance(base, type) and issubclass(base, PurePath)
