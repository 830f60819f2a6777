"""What the first delivery of a job's message does, in this process and without a broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tracedjobs import Context, Runtime, Status, events, job
from tracedjobs._core import trace
from tracedjobs._core.trace import Trace
from tracedjobs.errors import JobConflictError
from tracedjobs.queues.base import Continuable
from tracedjobs.queues.delivery import Delivery, Done, Over
from tracedjobs.stores.redis import RedisStore
from tracedjobs.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.stores.redis_servers import RedisServer
    from tracedjobs._core.first_run import FirstRun
    from tracedjobs._core.records import Count, JobRecord, Stored

TRACE = Trace("1" * 32, "2" * 16, sampled=True).text()


class Direct(Continuable):
    """A queue without messages: what is published is delivered by the test."""

    family = "direct"
    queue = "direct"

    def as_task(self, fn: Callable[..., Any], options: dict[str, Any]) -> Any:
        raise NotImplementedError

    def execute(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        raise NotImplementedError

    def send(self, job: JobRecord) -> None:
        raise NotImplementedError


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with Runtime(f"sqlite:///{tmp_path}/jobs.db") as made:
        yield made


seen: list[Any] = []


@job(name="plain", steps=3)
def plain(ctx: Context, first: int, second: int = 2) -> list[int]:
    seen.append(ctx._run.begun)
    ctx.step("one", int)
    return [ctx.run, first, second]


def test_a_first_run_knows_what_the_publisher_did_not(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    continuable = Direct(plain, runtime)
    record = runtime.new_record(plain, (1,), {}, "a", queue="direct")
    assert runtime.store.create(record.changed({"steps_expected": None}))

    class Tracing:
        def new_trace(self, _job: JobRecord, _scope: str) -> str:
            return TRACE

    monkeypatch.setattr(trace, "installed", Tracing())
    monkeypatch.setattr(trace._log, "exception", lambda *_: None)
    assert continuable.deliver(Delivery("a")) == Done([1, 1, 2])
    assert runtime.get("a").trace_id == "1" * 32
    began = seen.pop().job
    assert (began.steps_expected, began.trace, began.status) == (3, TRACE, Status.RUNNING)
    assert [run.outcome for run in runtime.get("a").runs] == ["completed"]


def test_a_message_of_another_job_takes_no_lease(runtime: Runtime) -> None:
    @job(name="other")
    def other(ctx: Context) -> None: ...

    continuable = Direct(plain, runtime)
    runtime.submit(other, job_id="a")
    with pytest.raises(JobConflictError):
        continuable.deliver(Delivery("a"))
    assert runtime.get("a").status == "pending"


def test_a_copy_of_the_message_is_a_duplicate_while_the_first_run_goes_on(runtime: Runtime) -> None:
    verdicts: list[object] = []

    @job(name="twice")
    def twice(ctx: Context) -> None:
        verdicts.append(continuable.deliver(Delivery("a")))

    continuable = Direct(twice, runtime)
    continuable.publish(Delivery("a"))
    assert continuable.deliver(Delivery("a")) == Done(None)
    assert verdicts == [Over("duplicate")]
    assert continuable.deliver(Delivery("a")) == Done(None)
    totals = runtime.store.survey().totals
    assert totals["duplicates_refused", "twice", "direct", "", ""] == 1
    assert sum(n for key, n in totals.items() if key[0] == "queue_wait_bucket") == 1


def test_a_record_that_is_not_kept_is_there_before_its_message_is_sent(
    redis_server: RedisServer,
) -> None:
    @job(name="not kept", retention=0)
    def not_kept(ctx: Context) -> None:
        pass

    with Runtime(f"{redis_server.url}?prefix=notkept") as runtime:
        direct = Direct(not_kept, runtime)
        for job_id in ("a", "b"):  # at first, and where the server knows the script
            wait = direct.start_publishing(Delivery(job_id))
            runtime.get(job_id)
            assert isinstance(direct.deliver(Delivery(job_id)), Done)
            wait()
            assert runtime.store.load(job_id) is None


def test_a_message_that_is_quicker_than_its_record_makes_it_once(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def listener(event: events.Event) -> None:
        told.append(event.name)

    with Runtime(f"{redis_server.url}?prefix=quicker") as runtime:
        assert isinstance(runtime.store, RedisStore)
        creating = runtime.store.creating

        def late(job: JobRecord, counts: Sequence[Count] = ()) -> Callable[[], bool]:
            def wait() -> bool:
                return creating(job, counts)()

            return wait

        monkeypatch.setattr(runtime.store, "creating", late)
        direct, delivery = Direct(plain, runtime), Delivery("a", (1,))
        events.subscribe(listener)
        try:
            wait = direct.start_publishing(delivery)
            assert isinstance(direct.deliver(delivery), Done)
            wait()
        finally:
            events.unsubscribe(listener)
        totals = runtime.store.survey().totals

    assert told.count("job_submitted") == 1
    assert totals["jobs_enqueued", "plain", "direct", "", ""] == 1
    assert totals["runs", "plain", "direct", "", "completed"] == 1


def test_a_lease_is_given_back_by_who_is_ended_while_it_takes_it(tmp_path: Path) -> None:
    class Ended(SQLiteStore):
        def begin(self, job_id: str, first: FirstRun) -> tuple[Stored | None, bool]:
            super().begin(job_id, first)
            raise KeyboardInterrupt

    with Runtime(Ended(f"{tmp_path}/jobs.db")) as runtime:
        continuable = Direct(plain, runtime)
        continuable.publish(Delivery("a", (1,)))
        with pytest.raises(KeyboardInterrupt):
            continuable.deliver(Delivery("a"))
        there = runtime.get("a")
        assert (there.status, there.reason) == ("interrupted", "KeyboardInterrupt")
        assert [run.reason for run in there.runs] == ["KeyboardInterrupt"]
