"""What holds on every queue, with its real broker and its real workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.processes import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.queues.harness import Place


def test_a_stopped_worker_saves_and_the_next_one_goes_on_at_the_next_item(
    place: Place, tmp_path: Path
) -> None:
    path = tmp_path / "items"
    worker = place.start()
    handle = place.kind.send(place.app.count, str(path), 300)
    until(lambda: len(place.lines(path)) > 50, "it runs")
    worker.stop()
    worker.ends()
    job_id = place.kind.id_of(handle)
    stopped = place.job(job_id)
    assert (stopped.status, stopped.runs[-1].reason) == ("interrupted", "stopping")
    place.start()
    assert place.kind.result(handle) == "counted 300"
    done = place.lines(path)
    assert [item for _, item in done] == list(range(300))
    assert {run for run, _ in done} == {1, 2}
    ended = place.job(job_id)
    assert (ended.status, ended.queue) == ("completed", "imports")


def test_a_killed_workers_job_is_handed_back_by_another_one(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "items"
    worker = place.start()
    handle = place.kind.send(place.app.count, str(path), 300)
    until(lambda: len(place.lines(path)) > 50, "it runs")
    worker.kill()
    killed_at = len(place.lines(path))
    place.start()
    until(lambda: len(place.lines(path)) > killed_at, place.told(), within=8.0)
    assert place.kind.result(handle) == "counted 300"
    items = [item for _, item in place.lines(path)]
    assert sorted(set(items)) == list(range(300))
    assert len(items) - 300 <= 1
