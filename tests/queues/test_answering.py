"""Who may tell a queue of a job's end when copies of its message come: one, then nobody."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tracedjobs import Context, Runtime, job
from tracedjobs._core import values
from tracedjobs.queues.answering import is_answered, kept_message, may_answer, note_answer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tracedjobs._core.records import JobRecord

PATIENCE = 0.5


@job(name="to be answered")
def answered(ctx: Context) -> str:
    ctx.step("one", str)
    return "done"


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with Runtime(f"sqlite:///{tmp_path}/jobs.db") as made:
        yield made


def head(runtime: Runtime, job_id: str) -> JobRecord:
    stored = runtime.store.load(job_id)
    assert stored is not None
    return stored.job


def submitted(runtime: Runtime) -> str:
    record = runtime.new_record(answered, (), {}, "j", message=values.encode({"chain": [1, "2"]}))
    runtime.record(record, answered.options.trace)
    return record.id


def test_of_copies_that_come_at_once_one_tells_and_the_next_when_it_did_not(
    runtime: Runtime,
) -> None:
    job_id = submitted(runtime)
    runtime.perform(job_id)
    wait = may_answer(runtime.store, job_id, PATIENCE)
    assert wait is not None
    assert 0.0 < wait <= PATIENCE  # who has done the job may be telling
    for _ in range(2):
        time.sleep(PATIENCE)
        with ThreadPoolExecutor(5) as threads:
            waits = list(
                threads.map(lambda _: may_answer(runtime.store, job_id, PATIENCE), [1] * 5)
            )
        assert waits.count(0.0) == 1
        assert None not in waits
    note_answer(runtime.store, job_id)
    assert may_answer(runtime.store, job_id, PATIENCE) is None


def test_the_note_is_of_one_run_and_leaves_what_is_kept_of_the_message(runtime: Runtime) -> None:
    job_id = submitted(runtime)
    note_answer(runtime.store, job_id)  # there is no end to tell of
    assert not is_answered(head(runtime, job_id))
    runtime.perform(job_id)
    note_answer(runtime.store, job_id)
    assert is_answered(head(runtime, job_id))
    assert kept_message(head(runtime, job_id)) == {"chain": [1, "2"]}
    runtime.rewind(job_id, "one")
    runtime.perform(job_id)
    assert not is_answered(head(runtime, job_id))
    assert kept_message(head(runtime, job_id)) == {"chain": [1, "2"]}
    assert kept_message(replace(head(runtime, job_id), message=None)) is None
