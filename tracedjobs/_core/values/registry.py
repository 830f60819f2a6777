"""The enums and dataclasses that may be stored, and the names they are stored under.

Not a way to import them: a stored name only ever finds a class that was registered before.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import sys
from typing import TypeVar

from tracedjobs._core.values.refusal import type_name

T = TypeVar("T")

_BUILTINS = (int, float, str, bytes, list, tuple, dict, set, frozenset)


@dataclasses.dataclass(frozen=True, slots=True)
class RegisteredType:
    """One class, the name it is stored under, where it is defined, its fields (None: an enum)."""

    cls: type
    name: str
    origin: str
    fields: tuple[str, ...] | None


_by_name: dict[str, RegisteredType] = {}
_by_class: dict[type, RegisteredType] = {}


def register_type(cls: type[T], name: str | None = None) -> type[T]:
    """Allow members of an enum, or instances of a dataclass, in everything a job stores.

    A member is stored by its name, a combination of flags by the names of its flags. A dataclass is
    stored by the fields of its `__init__` and rebuilt as `cls(**fields)`, which runs its
    `__post_init__`: fields with `init=False` are computed again, attributes that are no fields are
    not stored, and a field that was added since takes its default.

    Args:
        cls: The class. Instances of its subclasses need a registration of their own.
        name: What is stored for it, by default `module:qualname`, where the module of a script is
            the stem of its file. Give the old one here when the class moves. A class registered
            under a second name is stored under that one, and read under both.

    Returns:
        The class, so that this is also a decorator.

    Raises:
        TypeError: `cls` is neither an enum nor a dataclass that can be rebuilt from its fields.
        ValueError: Another class has the name, or the name is empty. The same `module:qualname`
            again, as after a reload, takes the place of the class; instances of the former are
            stored as before and come back as the new one.

    Example:
        >>> import enum
        >>> @register_type
        ... class Color(enum.Enum):
        ...     RED = 1
    """
    fields = _fields(cls)
    origin = _origin(cls)
    name = origin if name is None else name
    if not name:
        raise ValueError(
            f"the name of {type_name(cls)} is {name!r}, but must be a text that is not empty"
        )
    known = _by_name.get(name)
    if known is not None and known.cls is not cls and known.origin != origin:
        raise ValueError(
            f"the name {name!r} is taken by {type_name(known.cls)}; "
            f"register {type_name(cls)} under another: register_type({cls.__name__}, name=...)"
        )
    _by_name[name] = _by_class[cls] = RegisteredType(cls, name, origin, fields)
    return cls


def registered_class(cls: type) -> RegisteredType | None:
    """Return what is registered for exactly this class."""
    return _by_class.get(cls)


def registered_name(name: str) -> RegisteredType | None:
    """Return what is registered under this name."""
    return _by_name.get(name)


def _fields(cls: object) -> tuple[str, ...] | None:
    if isinstance(cls, enum.EnumMeta):
        return None
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        raise TypeError(
            f"register_type takes an enum or a dataclass, not {cls!r}; "
            "make it one, or convert its instances to a type that can be stored"
        )
    if issubclass(cls, _BUILTINS):
        raise TypeError(
            f"{type_name(cls)} is a dataclass and a builtin type as well, and only its fields "
            "would be stored; make what it holds a field"
        )
    fields = tuple(field.name for field in dataclasses.fields(cls) if field.init)
    try:
        inspect.signature(cls).bind(**dict.fromkeys(fields))
    except TypeError as error:
        raise TypeError(
            f"{type_name(cls)} could not be rebuilt from its fields ({error}); give every InitVar "
            f"a default, and let __init__ take {', '.join(fields) or 'nothing'} by keyword"
        ) from None
    return fields


def _origin(cls: type) -> str:
    """Return `module:qualname`, the same for a script and for the module it is imported as."""
    module = cls.__module__
    if module == "__main__":
        main = sys.modules[module]
        spec = getattr(main, "__spec__", None)
        file = getattr(main, "__file__", None)
        if spec is not None:
            module = spec.name
        elif file is not None:
            from pathlib import Path  # noqa: PLC0415 - slow to import, and only scripts need it

            module = Path(file).stem
    return f"{module}:{cls.__qualname__}"
