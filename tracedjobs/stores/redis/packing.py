"""Records as texts in Redis, and back.

Fields of the hash are short, for Redis keeps a hash whose values have 64 bytes at most in a third
of the memory: what may be longer is in keys of its own. No script decodes these texts.
"""

from __future__ import annotations

import json
import math
import zlib
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tracedjobs._core.clock import boot_id
from tracedjobs._core.compact import compact
from tracedjobs._core.first_run import SUBMITTED, FirstRun
from tracedjobs._core.records import (
    RECORD_VERSION,
    ControlRecord,
    JobRecord,
    Position,
    RunRecord,
    Status,
    StepRecord,
    Stored,
    TotalKey,
)
from tracedjobs.stores.base import written_by_newer

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AS_ITEMS",
    "UNTOUCHED",
    "VERSION_START",
    "Found",
    "begun_text",
    "end_entry",
    "hand_micros",
    "is_submitted_alike",
    "later_text",
    "name_text",
    "packed",
    "packed_place",
    "packed_position",
    "read_begun",
    "read_end_entry",
    "read_found",
    "read_total_field",
    "submitted_text",
    "to_micros",
    "total_field",
]

COMPACT: Final = 64
"""Bytes: the default of `hash-max-listpack-value`."""
SPILLED: Final = "#"
"""Begins a field whose text is in a key of its own."""
AS_ITEMS: Final = "="
"""The field of a cursor that is the number of items, as offsets are: so it stays as they move."""
OPEN: Final = ("step", "total", "unit", "step_started_at", "fingerprint", "entered")
IN_HASH: Final = frozenset(
    {"id", "status", "revision", "token", "wish", "lease_until", "saved_seq", "state"}
    | {"cursor", "items", "progressed_at", "meter", "counted", *OPEN}
    | {"spans_due", "steps_sent", "runs_sent", "root_sent"}
)
LATER: Final = (
    # The columns of a job's head that change when something happens to it. New ones are added at
    # the end, as in `SUBMITTED`, so that a head that was written without them is read with their
    # defaults.
    "run",
    "worker",
    "owner",
    "lease_boot",
    "lost_token",
    "rewinds",
    "resumptions",
    "items_redone",
    "reason",
    "error",
    "result",
    "started_at",
    "ended_at",
    "resume_at",
    "expires_at",
    "run_started_at",
    "lease_ttl",
    "stall",
    "handed_at",
)
_DECODER: Final = json.JSONDecoder()
_SUBMITTED_OF: Final = attrgetter(*SUBMITTED)
_LATER_OF: Final = attrgetter(*LATER)
_OPEN_OF: Final = attrgetter(*OPEN)


def to_micros(moment: float) -> str:
    """Seconds as whole microseconds."""
    return str(round(moment * 1e6)) if math.isfinite(moment) else "0"


def hand_micros(job: JobRecord) -> str:
    """Where the job stands in the index of its status, see `Keys.handed`; '' where it does not."""
    waits = job.status in {Status.INTERRUPTED, Status.PENDING} and job.queue is not None
    return "" if not waits or job.hand_at is None else to_micros(job.hand_at)


class Packed(NamedTuple):
    """The texts of a position: two fields of the hash, and what does not fit them."""

    items: str
    progressed: str
    cursor: str
    open: str
    spilled_cursor: str = ""
    spilled_open: str = ""

    @property
    def tail(self) -> str:
        """What stands behind the lease."""
        return f"{self.items} {self.progressed}"


def packed(job: JobRecord) -> Packed:
    """The texts of a job's position."""
    return _packed(job.cursor, job.items, _OPEN_OF(job), job.progressed_at)


def packed_position(position: Position | None, progressed_at: float | None) -> Packed:
    """The texts of what a save writes."""
    if position is None:
        return _packed("null", 0, (None,), progressed_at)
    opened = (
        position.step,
        position.total,
        position.unit,
        position.started_at,
        position.fingerprint,
        position.entered,
    )
    return _packed(position.cursor, position.items, opened, progressed_at)


