"""What may stop a run, and how its job's own thread gets to know of it.

Whoever wants that thread to do more than go on to the next item says so, from any thread or from a
signal's handler, by `want_attention`. Nothing here takes a lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracedjobs._core.clock import boot_time

if TYPE_CHECKING:
    from tracedjobs.errors import Interrupt

__all__ = ["Attention"]


class Attention:
    """The reasons to stop, and the three ways in which loops see that there is one.

    With a reason, `attention` is true, `calm` no longer `int`, and `hot` released. A reason is
    written first and the flag last, and whoever attends to it drops the flag first: so none is
    lost, see `Run.attend`.
    """

    __slots__ = (
        "_asked",
        "_away",
        "_wish",
        "attention",
        "calm",
        "ended",
        "hot",
        "in_doubt",
        "lost",
        "raised",
        "stop_seen_at",
    )

    def __init__(self) -> None:
        """Have no reason."""
        self._asked: str | None = None
        self._wish: str | None = None
        self._away = False
        self.raised: Interrupt | None = None
        self.lost: str | None = None
        """Why the lease is gone, where it is."""
        self.in_doubt = False
        """Whether the lease may have ended, so that the store is to be asked."""
        self.ended = False
        self.stop_seen_at: float | None = None
        """When a stop was first asked for, on the boot clock."""
        self.hot: memoryview | None = None
        self.attention = False
        self.calm: type[int] | None = int

    @property
    def stop_reason(self) -> str | None:
        """Why the run is asked to stop; a cancellation is above all others."""
        if self._wish == "cancelled":
            return self._wish
        return self._asked or self._wish or ("store_unavailable" if self._away else None)

    @property
    def has_reason(self) -> bool:
        """Whether there is anything to stop or to ask for."""
        return (
            self.stop_reason is not None
            or self.in_doubt
            or self.lost is not None
            or self.raised is not None
            or self.ended
        )

    def request_stop(self, reason: str) -> None:
        """Ask for an interruption at the next checkpoint.

        Each kind of request has a place of its own, so that taking one back never takes another
        with it: a SIGTERM that comes while a pause is withdrawn holds.
        """
        if self.stop_seen_at is None:
            self.stop_seen_at = boot_time()
        if reason in {"paused", "cancelled"}:
            self._wish = reason
        elif reason == "store_unavailable":
            self._away = True
        elif self._asked is None:
            self._asked = reason
        self.want_attention()

    def withdraw_stop(self) -> None:
        """Take back what an operator wished, or the store's absence asked for."""
        self._wish = None
        self._away = False
        if self._asked is None:
            self.stop_seen_at = None

    def lose(self, why: str) -> None:
        """Say that another run has the job: this one may write nothing more."""
        self.lost = why
        self.want_attention()

    def doubt(self) -> None:
        """Say that the lease has ended unrenewed: the job asks the store before it goes on."""
        self.in_doubt = True
        self.want_attention()

    def want_attention(self) -> None:
        """Have the job's thread look here before its next item.

        Said in the three ways that the loops have of seeing it, each the cheapest in its place.
        """
        self.attention = True
        self.calm = None
        self.cool()

    def heated(self, view: memoryview) -> memoryview:
        """`view`, one of a loop's own, for as long as it looks at nothing else.

        From when attention is wanted, writing to it raises `ValueError`.
        """
        self.cool()
        self.hot = view
        # Whoever wanted it before that line has not released it, but had set the flag.
        if self.attention:
            view.release()
        return view

    def cool(self) -> None:
        """Have nothing written any more to what is hot."""
        if self.hot is not None:
            self.hot.release()
