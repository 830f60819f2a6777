"""Servers that are stopped, frozen, full, slow or refuse: what a store says, and a run does."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.stores.records import TOKEN, a_job, a_save, a_step, loaded, running
from tests.stores.redis_proxies import running_proxy
from tests.stores.redis_servers import RedisServer, running_redis, until
from tracedjobs import Context, Runtime, Status, job
from tracedjobs._core.first_run import FirstRun
from tracedjobs._core.records import Change
from tracedjobs._core.saver import saver
from tracedjobs.errors import LeaseLostError, StoreError, StoreUnavailableError
from tracedjobs.stores import open_store
from tracedjobs.stores.redis.node import FRESH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tracedjobs import Outcome
    from tracedjobs.stores import Store

TIMEOUT = 0.2
LEASE_TTL = TIMEOUT * 8


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with running_redis(appendonly="yes") as made:
        yield made


def calls_of(store: Store, head: Any) -> list[Callable[[], object]]:
    """One call of each method."""
    return [
        lambda: store.create(a_job("new")),
        lambda: store.load("a"),
        lambda: store.begin("a", FirstRun("job", TOKEN, "here", None, 30.0, 5.0)),
        lambda: store.page(status=None, name=None, before=None, limit=50),
        lambda: store.page(status=None, name=None, before="a", limit=50),
        lambda: store.change(Change("a", head.revision, {"wish": "pause"})),
        lambda: store.save([a_save(9)]),
        lambda: store.save_one(a_save(9)),
        lambda: store.complete_step("a", TOKEN, a_step(), position=0, seq=9, state=None),
        lambda: store.expired(limit=9),
        lambda: store.steps_of_last_completed("job"),
        lambda: store.purge(limit=9),
    ]


def test_a_frozen_server_blocks_no_call_for_a_third_of_a_lease(server: RedisServer) -> None:
    store = open_store(server.url, timeout=TIMEOUT)
    fresh = open_store(server.url, timeout=TIMEOUT)
    head = running(store)
    with server.frozen():
        for call in [*calls_of(store, head), *calls_of(fresh, head)]:
            began = time.monotonic()
            with pytest.raises(StoreUnavailableError, match="cannot be reached"):
                call()
            assert time.monotonic() - began < LEASE_TTL / 3
    assert store.save_one(a_save(20))


def test_a_stopped_server_is_told_at_once_and_taken_again_when_it_is_back(
    server: RedisServer,
) -> None:
    store = open_store(server.url, timeout=TIMEOUT)
    head = running(store)
    server.kill()
    for call in calls_of(store, head):
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            call()
    server.start()
    assert loaded(store).job == head
    assert store.save_one(a_save(1))


def test_a_full_server_refuses_writes_as_a_whole_and_is_read(server: RedisServer) -> None:
    store = open_store(server.url)
    head = running(store)
    before = loaded(store)
    with server.client() as client:
        client.config_set("maxmemory", "1")
        for call in (
            lambda: store.create(a_job("new")),
            lambda: store.change(Change("a", head.revision, {"wish": "pause"})),
            lambda: store.save([a_save(1)]),
            lambda: store.complete_step("a", TOKEN, a_step(), position=0, seq=2, state="{}"),
        ):
            with pytest.raises(StoreUnavailableError, match="its memory is full"):
                call()
        assert loaded(store) == before
        assert store.load("new") is None
        client.config_set("maxmemory", "0")
    assert store.save([a_save(1)]) == {"a": (TOKEN, None)}


def test_a_replica_refuses_writes_and_the_reason_is_told(server: RedisServer) -> None:
    store = open_store(server.url)
    store.create(a_job())
    with running_redis(replicaof=f"127.0.0.1 {server.port}") as replica:
        until(replica.in_step, "the replica is in step")
        with pytest.raises(StoreUnavailableError, match="it is a read-only replica"):
            open_store(replica.url).create(a_job("b"))


def test_a_server_that_takes_no_more_clients_is_tried_again(server: RedisServer) -> None:
    store = open_store(server.url)
    with server.client() as client:
        client.config_set("maxclients", "1")
        with pytest.raises(StoreUnavailableError, match="max number of clients"):
            store.create(a_job())
        client.config_set("maxclients", "100")
    assert store.create(a_job())


def test_a_server_that_loads_its_data_is_tried_again(server: RedisServer) -> None:
    store = open_store(server.url)
    for number in range(300):
        store.create(a_job(f"job{number}"))
    with server.client() as client:
        if not client.config_get("loading-process-events-interval-bytes"):
            pytest.skip("this server answers nothing while it loads so little")
        client.save()
    server.kill()
    server.settings |= {"appendonly": "no", "key-load-delay": "2000"}
    server.settings["loading-process-events-interval-bytes"] = "1024"
    server.start(wait=False)
    seen: list[str] = []

    def loads() -> bool:
        try:
            store.load("job0")
        except StoreUnavailableError as error:
            seen.append(str(error))
            return False
        return True

    until(loads, "it has loaded")
    assert any("still loading its data" in each for each in seen), seen[-3:]


def test_a_slow_server_is_waited_for_within_the_limit(server: RedisServer) -> None:
    with running_proxy(server.port) as proxy:
        store = open_store(f"redis://127.0.0.1:{proxy.port}", timeout=3)
        head = running(store)
        proxy.delay = 0.25  # there and back: half a second
        assert store.save([a_save(1)]) == {"a": (TOKEN, None)}
        impatient = open_store(f"redis://127.0.0.1:{proxy.port}", timeout=TIMEOUT)
        with pytest.raises(StoreUnavailableError):
            impatient.load("a")
        assert store.change(Change("a", head.revision, {"wish": "pause"}))


def test_a_slow_server_that_has_to_be_told_a_script_is_unavailable_and_not_wrong(
    server: RedisServer,
) -> None:
    timeout = 1.0
    with running_proxy(server.port) as proxy:
        store = open_store(f"redis://127.0.0.1:{proxy.port}/1", timeout=timeout)
        assert store.create(a_job())
        with server.client() as client:
            client.script_flush()
            # Connecting takes two answers, and its own is the third: more than the limit.
            proxy.delay = 0.2
            client.client_kill_filter(_type="normal", skipme=True)
        time.sleep(2 * FRESH)
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="has not taken a script of ours in time"):
            store.load("a")
        assert time.monotonic() - began < timeout * 8 / 3
        assert loaded(store).job.id == "a"


def test_an_answer_that_comes_late_is_never_taken_for_another(server: RedisServer) -> None:
    with running_proxy(server.port) as proxy:
        store = open_store(f"redis://127.0.0.1:{proxy.port}", timeout=TIMEOUT)
        for name in ("a", "b"):
            running(store, name)
        proxy.delay = TIMEOUT
        with pytest.raises(StoreUnavailableError):
            store.load("a")
        proxy.delay = 0.0
        for _ in range(20):
            assert loaded(store, "b").job.id == "b"


# -- runs ---


@job(name="outage:counts", checkpoint_every=0.1)
def counts(ctx: Context, path: str, pace: float) -> str:
    with open(path, "a", buffering=1) as file:  # noqa: PTH123 - as a job would
        for item in ctx.each("items", range(100_000)):
            file.write(f"{item}\n")
            time.sleep(pace)
            if ctx.run > 1 and item % 50 == 49:
                return ctx.interrupt("enough")
    return "counted"


class Performing:
    """A run in a thread."""

    def __init__(self, runtime: Runtime, job_id: str) -> None:
        self.outcomes: list[Outcome | BaseException] = []

        def perform() -> None:
            try:
                self.outcomes.append(runtime.perform(job_id))
            except BaseException as error:
                self.outcomes.append(error)

        self.thread = threading.Thread(target=perform)
        self.thread.start()

    def outcome(self) -> Outcome:
        self.thread.join(20)
        (found,) = self.outcomes
        if isinstance(found, BaseException):
            raise found
        return found


def lines(path: Any) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.parametrize("how", ["frozen", "stopped", "full"])
def test_a_run_goes_on_and_interrupts_itself_before_its_lease_could_end(
    server: RedisServer, tmp_path: Any, how: str
) -> None:
    path = tmp_path / "lines"
    with Runtime(server.url, lease_ttl=LEASE_TTL, handle_signals=False) as runtime:
        job_id = runtime.submit(counts, str(path), 0.005)
        run = Performing(runtime, job_id)
        until(lambda: len(lines(path)) > 50, "it runs")
        away = time.monotonic()
        if how == "stopped":
            server.kill()
            outcome = run.outcome()
            ended = time.monotonic()
            server.start()
        elif how == "frozen":
            with server.frozen():
                outcome = run.outcome()
                ended = time.monotonic()
        else:
            with server.client() as client:
                client.config_set("maxmemory", "1")
                outcome = run.outcome()
                ended = time.monotonic()
                client.config_set("maxmemory", "0")
        assert (outcome.status, outcome.reason) == (Status.INTERRUPTED, "store_unavailable")
        assert 0.5 * LEASE_TTL < ended - away < 1.5 * LEASE_TTL
        done = len(lines(path))

        def again() -> bool:
            try:
                runtime.recover()
                return runtime.get(job_id).status is not Status.RUNNING
            except StoreError:
                return False

        until(again, "its lease has ended")
        second = runtime.perform(job_id)
        assert second.reason == "enough"
    items = lines(path)
    assert sorted(set(items)) == list(range(max(items) + 1))  # nothing is lost
    assert items[:done] == list(range(done))


def test_a_short_outage_is_not_noticed_by_the_run(server: RedisServer, tmp_path: Any) -> None:
    path = tmp_path / "lines"
    with Runtime(server.url, lease_ttl=4.0, handle_signals=False) as runtime:
        job_id = runtime.submit(counts, str(path), 0.002)
        run = Performing(runtime, job_id)
        until(lambda: len(lines(path)) > 50, "it runs")
        with server.frozen():
            before = len(lines(path))
            until(lambda: len(lines(path)) > before + 300, "it goes on")
        until(lambda: runtime.get(job_id).items > before + 100, "it is saved again")
        runtime.pause(job_id)
        assert run.outcome().status is Status.PAUSED
    items = lines(path)
    assert items == list(range(len(items)))


def test_submit_and_controls_fail_fast_and_clearly_while_the_server_is_away(
    server: RedisServer,
) -> None:
    with Runtime(server.url, lease_ttl=LEASE_TTL) as runtime:
        job_id = runtime.submit(counts, "path", 0.1)
        server.kill()
        for call in (
            lambda: runtime.submit(counts, "path", 0.1),
            lambda: runtime.pause(job_id),
            runtime.list,
            runtime.recover,
        ):
            began = time.monotonic()
            with pytest.raises(StoreUnavailableError, match=f"127.0.0.1:{server.port} cannot be"):
                call()
            assert time.monotonic() - began < 1


# -- a server that lost its newest writes ---


def test_a_job_goes_on_from_the_older_cursor_of_a_server_that_lost_its_newest_writes(
    server: RedisServer, tmp_path: Any
) -> None:
    server.settings["appendonly"] = "no"
    server.kill()
    server.start()
    path = tmp_path / "lines"
    with Runtime(server.url, lease_ttl=LEASE_TTL, handle_signals=False) as runtime:
        job_id = runtime.submit(counts, str(path), 0.002)
        run = Performing(runtime, job_id)
        until(lambda: runtime.get(job_id).items > 20, "it was saved")
        with server.client() as client:
            client.save()
        older = runtime.get(job_id).items
        until(lambda: runtime.get(job_id).items > older + 100, "it was saved later")
        server.kill()
        server.start()
        until(lambda: runtime.get(job_id).items > older + 100, "the run itself saves it again")
        runtime.pause(job_id)
        assert run.outcome().status is Status.PAUSED


@job(name="outage:in_two_steps", checkpoint_every=0.1, retention=60)
def in_two_steps(ctx: Context, path: str) -> str:
    def first() -> None:
        with open(path, "a") as file:  # noqa: PTH123 - as a job would
            file.write("-1\n")

    ctx.step("first", first)
    while not Path(f"{path}.go").exists():
        time.sleep(0.01)
    with open(path, "a", buffering=1) as file:  # noqa: PTH123 - as a job would
        for item in ctx.each("second", range(40)):
            file.write(f"{item}\n")
            time.sleep(0.01)
    return "done"


@pytest.mark.parametrize("ends", ["saves", "stopped"])
def test_a_run_whose_completed_step_was_lost_leaves_a_job_that_can_go_on(
    server: RedisServer, tmp_path: Path, ends: str
) -> None:
    server.settings["appendonly"] = "no"
    server.kill()
    server.start()
    path, go = tmp_path / "lines", tmp_path / "lines.go"
    with Runtime(server.url, lease_ttl=LEASE_TTL, handle_signals=False) as runtime:
        store, change = runtime.store, runtime.store.change

        def kept(made: Change) -> bool:
            done = change(made)
            if made.lease_ttl is not None:
                with server.client() as client:
                    client.save()  # as of the begin of the run, and no later
            return done

        vars(store)["change"] = kept
        job_id = runtime.submit(in_two_steps, str(path))
        run = Performing(runtime, job_id)
        until(lambda: runtime.get(job_id).steps[:1], "the first step is completed")
        (of_job,) = saver.runs()
        until(lambda: of_job.progress.order, "the run knows that, and asks for it no more")
        with pytest.MonkeyPatch.context() as patch:
            if ends != "saves":
                patch.setattr(saver, "_save", lambda *_: None)
            server.kill()
            server.start()
            assert runtime.get(job_id).steps == ()
            go.touch()
            if ends == "stopped":
                until(lambda: len(lines(path)) > 10, "it is in the second step")
                of_job.request_stop("stopping")
        with pytest.raises(LeaseLostError):
            run.outcome()
        assert runtime.get(job_id).steps == ()
        del vars(store)["change"]
        until(lambda: job_id in runtime.recover(), "it is found lost")
        again = runtime.perform(job_id)
    assert (again.status, again.result) == (Status.COMPLETED, "done")
    assert lines(path).count(-1) == 2
    assert sorted(set(lines(path))) == list(range(-1, 40))


def test_of_two_runs_of_one_number_only_that_with_the_token_can_write(
    server: RedisServer,
) -> None:
    server.settings["appendonly"] = "no"
    server.kill()
    server.start()
    store = open_store(server.url)
    store.create(a_job())
    with server.client() as client:
        client.save()
    old = running(store)  # run 1 with TOKEN, at revision 1: the server forgets it
    for at in range(2):
        store.complete_step("a", TOKEN, a_step(f"s{at}"), position=at, seq=at, state=None)
    server.kill()
    server.start()
    begin = {"status": Status.RUNNING, "token": "another", "run": 1}
    until(lambda: store.change(Change("a", 0, begin, lease_ttl=30.0)), "it is taken again")
    after = loaded(store)
    assert after.job.revision == old.revision
    assert store.save([a_save(50)]) == {"a": ("another", None)}
    assert not store.save_one(a_save(51))
    assert not store.complete_step("a", TOKEN, a_step(), position=0, seq=9, state=None)
    ends = {"status": Status.COMPLETED, "token": None}
    assert not store.change(Change("a", old.revision, ends, if_token=TOKEN))
    assert loaded(store) == after


def test_a_run_whose_completed_steps_were_lost_is_fenced_off_and_its_job_is_found(
    server: RedisServer,
) -> None:
    server.settings["appendonly"] = "no"
    server.kill()
    server.start()
    store = open_store(server.url)
    running(store)
    store.complete_step("a", TOKEN, a_step("one"), position=0, seq=1, state=None)
    with server.client() as client:
        client.save()
    store.complete_step("a", TOKEN, a_step("two"), position=1, seq=2, state=None)
    server.kill()
    server.start()
    time.sleep(2 * FRESH)

    def third() -> bool:
        return store.complete_step("a", TOKEN, a_step("three"), position=2, seq=3, state=None)

    assert third() is False
    assert [step.name for step in loaded(store).steps] == ["one"]
    assert store.save([a_save(9)]) == {"a": (None, None)}
    assert [head.id for head in store.expired(limit=9)] == ["a"]