def packed_place(position: Position | None, progressed_at: float | None) -> tuple[str, str] | None:
    """Of what a save writes, cursor and tail; `None` where that is not all, for a long cursor."""
    progressed = _progressed(progressed_at)
    if position is None:
        return "null", f"0 {progressed}"
    items, cursor = str(position.items), position.cursor
    if _is_long(cursor):
        return None
    return AS_ITEMS if cursor == items else cursor, f"{items} {progressed}"


def _progressed(at: float | None) -> str:
    return "-" if at is None else repr(float(at))


def _packed(
    cursor: str, items: int, opened: tuple[object, ...], progressed: float | None
) -> Packed:
    spilled_cursor = ""
    if cursor == str(items):
        cursor = AS_ITEMS
    elif _is_long(cursor):
        cursor, spilled_cursor = SPILLED, cursor
    open_text, spilled_open = _packed_open(opened)
    return Packed(
        items=str(items),
        progressed=_progressed(progressed),
        cursor=cursor,
        open=open_text,
        spilled_cursor=spilled_cursor,
        spilled_open=spilled_open,
    )


@lru_cache(maxsize=4096, typed=True)
def _packed_open(opened: tuple[object, ...]) -> tuple[str, str]:
    """The field of the open step, and its text when that is in a key of its own."""
    if opened[0] is None:
        return "-", ""
    text = compact(opened)
    if _is_long(text):
        return f"{SPILLED}{zlib.crc32(text.encode()):08x}", text
    return text, ""


class Found(NamedTuple):
    """A job as it was read: with its birth, by which it stands in the indexes."""

    born: str
    stored: Stored


def end_entry(job_id: str, status: str, name: str) -> str:
    """What is known of a job when its keys are gone: where it stands in the indexes."""
    return compact([job_id, status, name])


def read_end_entry(entry: str) -> tuple[str, str, str, str]:
    """Birth, id, status and name in an entry of the index of ends."""
    born, _, text = entry.partition(" ")
    job_id, status, name = json.loads(text)
    return born, job_id, status, name


def is_submitted_alike(old: JobRecord, new: JobRecord) -> bool:
    """Whether the first two lines of their heads are the same, of two records of one job."""
    return bool(_SUBMITTED_OF(old) == _SUBMITTED_OF(new))


def submitted_text(job: JobRecord) -> str:
    """The first two lines of the head, which hardly ever change, and may be long.

    Name and queue as fields of totals have them, so that a script can make such a field; then the
    columns that a submission sets.
    """
    return f"{_first_line(job.name, job.queue or '')}\n{compact(_SUBMITTED_OF(job))}\n"


@lru_cache(maxsize=1 << 10)
def _first_line(name: str, queue: str) -> str:
    return name_text(name) + compact(queue)


@lru_cache(maxsize=1 << 10)
def name_text(name: str) -> str:
    """What the head of a job of that name begins with."""
    return f"{compact(name)},"


def later_text(job: JobRecord, last_run: RunRecord | None) -> str:
    """The third line of the head: what else changes under `revision` only, with the last run."""
    later = _LATER_OF(job)
    if last_run is None and later == _UNTOUCHED:
        return UNTOUCHED  # as of all that are submitted
    return compact([later, last_run])


def begun_text(first: FirstRun) -> str:
    """The third line once the first run of a new job has begun."""
    return f",{float(first.now)!r},".join(_around_now(first.worker, first.owner, first.lease_ttl))


@lru_cache(maxsize=1 << 6)
def _around_now(worker: str, owner: str | None, lease_ttl: float) -> list[str]:
    """What stands around the moment in that line: all else in it is the same for many runs."""
    first = FirstRun("", "", worker, owner, lease_ttl, _SOME_MOMENT)
    columns = {**first.columns, "lease_boot": boot_id()}
    later = list(map(columns.get, LATER, _UNTOUCHED))
    return compact([later, first.record]).split(f",{_SOME_MOMENT!r},")


