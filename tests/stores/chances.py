"""Random acts on a job, most of them saves, to be done in stores that save in different ways."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.stores.records import TOKEN, a_save, a_step
from tracedjobs._core.records import SEQ_GAP, Change, JobRecord, Position, Save

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tracedjobs.stores import Store

__all__ = ["Chances", "told"]


class Chances:
    """Random acts on one job, each to be done in several stores."""

    def __init__(self, chance: random.Random) -> None:
        self.of = chance.choice
        self.pick = chance.choices
        self.tokens = [TOKEN]
        self.seq = 0
        self.done = 0

    def act(self, head: JobRecord) -> Callable[[Store], object]:
        """Most are saves, and most of these follow the last."""
        (kind,) = self.pick(("save", "one", "step", "wish", "take", "stall"), (20, 20, 1, 1, 1, 1))
        if kind == "save":
            saves = [self._save()]
            return lambda store: store.save(saves)
        if kind == "one":
            save = self._save()
            return lambda store: store.save_one(save)
        if kind == "step":
            return self._step()
        columns: dict[str, object] = {kind: self.of((None, "pause" if kind == "wish" else "[1]"))}
        if kind == "take":
            self.tokens.append(f"token{len(self.tokens)}")
            self.seq = 0
            columns = {"token": self.tokens[-1], "saved_seq": 0}
        change = Change("a", head.revision, columns, lease_ttl=30.0)
        return lambda store: store.change(change)

    def _save(self) -> Save:
        self.seq += self.of((1,) * 9 + (0, -1))
        cursor = self.of(("7", "12", "null", '["t",1]', f'"{"c" * 90}"'))
        long = self.of((None,) * 9 + (f'"{"f" * 90}"',))
        step = self.of(("one",) * 9 + ("two",))
        position = Position(step, cursor, self.of((7, 12)), 100, None, 4.25, long)
        return a_save(
            max(self.seq, 1),
            token=self.of((self.tokens[-1],) * 9 + (self.of(self.tokens),)),
            position=self.of((position,) * 9 + (None,)),
            state=self.of((None,) * 9 + (f'{{"n":{self.seq}}}',)),
            meter=self.of((None, None, f"[{self.seq}]")),
        )

    def _step(self) -> Callable[[Store], object]:
        step, token, position = a_step(f"done{self.done}"), self.tokens[-1], self.done
        self.seq += SEQ_GAP
        self.done += 1
        seq = self.seq
        return lambda store: store.complete_step(
            "a", token, step, position=position, seq=seq, state=None, lease_ttl=30.0
        )


def told(job: JobRecord) -> JobRecord:
    """What is the same in every store."""
    return replace(job, submitted_at=0.0, lease_until=0.0, lease_boot=None)
