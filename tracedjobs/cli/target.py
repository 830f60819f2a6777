"""From `MODULE:JOB` on the command line to the job function, or one line that says why not."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tracedjobs._core.job import Job
from tracedjobs.cli.options import Refused

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["find_target"]


def find_target(target: str) -> Job[..., Any]:
    """Import MODULE, a dotted name or the path of a `.py` file, and find JOB in it.

    Raises `Refused` with one line that says what is wrong, and what there is instead.
    """
    place, colon, name = target.rpartition(":")
    if not colon:
        place, name = target, ""
    if not place:
        _refuse(f"{target!r} names no module: write MODULE:JOB, such as jobs.py:import_users")
    module = _from_file(place) if _is_path(place) else _from_name(place)
    return _job_in(module, place, name)


def _is_path(place: str) -> bool:
    return place.endswith(".py") or os.sep in place


def _from_name(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    if not all(part.isidentifier() for part in name.split(".")):
        _refuse(f"{name!r} is neither a module's name nor the path of a .py file")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            _refuse(f"There is no module {error.name!r} here ({Path.cwd()}) nor on Python's path")
        _refuse_failing(name, error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the module is the user's code
        _refuse_failing(name, error)


def _from_file(place: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        _refuse(f"There is no file {place}")
    # As `python file.py` does: so that the job's name, and what the file imports, are the same.
    sys.path.insert(0, str(path.parent))
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None:
        if getattr(loaded, "__file__", None) == str(path):
            return loaded
        _refuse(f"The file {place} has the name of the module {name!r}, which is loaded already")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        _refuse(f"{place} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the module is the user's code
        _refuse_failing(place, error)
    return module


def _job_in(module: ModuleType, place: str, name: str) -> Job[..., Any]:
    jobs = {
        each: found
        for each, found in vars(module).items()
        if isinstance(found, Job) and found.fn.__module__ == module.__name__
    }
    found: object = module if name else None
    for part in name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, Job):
        return found
    named = [job for job in jobs.values() if job.name == name]
    if named:
        return named[0]
    there = f"jobs there: {', '.join(sorted(jobs))}" if jobs else "it has no jobs: see @job"
    if not name:
        _refuse(f"Which job of {place}? Write {place}:JOB; {there}")
    if found is None:
        _refuse(f"There is no job {name!r} in {place}; {there}")
    what = "function, but no job: decorate it with @job" if callable(found) else "value, and no job"
    return _refuse(f"There is no job {name!r} in {place}: it is a {what}; {there}")


def _refuse_failing(place: str, error: BaseException) -> NoReturn:
    if isinstance(error, SystemExit):
        _refuse(
            f"Importing {place} ends the program (SystemExit: {error.code}): keep what it does as "
            f"a script behind `if __name__ == '__main__':`"
        )
    frames = [
        each
        for each in traceback.extract_tb(error.__traceback__)
        if "importlib" not in each.filename
    ]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        where = f" ({error.filename}, line {error.lineno})"
        error = type(error)(error.msg)
    _refuse(f"Importing {place} fails: {type(error).__name__}: {error}{where}")


def _refuse(message: str) -> NoReturn:
    raise Refused(message + ".")