def read_found(job_id: str, reply: Sequence[Any]) -> Found:
    """The job in a reply of `load`; `StoreError` for one that a newer tracedjobs wrote."""
    fields, head, state, *rest = reply
    texts: list[Any] = [field or None for field in fields.split("\n")]
    born, status, revision, token, wish, saved, cursor, opened, meter, counted, due, sent = texts
    spilled_open, spilled_cursor, *parts = rest
    first, submitted, later = head.split("\n")
    columns = _submitted(job_id, submitted)
    columns["name"], _ = json.loads(f"[{first}]")
    later_columns, last_run = json.loads(later)
    columns.update(zip(LATER, later_columns, strict=False))
    seq, lease, items, progressed = saved.split(" ")
    steps_sent, runs_sent, root_sent = (sent or "0 0 0").split(" ")
    position: dict[str, Any] = {}
    if opened != "-":
        text = spilled_open if opened.startswith(SPILLED) else opened
        position = dict(zip(OPEN, json.loads(text), strict=False))
    job = JobRecord(
        **columns,
        **position,
        id=job_id,
        status=Status(status),
        revision=int(revision),
        token=token,
        wish=wish,
        saved_seq=int(seq),
        lease_until=int(lease) / 1e6,
        items=int(items),
        progressed_at=None if progressed == "-" else float(progressed),
        cursor={SPILLED: spilled_cursor, AS_ITEMS: items}.get(cursor, cursor),
        state=state,
        meter=meter,
        counted=int(counted or 0),
        spans_due=None if due is None else int(due) / 1e6,
        steps_sent=int(steps_sent),
        runs_sent=int(runs_sent),
        root_sent=int(root_sent),
    )
    steps, runs, controls = parts or ((), (), ())
    return Found(
        born=born,
        stored=Stored(
            job=job,
            steps=tuple(StepRecord(*json.loads(text)) for text in steps),
            runs=(
                *(RunRecord(*json.loads(text)) for text in runs),
                *(() if last_run is None else (RunRecord(*last_run),)),
            ),
            controls=tuple(ControlRecord(*json.loads(text)) for text in controls),
        ),
    )


def read_begun(job_id: str, first: FirstRun, reply: str) -> Stored:
    """The job in a reply of `begin` that has begun it: as it was submitted, but for `first`."""
    lease, submitted = reply.split("\n")
    columns = _submitted(job_id, submitted)
    columns |= first.columns
    columns |= {"id": job_id, "name": first.job_name, "revision": 1}
    columns |= {"lease_until": int(lease) / 1e6, "lease_boot": boot_id()}
    return Stored(_NEW.changed(columns), runs=(first.record,))


def _submitted(job_id: str, text: str) -> dict[str, Any]:
    """The columns in the second line of a head; see `read_found`."""
    columns, end = _DECODER.raw_decode(text)  # without the look for blanks that `loads` has
    if end != len(text):
        raise ValueError(f"{text[end:]!r} follows it")
    version = columns[0]
    if not isinstance(version, int):
        raise TypeError(f"{version!r} is no version")
    if version > RECORD_VERSION:
        raise written_by_newer(job_id, version)
    return dict(zip(SUBMITTED, columns, strict=False))


@lru_cache(maxsize=1 << 12)
def total_field(metric: str, job_name: str, queue: str, step: str, label: str) -> str:
    """The field of the shard's totals that a count of that key is added to."""
    return compact((metric, job_name, queue, step, label))


@lru_cache(maxsize=1 << 16)
def read_total_field(field: str) -> TotalKey:
    """The key of a field of totals."""
    metric, job_name, queue, step, label = json.loads(field)
    return metric, job_name, queue, step, label


_NEW: Final = JobRecord("", "", "", 0.0)
_SOME_MOMENT: Final = -1.25e-300
_UNTOUCHED: Final = _LATER_OF(_NEW)
UNTOUCHED: Final = compact([_UNTOUCHED, None])
"""The third line of the head of a job to which nothing has happened since it was submitted."""
VERSION_START: Final = f"[{RECORD_VERSION},"
"""What the second line of a head of this version begins with."""


def _is_long(text: str) -> bool:
    return len(text) > COMPACT or (not text.isascii() and len(text.encode()) > COMPACT)
