"""The open step: where it stands, and how the job moves it on.

The loop that is a step is in `loop`.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from tracedjobs._core import values
from tracedjobs._core.options import checked_total
from tracedjobs._core.records import Position, StepRecord
from tracedjobs._core.stretch import Entered
from tracedjobs._core.waiting import DONE
from tracedjobs.errors import InvalidStepError, UnadvanceableCursorError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tracedjobs._core.flight_recorder import Cell
    from tracedjobs._core.run import Run
    from tracedjobs._core.transaction import Ledger
    from tracedjobs._core.waiting import Flow

__all__ = ["Step"]


class Step:
    """A named part of a job that is being done, with the cursor that says how far.

    `name`; `cursor`, the position: everything before it is done; `resumed`, whether an earlier run
    had begun the step; `total`, how many items there are, settable when it is found late.
    """

    __slots__ = (
        "_at",
        "_cell",
        "_cursor",
        "_entered",
        "_fingerprint",
        "_first",
        "_ledger",
        "_run",
        "_total",
        "_unit",
        "name",
        "resumed",
        "stall_after",
        "started_at",
    )

    def __init__(
        self,
        run: Run,
        name: str,
        *,
        start: object,
        position: Position | None,
        total: int | None,
        stall_after: float | None,
    ) -> None:
        """Stand at `position`, or at `start` in a step that begins."""
        self._run = run
        self._ledger: Ledger | None = None
        self._cell: Cell | None = None
        self.name = name
        self.resumed = position is not None
        self.stall_after = stall_after
        self._unit: str | None = None
        self._fingerprint: str | None = None
        self._entered: str | None = None
        if position is None:
            self.started_at = run.store.time()
            self._cursor = start
            self._total = total
            mark = (values.encode_cursor(start), 0)
        else:
            self.started_at = position.started_at
            self._cursor = values.decode(position.cursor)
            self._total = position.total if total is None else total
            self._unit = position.unit
            self._fingerprint = position.fingerprint
            mark = (position.cursor, position.items)
        self._first = mark[0]
        # Cursor and count are one value, so that a reader in another thread sees both or neither.
        self._at: object = mark

    def __repr__(self) -> str:
        """Name and cursor."""
        return f"<{type(self).__name__} {self.name!r} at {self.cursor!r}>"

    @property
    def cursor(self) -> Any:
        """The position: everything before it is done."""
        return self._cursor

    @property
    def items(self) -> int:
        """How many items are done, in all runs together."""
        return self._mark()[1]

    @property
    def total(self) -> int | None:
        """How many items there are, or `None`; see `total_unit` of the sources for bytes."""
        return self._total

    @total.setter
    def total(self, value: int | None) -> None:
        self._total = checked_total(value, self.name)

    def set(self, cursor: object) -> Awaitable[None]:
        """Move to `cursor`: one more item is done. A checkpoint.

        In `async def` jobs await it. Raises `SerializationError` for a cursor that cannot be
        stored, and leaves the position as it was.
        """
        run = self._run
        run.check()
        self._check_open()
        text = values.encode_cursor(cursor)
        mark = (text, self._mark()[1] + 1)
        if self._ledger is not None:
            return run.wait(self._set_in_transaction(self._ledger, cursor, mark))
        self._cursor = cursor
        self._at = mark
        cell = self._cell
        if cell is not None:
            try:
                cell.note(cursor, mark[1])
            except ValueError:  # the run ended under it, in another thread
                run.check()
                raise
        if run.attention:
            return run.wait(run.attend(advanced=True))
        return DONE

    def advance(self, from_: object = None) -> Awaitable[None]:
        """Move to the successor of `from_`, or of the cursor: one more item is done. A checkpoint.

        `int` and `datetime.date` have a successor. For anything else, `bool`, `datetime` and
        `None` included, `UnadvanceableCursorError` is raised.
        """
        return self.set(_successor(self.cursor if from_ is None else from_))

    def checkpoint(self) -> Awaitable[None]:
        """Let the job be interrupted here, without moving the cursor."""
        self._run.check()
        return self._run.wait(self._run.attend(advanced=False))

    def _set_in_transaction(
        self, ledger: Ledger, cursor: object, mark: tuple[str, int]
    ) -> Flow[None]:
        try:
            yield from ledger.write(*mark)
            self._cursor = cursor
            self._at = mark
            if self._run.attention:
                yield from self._run.attend(advanced=True)
        except Exception:
            yield from ledger.begin()  # the job may catch it and go on
            raise
        yield from ledger.begin()

    # -- for the core ---

    @property
    def advanced(self) -> bool:
        """Whether this run moved the cursor."""
        return self._mark()[0] != self._first

    def position(self) -> Position:
        """Where it stands, to be saved. Called from the saver's thread too."""
        cursor, items = self._mark()
        return tuple.__new__(  # as `Position(...)` does it, in half its time
            Position,
            (
                self.name,
                cursor,
                items,
                self._total,
                self._unit,
                self.started_at,
                self._fingerprint,
                self._entered,
            ),
        )

    def begin_transaction(self) -> Flow[None]:
        """Let what the user does from here on be in one transaction, if that was asked for."""
        if self._ledger is not None:
            yield from self._ledger.begin()

    def write_in(self, ledger: Ledger | None) -> None:
        """From here on commit each position together with what the user did."""
        self._ledger = ledger

    def keep_in(self, cell: Cell) -> None:
        """Keep the position in the flight recorder too, unless the user's database keeps it."""
        if self._ledger is None:
            self._open_in(cell, None)
            self._cell = cell

    def _open_in(self, cell: Cell, numbers: memoryview | None) -> None:
        try:
            done = len(self._run.progress.order)
            if not cell.open_step(self.position(), numbers, completed=done):
                self._run.ask_for_save()
        except ValueError:  # the run ended under it, in another thread or by a fork
            self._run.check()
            raise

    @property
    def watched_for(self) -> float | None:
        """Seconds without progress after which it counts as stalled; `None` where not at all.

        A plain call has no cursor, and is watched only where it was given a time of its own.
        """
        if self.stall_after is not None:
            return self.stall_after
        return None if self._cursor is None else self._run.options.stall_after

    def enter(self, found: Position | None) -> None:
        """Note that this run takes it up, here and now; `found` is where the record has it.

        That is how far spans of earlier runs tell of it. Where one of them got further, as only the
        user's database knew, or a flight recorder that was read when that run was closed already,
        the rest is in the span of this one: each item is in one.
        """
        run = self._run
        cursor, items = self._mark()
        if found is None:
            if items:
                cursor, items = "null", 0
        else:
            began = Entered.read(found.entered)
            if began is not None and began.run == run.number:  # see `lost.taken_up_late`
                cursor, items = began.cursor, began.items
            else:
                cursor, items = found.cursor, found.items
        at = run.store.time() if self.resumed else self.started_at
        entered = Entered(at, cursor, items, self.watched_for, run.number)
        self._entered = entered.text()

    def let_go(self) -> None:
        """Write no more to the flight recorder: the step is over, for this run at least."""
        self._cell = None

    def record(self, result: str) -> StepRecord:
        """What is kept of it once it is done."""
        cursor, items = self._mark()
        return StepRecord(
            name=self.name,
            result=result,
            cursor=cursor,
            items=items,
            total=self._total,
            unit=self._unit,
            started_at=self.started_at,
            ended_at=self._run.store.time(),
            run=self._run.number,
            entered=self._entered,
        )

    def _mark(self) -> tuple[str, int]:
        return cast("tuple[str, int]", self._at)

    def _check_open(self) -> None:
        if self._run.current is not self:
            msg = f"Step '{self.name}' is done; its cursor cannot be moved any more."
            raise InvalidStepError(msg)


def _successor(value: object) -> object:
    if isinstance(value, (bool, datetime)):
        pass
    elif isinstance(value, int):
        return value + 1
    elif isinstance(value, date) and value < date.max:
        return value + timedelta(days=1)
    msg = (
        f"Cursor {value!r} of type '{type(value).__name__}' has no successor; only int and "
        f"datetime.date do. Say where to go with set(cursor)."
    )
    raise UnadvanceableCursorError(msg)
