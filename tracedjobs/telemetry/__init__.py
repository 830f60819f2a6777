"""What jobs do, for others to see: spans, logs, metrics. Nothing is loaded before it is used.

The core tells `tracedjobs.events` and writes the rest to the store; these modules render both.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracedjobs._core.runtime import Runtime
    from tracedjobs.telemetry.lines import JobFilter, log_events
    from tracedjobs.telemetry.setup import configure, flush, watch
    from tracedjobs.telemetry.store_collector import StoreCollector

__all__ = ["JobFilter", "collector", "configure", "flush", "log_events", "watch"]

_HOMES = {
    "JobFilter": "lines",
    "configure": "setup",
    "flush": "setup",
    "log_events": "lines",
    "watch": "setup",
}


def __getattr__(name: str) -> object:
    """The functions whose modules load OpenTelemetry, when they are first used."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module  # noqa: PLC0415 - when it is used

    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ValueError as error:  # OpenTelemetry refuses a variable when it is imported
        why = str(error).rstrip(".")

    def off(*_: object, **__: object) -> None:
        if name == "configure":
            logging.getLogger("tracedjobs").warning("Telemetry is off: %s. Jobs go on.", why)

    return off


def collector(runtime: Runtime, *, most_jobs: int = 200) -> StoreCollector:
    """A collector of the metrics of that runtime's store, to be registered.

    The same as `tracedjobs exporter` serves, for a process that has a `/metrics` of its own:
    `prometheus_client.REGISTRY.register(collector(runtime))`. Each scrape reads the store, at most
    every two seconds. `most_jobs`: how many running jobs have series of their own.
    """
    from tracedjobs.telemetry.store_collector import StoreCollector  # noqa: PLC0415 - when it is used

    return StoreCollector(runtime, most_jobs=most_jobs)
