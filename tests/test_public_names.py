"""The names and signatures that users rely on, and what `import tracedjobs` loads."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module

import pytest

import tracedjobs
from tracedjobs import errors

NAMES = {
    "AsyncContext",
    "Context",
    "Interrupt",
    "Job",
    "JobSnapshot",
    "Loop",
    "Outcome",
    "Runtime",
    "Status",
    "Step",
    "TracedJobsError",
    "__version__",
    "configure",
    "default_runtime",
    "job",
    "register_type",
}
ERRORS = {
    "Interrupt",
    "InvalidStepError",
    "InvalidTransitionError",
    "JobConflictError",
    "JobNotFoundError",
    "JobRunningError",
    "LeaseLostError",
    "MissingExtraError",
    "ResumeLimitError",
    "SerializationError",
    "SourceChangedError",
    "SourceError",
    "StoreError",
    "StoreUnavailableError",
    "TracedJobsError",
    "UnadvanceableCursorError",
    "UnknownJobError",
}
STEP = "(self, name, fn=None, *args, start=None, total=None, isolated=False, stall_after=None, transaction=None)"  # noqa: E501 - one signature
SETTINGS = (
    "lease_ttl=30.0, stopping=None, modules=(), handle_signals=True, worker=None, queue=None)"
)
SIGNATURES = {
    "job": "(fn=None, /, *, name=None, max_resumptions=None, resume_delay=5.0, "
    "resume_errors_after_advancing=True, checkpoint_every=1.0, max_runtime=None, stall_after=60.0, "
    "deadline=None, steps=None, retention=datetime.timedelta(days=7), "
    "trace='shared')",
    "configure": f"(store=None, *, {SETTINGS}",
    "default_runtime": "()",
    "register_type": "(cls, name=None)",
    "Context.step": STEP,
    "AsyncContext.step": STEP,
    "Context.each": "(self, name, source, *, start=None, total=None, isolated=False, "
    "stall_after=None, transaction=None)",
    "Context.checkpoint": "(self)",
    "Context.interrupt": "(self, reason)",
    "Context.notify": "(self, event, /, **payload)",
    "Step.set": "(self, cursor)",
    "Step.advance": "(self, from_=None)",
    "Step.checkpoint": "(self)",
    "Loop.finish": "(self)",
    "Job.submit": "(self, *args, job_id=None, **kwargs)",
    "Job.run": "(self, *args, job_id=None, **kwargs)",
    "Job.run_async": "(self, *args, job_id=None, **kwargs)",
    "Runtime.__init__": f"(self, store=None, *, {SETTINGS}",
    "Runtime.submit": "(self, job, /, *args, job_id=None, via=None, **kwargs)",
    "Runtime.perform": "(self, job_id, *, stopping=None)",
    "Runtime.perform_async": "(self, job_id, *, stopping=None)",
    "Runtime.get": "(self, job_id)",
    "Runtime.list": "(self, *, status=None, name=None, limit=50, before=None)",
    "Runtime.pause": "(self, job_id, *, by=None)",
    "Runtime.resume": "(self, job_id, *, by=None)",
    "Runtime.cancel": "(self, job_id, *, by=None)",
    "Runtime.retry": "(self, job_id, *, by=None)",
    "Runtime.rewind": "(self, job_id, step, cursor=…, *, by=None)",
    "Runtime.recover": "(self, *, by=None)",
    "Runtime.close": "(self)",
}
PROPERTIES = {
    "Context": {"id", "name", "run", "resumptions", "resumed", "current", "completed", "state"},
    "Step": {"name", "cursor", "resumed", "total", "items"},
    "Job": {"fn", "name", "options"},
    "Outcome": {"job_id", "run", "status", "reason", "resume_in", "result", "error", "ok"},
    "JobSnapshot": {
        "status",
        "run",
        "resumptions",
        "arguments",
        "steps",
        "runs",
        "error",
        "trace_id",
    },
}
NOT_LOADED = {
    "asyncio",
    "click",
    "opentelemetry",
    "prometheus_client",
    "redis",
    "rich",
    "structlog",
}


def public(name: str) -> object:
    """The public object of that dotted name."""
    found: object = tracedjobs
    for part in name.split("."):
        found = getattr(found, part)
    return found


def signature_of(name: str) -> str:
    """The signature without its annotations."""
    signature = inspect.signature(public(name))  # type: ignore[arg-type]  # all of them are callable
    bare = [
        each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()
    ]
    text = str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    return text.replace("'…'", "…")


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a new interpreter has loaded after the statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(ended.stdout)}


def test_the_public_names_are_these() -> None:
    assert set(tracedjobs.__all__) == NAMES
    assert set(dir(tracedjobs)) == NAMES
    assert set(errors.__all__) == ERRORS


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_a_public_signature_is_as_promised(name: str) -> None:
    assert signature_of(name) == SIGNATURES[name]


@pytest.mark.parametrize("name", sorted(PROPERTIES))
def test_a_public_object_has_what_is_promised(name: str) -> None:
    cls = public(name)
    assert isinstance(cls, type)
    declared = {each for base in cls.__mro__ for each in vars(base)}
    if name == "Job":  # attributes of the instance
        declared |= set(vars(tracedjobs.job(lambda ctx: None)))
    assert PROPERTIES[name] <= declared


@pytest.mark.parametrize("name", sorted(NAMES - {"__version__"}))
def test_every_public_name_has_a_docstring_of_its_own(name: str) -> None:
    found = public(name)
    assert found.__doc__
    if isinstance(found, type):
        assert "__doc__" in vars(found)
        for member, value in vars(found).items():
            if not member.startswith("_") and (callable(value) or isinstance(value, property)):
                assert inspect.getdoc(value), f"{name}.{member}"


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_every_error_is_explained_and_derives_from_the_one_base(name: str) -> None:
    error = getattr(errors, name)
    assert vars(error)["__doc__"]
    if name == "Interrupt":
        assert not issubclass(error, Exception)
    else:
        assert issubclass(error, errors.TracedJobsError)


def test_the_version_is_that_of_the_distribution() -> None:
    assert tracedjobs.__version__.count(".") >= 2


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tracedjobs' has no attribute 'nonsense'"):
        import_module("tracedjobs").nonsense  # noqa: B018 - what is tested


@pytest.mark.parametrize(
    "statement",
    [
        "import tracedjobs",
        f"from tracedjobs import {', '.join(sorted(NAMES - {'__version__'}))}",
        "import tracedjobs; tracedjobs.Runtime('memory://').list()",
    ],
    ids=["import", "every name", "a look into a store"],
)
def test_importing_loads_no_optional_package_and_no_asyncio(statement: str) -> None:
    assert loaded_by(statement) & NOT_LOADED == set()


def test_a_def_job_runs_without_asyncio_and_optional_packages() -> None:
    program = (
        "import tracedjobs\n"
        "@tracedjobs.job\n"
        "def work(ctx):\n"
        "    ctx.step('one', str)\n"
        "    for _ in ctx.each('two', range(3)): ctx.state['n'] = 1\n"
        "runtime = tracedjobs.Runtime('memory://')\n"
        "assert runtime.perform(runtime.submit(work)).ok\n"
        "runtime.close()"
    )
    assert loaded_by(program) & NOT_LOADED == set()


def test_submodules_are_there_without_being_imported() -> None:
    program = (
        "import tracedjobs\nassert tracedjobs.errors.StoreError and tracedjobs.events.subscribe"
    )
    assert loaded_by(program) & NOT_LOADED == set()
