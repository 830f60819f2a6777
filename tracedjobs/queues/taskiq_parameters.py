"""The parameters of a continuable task of Taskiq: some its caller gives, others Taskiq resolves.

The caller's are the job's: kept in its record, and parsed by their annotations when its function
is called, as Taskiq parses a message's. What Taskiq resolves (`TaskiqDepends`) is of one delivery,
and reaches the function past the record.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, is_dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, get_type_hints

from pydantic import BaseModel
from taskiq.compat import parse_obj_as
from taskiq_dependencies.dependency import Dependency

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from inspect import Parameter

__all__ = ["of_the_job", "plain", "resolved_by_taskiq", "with_resolved"]

_resolved: Final[ContextVar[Mapping[str, object]]] = ContextVar("tracedjobs_taskiq_resolved")


@contextmanager
def with_resolved(resolved: Mapping[str, object]) -> Iterator[None]:
    """Call the job's function with these, besides its arguments."""
    token = _resolved.set(resolved)
    try:
        yield
    finally:
        _resolved.reset(token)


def resolved_by_taskiq(fn: Callable[..., Any]) -> dict[str, Any]:
    """The parameters that Taskiq resolves, with their annotations, and that of `return`."""
    hints = _hints(fn)
    names = [
        name
        for name, each in inspect.signature(fn).parameters.items()
        if _is_dependency(each, hints.get(name))
    ]
    return {name: hints.get(name, Any) for name in names} | {
        name: hint for name, hint in hints.items() if name == "return"
    }


def of_the_job(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` as the function of a job: with the parameters alone that its caller gives."""
    if not inspect.isfunction(fn) or not inspect.signature(fn).parameters:
        return fn  # and `@job` says what is wrong with it
    whole = inspect.signature(fn)
    hints = _hints(fn)
    resolved = {each for each in resolved_by_taskiq(fn) if each in whole.parameters}
    given = [each for each in whole.parameters.values() if each.name not in resolved]
    of_job = whole.replace(parameters=given)

    def bound(args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        found = of_job.bind(*args, **kwargs).arguments
        parsed = {
            name: _parsed(whole.parameters[name], hints.get(name), value)
            for name, value in found.items()
        }
        here = _resolved.get({})
        for name in resolved:
            if name not in here:
                msg = (
                    f"{fn.__qualname__} wants {name} of Taskiq, which resolves it in its workers "
                    f"alone: give it to a direct call, or leave the job to a worker."
                )
                raise TypeError(msg)
            parsed[name] = here[name]
        in_order = {name: parsed[name] for name in whole.parameters if name in parsed}
        return inspect.BoundArguments(whole, in_order)

    @wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        all_ = bound(args, kwargs)
        return fn(*all_.args, **all_.kwargs)

    @wraps(fn)
    async def call_async(*args: Any, **kwargs: Any) -> Any:
        all_ = bound(args, kwargs)
        return await fn(*all_.args, **all_.kwargs)

    made: Callable[..., Any] = call_async if inspect.iscoroutinefunction(fn) else call
    made.__signature__ = of_job  # type: ignore[attr-defined]  # inspect reads it
    return made


def plain(value: Any) -> Any:
    """An argument as Taskiq sends it: models and dataclasses as dicts, also inside of others."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if type(value) is dict:
        return {key: plain(each) for key, each in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(map(plain, value))
    return value


def _hints(fn: Callable[..., Any]) -> dict[str, Any]:
    """The annotations that can be resolved, but for that of `ctx`: often it cannot."""

    def carrier() -> None: ...

    inner = inspect.unwrap(fn)
    first = next(iter(inspect.signature(fn).parameters))
    found: dict[str, Any] = {}
    for name, annotation in inspect.get_annotations(inner).items():
        if name == first:
            continue
        carrier.__annotations__ = {name: annotation}
        try:
            found |= get_type_hints(carrier, globalns=inner.__globals__, include_extras=True)
        except NameError:
            continue
    return found


def _is_dependency(parameter: Parameter, hint: object) -> bool:
    return any(
        isinstance(each, Dependency)
        for each in (parameter.default, *getattr(hint, "__metadata__", ()))
    )


def _parsed(parameter: Parameter, hint: Any, value: Any) -> Any:
    if hint is None or parameter.kind is parameter.VAR_KEYWORD:
        return value
    if parameter.kind is parameter.VAR_POSITIONAL:
        return tuple(_parse(hint, each) for each in value)
    return _parse(hint, value)


def _parse(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    try:
        return parse_obj_as(hint, value)
    except (ValueError, TypeError, RuntimeError):
        return value  # as Taskiq does
