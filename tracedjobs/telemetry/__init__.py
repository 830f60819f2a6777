"""What jobs do, for others to see: metrics. Nothing is loaded, or runs, before it is asked for.

The core tells `tracedjobs.events` and writes its figures to the store; these modules render both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracedjobs._core.runtime import Runtime
    from tracedjobs.telemetry.store_collector import StoreCollector

__all__ = ["collector"]


def collector(runtime: Runtime, *, most_jobs: int = 200) -> StoreCollector:
    """A collector of the metrics of that runtime's store, to be registered.

    The same as `tracedjobs exporter` serves, for a process that has a `/metrics` of its own:
    `prometheus_client.REGISTRY.register(collector(runtime))`. Each scrape reads the store, at most
    every two seconds. `most_jobs`: how many running jobs have series of their own.
    """
    from tracedjobs.telemetry.store_collector import StoreCollector  # noqa: PLC0415 - when it is used

    return StoreCollector(runtime, most_jobs=most_jobs)
