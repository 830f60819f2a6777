"""Saves as scripts take them: short where a run's last save is known here, whole where it is not.

Nothing here talks to a server. What is known may be outdated, and is never trusted: the script of
short saves writes only where it finds what is known, and what it refuses is to be saved whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tracedjobs._core.records import LOST_GAP
from tracedjobs.errors import StoreError
from tracedjobs.stores.redis.keys import shard_of
from tracedjobs.stores.redis.packing import AS_ITEMS, is_long, packed_place, packed_position
from tracedjobs.stores.redis.script import Command, call

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tracedjobs._core.records import Save
    from tracedjobs.stores.base import Saved
    from tracedjobs.stores.redis.keys import Keys

__all__ = ["LastSaves", "Part"]

GROUP: Final = 64
"""Saves in one script at most: no other client waits longer for the server."""
MANY: Final = 200_000
"""Runs whose last save is known, at most: of those that were lost nobody says that they ended."""


Place = tuple[str, str]
"""Cursor and tail of a job's hash."""


class _Known(NamedTuple):
    """The last save of a run, as the server acknowledged it."""

    token: str
    seq: int
    ends: int
    place: Place
    opened: tuple[object, ...]
    shard: int
    key: str


@dataclass(frozen=True, slots=True)
class Part:
    """Saves of one shard in one script."""

    saves: Sequence[Save]
    command: Command
    ttl: int
    places: Sequence[Place]
    """What the script writes."""
    whole: bool


class LastSaves:
    """The last saves of the runs of this process, and what is to be sent for the next ones."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._known: dict[str, _Known] = {}

    def forget(self, job_id: str) -> None:
        """Save that job whole the next time: something else than a save changes it."""
        self._known.pop(job_id, None)

    def parts(self, saves: Sequence[Save], *, whole: bool = False) -> list[Part]:
        """Those saves in as few scripts as there can be; `whole`: what was refused as short."""
        groups: dict[tuple[int, float, int, str], list[tuple[_Known, Save, Place]]] = {}
        others: dict[tuple[int, float], list[Save]] = {}
        last_saves = {} if whole else self._known
        for save in saves:
            known = last_saves.get(save.job_id)
            if known is not None and _goes_on(known, save):
                place = packed_place(save.position, save.progressed_at)
                third = known.ends * 3 // round(save.lease_ttl * 1e6)
                fields = "" if place[0] == AS_ITEMS == known.place[0] else "c"
                if save.meter is not None:
                    fields += "m"
                key = (known.shard, save.lease_ttl, third, fields)
                groups.setdefault(key, []).append((known, save, place))
            else:
                others.setdefault((shard_of(save.job_id), save.lease_ttl), []).append(save)
        parts = [
            self._short(group[at : at + GROUP], third, fields)
            for (_, _, third, fields), group in groups.items()
            for at in range(0, len(group), GROUP)
        ]
        parts += [
            self._whole(shard, group[at : at + GROUP])
            for (shard, _), group in others.items()
            for at in range(0, len(group), GROUP)
        ]
        return parts

    def read(self, part: Part, reply: Sequence[Any]) -> Iterator[tuple[Save, bool, Saved | None]]:
        """Of each save whether it was made, and what is told of its job.

        Nothing is told where the job is gone, or where a short save was refused.
        """
        ends = int(reply[0]) + part.ttl
        if part.whole:
            for save, place, found in zip(part.saves, part.places, reply[1:], strict=True):
                saved = found is not None and found.startswith("+")
                self._note(save, place, ends, saved=saved)
                yield save, saved, None if found is None else _read_told(save, found)
            return
        others = dict(zip(reply[1::2], reply[2::2], strict=True))
        for number, (save, place) in enumerate(zip(part.saves, part.places, strict=True), 1):
            wish = others.get(number)
            saved = wish is not None or number not in others
            self._note(save, place, ends, saved=saved)
            yield save, saved, (save.token, wish) if saved else None

    def _note(self, save: Save, place: Place, ends: int, *, saved: bool) -> None:
        if not saved:
            self.forget(save.job_id)
            return
        known = self._known.get(save.job_id)
        if known is None:
            if len(self._known) >= MANY:
                self._known.clear()
            shard, key = shard_of(save.job_id), self._keys.part(save.job_id, "j")
        else:
            shard, key = known.shard, known.key
        self._known[save.job_id] = _Known(
            save.token, save.seq, ends, place, _opened(save), shard, key
        )

    def _short(self, group: Sequence[tuple[_Known, Save, Place]], third: int, fields: str) -> Part:
        known, first, _ = group[0]
        ttl, shard = round(first.lease_ttl * 1e6), known.shard
        start = self._keys.at(shard, "j:")
        keys = [self._keys.leases(shard)]
        args: list[str | int] = [ttl, third, len(start.encode()), fields]
        for (token, seq, ends, (_, old), _, _, key), save, (cursor, tail) in group:
            keys.append(key)
            args += (token, f"{seq} {ends} {old}", save.seq, tail)
            if "c" in fields:
                args.append(cursor)
            if "m" in fields:
                args.append(save.meter or "")
        command = call("advance", shard, keys, args, writes=True)
        saves, places = [save for _, save, _ in group], [place for _, _, place in group]
        return Part(saves, command, ttl, places, whole=False)

    def _whole(self, shard: int, saves: Sequence[Save]) -> Part:
        keys = [self._keys.leases(shard)]
        start = self._keys.at(shard, "j:")
        ttl = round(saves[0].lease_ttl * 1e6)
        args: list[str | int] = [ttl, len(start.encode()), LOST_GAP]
        places: list[Place] = []
        for save in saves:
            texts = packed_position(save.position, save.progressed_at)
            places.append((texts.cursor, texts.tail))
            keys.append(start + save.job_id)
            spills = {"o": texts.spilled_open, "x": texts.spilled_cursor, "z": save.state}
            spilled = {part: text for part, text in spills.items() if text}
            keys += [self._keys.at(shard, f"{part}:{save.job_id}") for part in spilled]
            args += (save.token, save.seq, texts.tail, texts.cursor, texts.open)
            args += ("".join(spilled), save.meter or "")
            args += spilled.values()
        return Part(saves, call("save", shard, keys, args, writes=True), ttl, places, whole=True)


def _opened(save: Save) -> tuple[object, ...]:
    """What is written of a position only when it changes."""
    position = save.position
    return (None,) if position is None else (position[0], *position[3:])


def _goes_on(known: _Known, save: Save) -> bool:
    """Whether nothing but the place in the open step is another one than in the save before."""
    return (
        known.token == save.token
        and 0 < save.seq - known.seq < LOST_GAP
        and not save.state
        and known.opened == _opened(save)
        and (save.position is None or not is_long(save.position.cursor))
    )


def _read_told(save: Save, found: str) -> Saved:
    if found.startswith("+"):
        return save.token, found[1:] or None
    if found.startswith("-"):
        token, _, wish = found[1:].partition(" ")
        return token or None, wish or None
    return StoreError(f"The job {save.job_id} is damaged: {found[1:]}")
