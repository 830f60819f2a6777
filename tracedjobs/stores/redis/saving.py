"""Saves as scripts take them: short where a run's last save is known here, whole where it is not.

Nothing here talks to a server. What is known may be outdated, and is never trusted: the script of
short saves writes only where it finds what is known, and what it refuses is to be saved whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from tracedjobs._core.records import LOST_GAP
from tracedjobs.errors import StoreError
from tracedjobs.stores.redis.keys import shard_of
from tracedjobs.stores.redis.packing import AS_ITEMS, packed_place, packed_position
from tracedjobs.stores.redis.script import Command, call, script
from tracedjobs.stores.redis.wire import Packed, word

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
_HEAD: Final = f"$7\r\nEVALSHA\r\n{word(script('advance').sha)}"


class _Run(NamedTuple):
    """What stays as it is from save to save: the words of it are packed once."""

    token: str
    lease_ttl: float
    shard: int
    micros: int
    """The lease."""
    leases: str
    key: str
    lease: str
    token_word: str
    start: str
    """The length of what stands before the id in the key."""


class _Known(NamedTuple):
    """The last save of a run, as the server acknowledged it."""

    run: _Run
    seq: int
    ends: int
    place: Place
    opened: tuple[object, ...]


_Short: TypeAlias = "tuple[_Known, Save, Place]"
"""What a short save is made from; the place is the one that it writes."""


class Part(NamedTuple):
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

    @staticmethod
    def time(part: Part, reply: str | Sequence[Any]) -> int:
        """The server's clock in µs, as the reply has it."""
        return int(reply if isinstance(reply, str) else reply[0]) - part.ttl

    def forget(self, job_id: str) -> None:
        """Save that job whole the next time: something else than a save changes it."""
        self._known.pop(job_id, None)

    def parts(self, saves: Sequence[Save], *, whole: bool = False) -> list[Part]:
        """Those saves in as few scripts as there can be; `whole`: what was refused as short."""
        groups: dict[tuple[int, int, int, str], list[_Short]] = {}
        others: dict[tuple[int, float], list[Save]] = {}
        for save in saves:
            short = None if whole else self._goes_on(save)
            if short is None:
                others.setdefault((shard_of(save.job_id), save.lease_ttl), []).append(save)
            else:
                known, _, place = short
                run, fields = known.run, _fields(known, save, place)
                key = (run.shard, run.micros, known.ends * 3 // run.micros, fields)
                groups.setdefault(key, []).append(short)
        parts = [
            self._short(group[at : at + GROUP], fields)
            for (_, _, _, fields), group in groups.items()
            for at in range(0, len(group), GROUP)
        ]
        parts += [
            self._whole(shard, group[at : at + GROUP])
            for (shard, _), group in others.items()
            for at in range(0, len(group), GROUP)
        ]
        return parts

    def part(self, save: Save, *, whole: bool = False) -> Part:
        """One save, as `parts` of many."""
        short = None if whole else self._goes_on(save)
        if short is None:
            return self._whole(shard_of(save.job_id), [save])
        known, _, place = short
        return self._short([short], _fields(known, save, place))

    def read(
        self, part: Part, reply: str | Sequence[Any]
    ) -> Iterator[tuple[Save, bool, Saved | None]]:
        """Of each save whether it was made, and what is told of its job.

        Nothing is told where the job is gone, or where a short save was refused. The reply begins
        with the end of the leases, and is that alone where all runs of short saves just go on.
        """
        if isinstance(reply, str):
            ends = int(reply)
            for save, place in zip(part.saves, part.places, strict=True):
                self._note(save, place, ends, saved=True)
                yield save, True, (save.token, None)
            return
        ends = int(reply[0])
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
        if known is not None and known.run[:2] == (save.token, save.lease_ttl):
            run = known.run
        else:
            if len(self._known) >= MANY:
                self._known.clear()
            run = self._run(save)
        self._known[save.job_id] = _Known(run, save.seq, ends, place, _opened(save))

    def _run(self, save: Save) -> _Run:
        shard = shard_of(save.job_id)
        micros, start = round(save.lease_ttl * 1e6), self._keys.at(shard, "j:")
        return _Run(
            *(save.token, save.lease_ttl, shard, micros),
            *(word(self._keys.leases(shard)), word(start + save.job_id)),
            *(word(str(micros)), word(save.token), word(str(len(start.encode())))),
        )

    def _goes_on(self, save: Save) -> _Short | None:
        """It with the one before it, where nothing but the place in the open step is another."""
        known = self._known.get(save.job_id)
        if (
            known is not None
            and known.run.token == save.token
            and known.run.lease_ttl == save.lease_ttl
            and 0 < save.seq - known.seq < LOST_GAP
            and not save.state
            and known.opened == _opened(save)
        ):
            place = packed_place(save.position, save.progressed_at)
            return None if place is None else (known, save, place)
        return None

    @staticmethod
    def _short(group: Sequence[_Short], fields: str) -> Part:
        """A script of short saves, packed by hand: they are the most of all that is sent."""
        first = group[0][0]
        run = first.run
        third = word(str(first.ends * 3 // run.micros))
        keys, args = [run.leases], [run.lease, third, run.start, word(fields)]
        for (each, seq, ends, (_, old), _), save, (cursor, tail) in group:
            keys.append(each.key)
            last, now = f"{seq} {ends} {old}", str(save.seq)
            args.append(
                f"{each.token_word}${len(last)}\r\n{last}\r\n"
                f"${len(now)}\r\n{now}\r\n${len(tail)}\r\n{tail}\r\n"
            )
            if fields:
                args.append(word(cursor) if "c" in fields else "")
                args.append(word(save.meter or "") if "m" in fields else "")
        words = 8 + len(group) * (5 + len(fields))
        text = f"*{words}\r\n{_HEAD}{word(str(len(keys)))}{''.join(keys)}{''.join(args)}"
        command = Command(run.shard, Packed(text), script("advance"), writes=True)
        if len(group) == 1:
            return Part((group[0][1],), command, run.micros, (group[0][2],), whole=False)
        saves, places = [save for _, save, _ in group], [place for _, _, place in group]
        return Part(saves, command, run.micros, places, whole=False)

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


def _fields(known: _Known, save: Save, place: Place) -> str:
    """Which fields are written beside `l`, as the script has them."""
    cursor = "" if place[0] == AS_ITEMS == known.place[0] else "c"
    return cursor if save.meter is None else cursor + "m"


def _read_told(save: Save, found: str) -> Saved:
    if found.startswith("+"):
        return save.token, found[1:] or None
    if found.startswith("-"):
        token, _, wish = found[1:].partition(" ")
        return token or None, wish or None
    return StoreError(f"The job {save.job_id} is damaged: {found[1:]}")
