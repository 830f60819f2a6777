"""Celery's chains, groups and chords of continuable tasks: what follows a task is sent once."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import redis
from celery import chain, chord, group
from celery.app.task import Context

from tests.processes import PATIENCE, until
from tracedjobs.queues.celery import KEPT, _kept

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.queues.harness import Kind, Place
    from tests.queues.on_celery import OnCelery

MORE = """
import signal
from celery import signals

@app.task
def shout(text, path):
    note(path, text.upper())
    return text.upper()

@app.task
def complain(request, error, traceback, path):
    note(path, str(error))

@continuable(app, **SOON)
def gather(ctx, texts, path, items):
    for item in ctx.each("items", range(items)):
        note(path, f"{ctx.run} {item}")
        time.sleep(0.01)
    return sorted(texts)

@continuable(app, **SOON)
def fail(ctx, path):
    note(path, f"{ctx.run} 0")
    raise ValueError("it is broken")

def die_once(path):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)

def die_before_publishing(sender=None, body=None, **_):
    if sender.endswith(".shout") and "dies before" in str(body):
        die_once("before")

def die_after_success(sender=None, result=None, **_):
    if "counted 31" in str(result):
        die_once("after")

signals.before_task_publish.connect(die_before_publishing, weak=False)
signals.task_success.connect(die_after_success, weak=False)
"""


@pytest.fixture
def place(celery_on_redis: OnCelery, place_of: Callable[[Kind], Place]) -> Place:
    return place_of(replace(celery_on_redis, more=MORE))


def messages(place: Place) -> list[bytes]:
    """What waits in the broker, the newest first."""
    connection: Any = redis.Redis.from_url(place.kind.redis)  # type: ignore[attr-defined]  # celery's
    found: list[bytes] = connection.lrange(f"{place.kind.prefix}imports", 0, -1)  # type: ignore[attr-defined]
    return found


def give_again(place: Place, messages: list[bytes]) -> None:
    """Put copies of the messages into the broker, as it does itself after a visibility timeout."""
    connection: Any = redis.Redis.from_url(place.kind.redis)  # type: ignore[attr-defined]
    for each in messages:
        copy = json.loads(each)
        copy["headers"]["redelivered"] = True
        copy["properties"]["delivery_info"]["redelivered"] = True
        copy["properties"]["delivery_tag"] = os.urandom(8).hex()
        connection.lpush(f"{place.kind.prefix}imports", json.dumps(copy))  # type: ignore[attr-defined]


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def items_of(place: Place, path: Path) -> list[int]:
    return [item for _, item in place.lines(path)]


def test_what_follows_is_sent_once_though_copies_of_the_message_come_after_the_end(
    place: Place, tmp_path: Path
) -> None:
    app = place.app
    after, linked, body, errors = (tmp_path / each for each in ("after", "linked", "body", "err"))
    ran = [tmp_path / f"ran{number}" for number in range(5)]
    chained = chain(app.count.s(str(ran[0]), 20), app.shout.s(str(after))).apply_async()
    handle = app.count.apply_async((str(ran[1]), 20), link=app.shout.s(str(linked)))
    header = [app.count.s(str(path), 20) for path in ran[2:4]]
    whole = chord(header)(app.gather.s(str(body), 20))
    failed = app.fail.apply_async((str(ran[4]),), link_error=app.complain.s(str(errors)))
    sent = messages(place)
    assert len(sent) == 5
    worker = place.start()
    assert chained.get(timeout=PATIENCE) == "COUNTED 20"
    assert handle.get(timeout=PATIENCE) == "counted 20"
    assert whole.get(timeout=PATIENCE) == ["counted 20"] * 2
    with pytest.raises(ValueError, match="it is broken"):
        failed.get(timeout=PATIENCE)
    until(lambda: text(errors) and text(linked), "what is linked has run")

    give_again(place, sent * 5)
    until(lambda: not messages(place), "the copies are taken")
    assert place.kind.result(place.kind.send(app.simple, 1)) == 2  # behind them
    worker.stop()
    worker.process.wait(PATIENCE)
    assert not messages(place), place.told()
    assert text(after) == "COUNTED 20\n"
    assert text(linked) == "COUNTED 20\n"
    assert text(errors) == "it is broken\n"
    for path in (*ran[:4], body):
        assert items_of(place, path) == list(range(20))
    assert text(ran[4]) == "1 0\n"
    # And all of them have their results still.
    assert [each.get(timeout=1) for each in (chained, handle)] == ["COUNTED 20", "counted 20"]
    assert chained.parent.get(timeout=1) == "counted 20"
    assert whole.get(timeout=1) == ["counted 20"] * 2


def test_a_worker_killed_at_the_answer_neither_loses_what_follows_nor_sends_it_twice(
    place: Place, tmp_path: Path
) -> None:
    app = place.app
    before, after = tmp_path / "dies before", tmp_path / "told"
    place.start()
    lost = chain(app.count.s(str(tmp_path / "1"), 30), app.shout.s(str(before))).apply_async()
    told = chain(app.count.s(str(tmp_path / "2"), 31), app.shout.s(str(after))).apply_async()
    assert lost.get(timeout=PATIENCE) == "COUNTED 30"
    assert told.get(timeout=PATIENCE) == "COUNTED 31"
    assert (tmp_path / "before").exists()
    assert (tmp_path / "after").exists()
    assert place.kind.result(place.kind.send(app.simple, 1)) == 2
    assert text(before) == "COUNTED 30\n"
    assert text(after) == "COUNTED 31\n"
    for number, items in ((1, 30), (2, 31)):
        assert items_of(place, tmp_path / str(number)) == list(range(items))
    assert [lost.parent.get(timeout=1), told.parent.get(timeout=1)] == ["counted 30", "counted 31"]


def test_a_chord_of_interrupted_tasks_runs_its_body_once_which_may_be_interrupted_too(
    place: Place, tmp_path: Path
) -> None:
    app, body = place.app, tmp_path / "body"
    paths = [tmp_path / f"header{number}" for number in range(3)]
    plain = group(app.simple.s(number) for number in range(2)).apply_async()
    header = group(app.count.s(str(path), 150) for path in paths)
    whole = chord(header)(app.gather.s(str(body), 150))
    worker = place.start()
    until(lambda: len(place.lines(paths[0])) > 20, "a task of the header runs")
    worker.stop()
    other = place.start()
    until(lambda: len(place.lines(body)) > 20, "the body runs", within=PATIENCE)
    other.stop()
    place.start()
    assert whole.get(timeout=PATIENCE) == ["counted 150"] * 3
    assert plain.get(timeout=1) == [1, 2]
    worker.ends()
    other.ends()
    for path in (*paths, body):
        assert items_of(place, path) == list(range(150))
        assert {run for run, _ in place.lines(path)} <= {1, 2}
    stopped = [job for job in place.runtime.list() if job.runs[0].reason == "stopping"]
    assert len(stopped) >= 2  # of the header, and the body


def test_of_a_message_that_is_kept_celery_takes_the_rest_by_itself() -> None:
    given = {"id": "a", "root_id": "a", "timelimit": [5, None], "ignore_result": False}
    request = Context({**given, "headers": {"x": 1}, "retries": 3, "chain": None, "group_index": 0})
    kept = json.loads(_kept(request))
    assert kept == {"root_id": "a", "timelimit": [5, None], "headers": {"x": 1}, "group_index": 0}
    assert all(getattr(Context(kept), key) == getattr(request, key) for key in KEPT)
