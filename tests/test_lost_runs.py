"""Jobs that kill their process each time: tried as often as `max_resumptions` says, then failed."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import pytest

from tests.processes import PATIENCE, PERFORM, Children
from tracedjobs import Context, Runtime, Status, job
from tracedjobs.errors import ResumeLimitError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tracedjobs.events import Event

LONG: Final = 600.0
"""Seconds of a lease that no test waits for."""
LIMIT: Final = "Job was resumed a maximum of 1 times"

KILLS: Final = """
@job(name="kills", max_resumptions=1, checkpoint_every=0)
def kills(ctx: Context, at: int) -> None:
    # Does as many items in each run, and kills its process.
    if at == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    for done, item in enumerate(ctx.each("items", range(100)), 1):
        if done > at:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@job(name="kills", max_resumptions=1, checkpoint_every=0)
def kills(ctx: Context, at: int) -> str:
    """Stands for the job of the same name in the children, and kills nobody."""
    return ",".join(str(item) for item in ctx.each("items", range(5)))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def files(url: str) -> Iterator[Runtime]:
    """A runtime on a file, for tests with other processes."""
    with Runtime(url) as made:
        yield made


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as made:
        yield made


def killed_run(children: Children, url: str, job_id: str) -> None:
    """One run of the job in a process of its own, which it kills."""
    child = children.start(KILLS + PERFORM, url, job_id, LONG)
    assert child.process.wait(PATIENCE) == -signal.SIGKILL, child.text()


@pytest.mark.parametrize("at", [0, 2], ids=["before its first save", "after progress"])
@pytest.mark.parametrize("recovers", [False, True], ids=["as it is", "recovered"])
def test_a_job_that_kills_its_process_each_time_fails_at_its_limit(
    files: Runtime, children: Children, url: str, at: int, told: list[Event], *, recovers: bool
) -> None:
    job_id = files.submit(kills, at)
    for _ in range(2):
        killed_run(children, url, job_id)
        assert files.get(job_id).lost
        if recovers:
            assert files.recover() == [job_id]
    with pytest.raises(ResumeLimitError, match=LIMIT):
        files.perform(job_id)
    found = files.get(job_id)
    assert (found.status, found.lost, found.run, found.resumptions) == ("failed", False, 2, 1)
    assert found.error is not None
    assert found.error.type == "tracedjobs.errors.ResumeLimitError"
    assert found.error.message == LIMIT
    assert [(run.outcome, run.reason) for run in found.runs] == [("lost", "lost")] * 2
    assert all(run.ended_at is not None for run in found.runs)
    assert None not in (found.ended_at, found.expires_at)
    # At least what was saved: the item after it may have been done too.
    assert [(step.name, step.cursor) for step in found.steps] == ([("items", 2 * at)] if at else [])
    names = [event.name for event in told]
    # The children told of the first loss where nobody recovered the job here.
    assert names.count("job_lost") == (2 if recovers else 1)
    assert names.count("job_failed") == 1


def test_a_job_that_failed_at_its_limit_runs_again_after_a_retry_and_is_limited_again(
    files: Runtime, children: Children, url: str
) -> None:
    job_id = files.submit(kills, 0)
    killed_run(children, url, job_id)
    killed_run(children, url, job_id)
    with pytest.raises(ResumeLimitError, match=LIMIT):
        files.perform(job_id)
    assert files.retry(job_id).status is Status.INTERRUPTED
    killed_run(children, url, job_id)
    with pytest.raises(ResumeLimitError, match=LIMIT):
        files.perform(job_id)
    assert files.get(job_id).run == 3
    files.retry(job_id)
    assert files.perform(job_id).result == "0,1,2,3,4"


def test_a_failed_job_is_not_lost_and_what_fails_it_is_asked_once(
    files: Runtime, children: Children, url: str
) -> None:
    @job(name="kills-at-once", max_resumptions=0)
    def at_once(ctx: Context) -> None:
        raise AssertionError("it was run here")

    source = KILLS.replace('"kills", max_resumptions=1', '"kills-at-once", max_resumptions=0')
    source = source.replace(", at: int", ", at: int = 0")
    job_id = files.submit(at_once)
    child = children.start(source + PERFORM, url, job_id, LONG)
    assert child.process.wait(PATIENCE) == -signal.SIGKILL, child.text()
    with pytest.raises(ResumeLimitError, match="a maximum of 0 times"):
        files.perform(job_id)
    assert files.recover() == []
    assert files.list(status="lost") == []
    assert [found.id for found in files.list(status="failed")] == [job_id]
