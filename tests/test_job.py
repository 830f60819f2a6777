"""`@job`: names, functions registered twice, and options that are refused.

Bad input to a job that runs is in `test_bad_input`.
"""

from __future__ import annotations

import importlib
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

import tracedjobs
from tracedjobs import AsyncContext, Context, Runtime
from tracedjobs.errors import (
    TracedJobsError,
    UnknownJobError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.both_ways import Lab


def some_job(ctx: Context) -> None: ...


MODULE = """
import tracedjobs

@tracedjobs.job(name={name!r})
def {function}(ctx):
    return {answer}
"""


def make_module(directory: Path, module: str, *, name: str, function: str, answer: int) -> Any:
    (directory / f"{module}.py").write_text(
        MODULE.format(name=name, function=function, answer=answer)
    )
    importlib.invalidate_caches()
    return importlib.import_module(module)


def test_another_function_under_a_taken_name_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    make_module(tmp_path, "taken_first", name="taken", function="import_users", answer=1)
    with pytest.raises(TracedJobsError) as caught:
        make_module(tmp_path, "taken_second", name="taken", function="import_all", answer=2)
    message = str(caught.value)
    assert "'taken'" in message
    assert "taken_first" in message
    assert "taken_second" in message
    assert "@job(name=…)" in message


def test_the_same_function_decorated_again_replaces_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = make_module(tmp_path, "reloaded", name="reloaded", function="answer", answer=1)
    job_id = runtime.submit(made.answer)
    del sys.modules["reloaded"]
    make_module(tmp_path, "reloaded", name="reloaded", function="answer", answer=2)
    assert runtime.perform(job_id).result == 2


def test_the_default_name_is_module_and_qualname() -> None:
    def local(ctx: Context) -> None: ...

    made = tracedjobs.job(local)
    assert made.name == f"{__name__}:{local.__qualname__}"
    assert made.fn is local
    assert repr(made) == f"<job {made.name}>"


def test_a_name_that_is_not_known_leaves_the_job_as_it_was(runtime: Runtime, lab: Lab) -> None:
    from tracedjobs._core import job as registry  # noqa: PLC0415 - for this test alone

    async def body(ctx: AsyncContext) -> None: ...

    job_id = lab.submit(body, name="vanishing")
    kept = registry._jobs.pop("vanishing")
    with pytest.raises(UnknownJobError, match="No job function named 'vanishing'"):
        lab.perform(job_id)
    assert lab.get(job_id).status == "pending"
    registry._jobs["vanishing"] = kept
    assert lab.perform(job_id).ok


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_resumptions", -1),
        ("max_resumptions", 1.5),
        ("max_resumptions", True),
        ("resume_delay", -1),
        ("resume_delay", "5"),
        ("checkpoint_every", -0.1),
        ("checkpoint_every", float("nan")),
        ("max_runtime", 0),
        ("stall_after", timedelta(0)),
        ("deadline", -1),
        ("steps", -1),
        ("steps", "rows"),
        ("retention", "7 days"),
        ("resume_errors_after_advancing", "no"),
        ("name", ""),
        ("name", 7),
    ],
)
def test_a_wrong_option_is_named_when_the_function_is_decorated(option: str, value: Any) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises((TypeError, ValueError), match=f"{option}=") as caught:
        tracedjobs.job(**options)(some_job)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("what", [7, None, "name"])
def test_only_a_function_can_be_a_job(what: Any) -> None:
    with pytest.raises(TypeError, match="@job decorates a function"):
        tracedjobs.job()(what)


def test_a_function_without_ctx_cannot_be_a_job() -> None:
    def nothing() -> None: ...

    with pytest.raises(TypeError, match="its first parameter must be ctx"):
        tracedjobs.job()(nothing)  # type: ignore[arg-type]  # what is tested
