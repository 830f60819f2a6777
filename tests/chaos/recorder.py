"""Kills processes at random moments, and compares where their jobs go on with what was done.

`python -m tests.chaos.recorder FOLDER WAY KILLS SEED` kills, and prints its `Figures` as JSON. It
is one thread that forks: a child is there at once, performs the job in turn, and is killed. What
it does is in memory that it shares with its parent: an item's effect is one store there, so that
a kill falls between any two instructions of a loop and not always into a system call.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import random
import signal
import sys
import time
from array import array
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.resources import files
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tracedjobs import AsyncContext, Context, Job, Runtime, Step, job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

__all__ = ["EVERY", "EXACT", "STATE", "TEXT", "Figures"]

SIZE: Final = 200_000
EVERY: Final = 0.15
"""Seconds of `checkpoint_every` where it is what counts."""
SLACK: Final = 0.25
"""Seconds that a save, and whoever else is on the machine, may take."""
STEPS: Final = 40
PACE: Final = 0.00005
SHORTER: Final = {
    **dict.fromkeys(("set", "advance", "set_text", "state", "text"), 10),
    "stride": 4,
    "mixed": 4,
    "steps": 50,
}
"""By how much the jobs of a kind whose items take longer have fewer of them."""
PATIENCE: Final = 60.0

# The numbers that a child leaves for its parent.
BEGUN: Final = 0
START: Final = 1
SAVED: Final = 2
REDONE: Final = 3
STATED: Final = 4
OLDEST: Final = 5
PACED: Final = 6

_memory: Final = mmap.mmap(-1, 8 * 16 + 9 * SIZE)
_map: Final = memoryview(_memory)
told: Final = _map[: 8 * 16].cast("q")
moments: Final = _map[8 * 16 : 8 * (16 + SIZE)].cast("d")
effects: Final = _map[8 * (16 + SIZE) :]
numbers: Final = array("q", range(SIZE))
runtimes: Final[list[Runtime]] = []


@dataclass(slots=True)
class Figures:
    """What the kills came to."""

    kills: int = 0
    adopted: int = 0
    """Kills after which the job went on ahead of its last save."""
    jobs: int = 0
    items: int = 0
    lost: int = 0
    redone: int = 0
    redone_exact: int = 0
    """Of these, those of loops and steps whose cursors are integers."""
    most_redone_exact: int = 0
    """After one kill."""
    latest: float = 0.0
    """Seconds by which the oldest item that was done again was older than the kill."""
    left: int = 0
    """Files in the run directory at the end."""


def size_of(kind: str) -> int:
    return SIZE // SHORTER.get(kind, 1)


def begin(ctx: Context | AsyncContext, at: int) -> None:
    """Tell where the run goes on, once it is in its step."""
    if told[BEGUN]:
        return
    stored = runtimes[0].store.load(ctx.id)
    assert stored is not None
    told[START], told[REDONE] = at, stored.job.items_redone
    told[OLDEST] = int(moments[min(at, SIZE - 1)] * 1e9)
    told[BEGUN] = 1


def pairs(cursor: Any) -> Iterator[tuple[int, object]]:
    for at in range(cursor or 0, SIZE):
        yield at, at + 1


def text_pairs(cursor: Any) -> Iterator[tuple[int, object]]:
    for at in range(int(cursor or 0), size_of("text")):
        yield at, f"{at + 1:09}"


def mixed_pairs(cursor: Any) -> Iterator[tuple[int, object]]:
    """Cursors that fit the recorder, and such that do not."""
    for at in range(index_of(cursor), size_of("mixed")):
        kind = at // 1000 % 4
        after: object = at + 1
        if kind == 1:
            after = str(at + 1)
        elif kind == 2:
            after = at + 1 + 2**63
        yield at, after


async def async_pairs(cursor: Any) -> AsyncIterator[tuple[int, object]]:
    for at in range(cursor or 0, SIZE):
        yield at, at + 1


def index_of(cursor: Any) -> int:
    """How many items are done at that cursor, of whatever kind."""
    if isinstance(cursor, list):
        return int(cursor[0])
    return 0 if cursor is None else int(cursor) % 2**63


STRIDE: Final = range(7, 7 + 3 * SIZE, 3)
LOOPS: Final[dict[str, tuple[Any, Callable[[Any], int] | None]]] = {
    "range": (range(SIZE), None),
    "stride": (STRIDE[: SIZE // SHORTER["stride"]], STRIDE.index),
    "list": (list(range(SIZE)), None),
    "sequence": (numbers, None),
    "pairs": (pairs, None),
    "mixed": (mixed_pairs, None),
    "text": (text_pairs, None),
    "state": (range(SIZE // SHORTER["state"]), None),
}
EXACT: Final = ("range", "stride", "list", "sequence", "pairs", "set", "advance", "steps")
TEXT: Final = ("text", "set_text", "mixed")
SLOW: Final = ("stride", "set", "advance", "text", "set_text", "state")
"""Those whose items take as long as they are told to."""
STATE: Final = ("state",)


def do(at: int) -> None:
    """An item's effect."""
    effects[at] += 1
    moments[at] = time.monotonic()
    if told[PACED]:
        time.sleep(PACE)


def perform_def(ctx: Context, kind: str) -> None:
    if kind in LOOPS:
        loop = ctx.each("items", LOOPS[kind][0])
        if kind == "state":
            told[STATED] = ctx.state.get("done", 0)
        begin(ctx, index_of(loop.cursor))
        index = LOOPS[kind][1]
        if kind == "state":
            for item in loop:
                do(item)
                ctx.state["done"] = item + 1
        elif index is not None:
            for item in loop:
                do(index(item))
        elif kind == "text":
            for item in loop:
                do(item)
        else:
            for item in loop:  # as bare as can be: the kill is to hit the loop and not the job
                effects[item] += 1
        return
    if kind == "steps":
        each = size_of(kind) // STEPS
        for number in range(STEPS):
            small = ctx.each(f"items {number}", range(each))
            if f"items {number}" not in ctx.completed:
                begin(ctx, number * each + index_of(small.cursor))
            for item in small:
                do(number * each + item)
        return

    def by_hand(step: Step) -> None:
        begin(ctx, index_of(step.cursor))
        for at in range(index_of(step.cursor), size_of(kind)):
            do(at)
            if kind == "advance":
                step.advance()
            else:
                step.set([at + 1, "of", SIZE] if kind == "set_text" else at + 1)

    ctx.step("items", by_hand, start=0)


async def perform_async(ctx: AsyncContext, kind: str) -> None:
    if kind in LOOPS:
        loop = ctx.each("items", async_pairs if kind == "pairs" else LOOPS[kind][0])
        if kind == "state":
            told[STATED] = ctx.state.get("done", 0)
        begin(ctx, index_of(loop.cursor))
        index = LOOPS[kind][1]
        if kind == "state":
            async for item in loop:
                do(item)
                ctx.state["done"] = item + 1
        elif index is not None:
            async for item in loop:
                do(index(item))
        else:
            async for item in loop:
                effects[item] += 1
        return

    async def by_hand(step: Step) -> None:
        begin(ctx, index_of(step.cursor))
        for at in range(index_of(step.cursor), size_of(kind)):
            do(at)
            if kind == "advance":
                await step.advance()
            else:
                await step.set([at + 1, "of", SIZE] if kind == "set_text" else at + 1)

    await ctx.step("items", by_hand, start=0)


JOBS: Final[dict[tuple[bool, bool], Job[..., Any]]] = {
    (False, False): job(name="recorder")(perform_def),
    (True, False): job(name="recorder-async")(perform_async),
    (False, True): job(name="recorder-saved", checkpoint_every=EVERY)(perform_def),
    (True, True): job(name="recorder-async-saved", checkpoint_every=EVERY)(perform_async),
}


# -- the child ---


def run_once(url: str, job_id: str, kind: str, lease_ttl: float) -> int:
    """One run, in a process of its own."""
    with Runtime(url, lease_ttl=lease_ttl, handle_signals=False) as runtime:
        runtimes[:] = [runtime]
        before = runtime.get(job_id)
        saved = 0 if before.current is None else index_of(before.current.cursor)
        done = sum(step.items for step in before.steps if step.status == "completed")
        told[SAVED] = saved + done
        if before.name.startswith("recorder-async"):
            return 0 if asyncio.run(runtime.perform_async(job_id)).ok else 75
        return 0 if runtime.perform(job_id).ok else 75


def submit(url: str, job_id: str, kind: str, chance: random.Random, *, saves: bool) -> int:
    with Runtime(url, handle_signals=False) as runtime:
        runtime.submit(JOBS[chance.random() < 0.4, saves], kind, job_id=job_id)
    return 0


def forked(work: Callable[[], int]) -> int:
    """The id of a child that ends with what `work` returns."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = work()
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


# -- the parent ---


class Killer:
    """Kills the children of one job after another."""

    def __init__(self, folder: Path, way: str, seed: int) -> None:
        self.way = way
        self.chance = random.Random(seed)
        self.figures = Figures()
        self.url = f"sqlite:///{folder}/jobs.db"
        self.run = Path(os.environ["TRACEDJOBS_RUN_DIR"])
        self.end = 0
        """How many items were done where the last run ended."""
        self.done = 0
        """The same, those included that were done again, of all runs of the job."""
        self.redone = 0
        self.was_redone = 0
        self.killed_at = self.ended_at = 0.0

    def torture(self, kind: str, most: int) -> None:
        """Do one job to its end, and kill it up to so many times on the way."""
        figures = self.figures
        effects[:] = bytes(SIZE)
        moments[:] = memoryview(bytes(8 * SIZE)).cast("d")
        self.end = self.done = self.redone = self.was_redone = 0
        job_id = f"job {figures.jobs}"
        figures.jobs += 1
        saves = self.way != "kill" or kind not in EXACT or self.chance.random() < 0.3
        assert self._ended(forked(lambda: submit(self.url, job_id, kind, self.chance, saves=saves)))
        while True:
            kill = figures.kills < most and self.chance.random() < 0.96
            told[:8] = memoryview(bytes(64)).cast("q")
            told[PACED] = kill and self.way != "kill"
            done = self._child(job_id, kind, kill=kill)
            if told[BEGUN]:
                self._check(kind)
                self.ended_at = self.killed_at
            self._count(kind)
            if done:
                break
        figures.items += size_of(kind)
        figures.lost += effects[: size_of(kind)].tobytes().count(0)
        # Each item was done as often at most as the places say at which the runs went on.
        assert sum(effects) <= size_of(kind) + self.redone, (sum(effects), self.redone)

    def _child(self, job_id: str, kind: str, *, kill: bool) -> bool:
        """Whether it came to its end."""
        lease_ttl = 0.5 if self.way == "remove" else 30.0
        pid = forked(lambda: run_once(self.url, job_id, kind, lease_ttl))
        if not kill:
            return self._ended(pid)
        self._wait_for_the_moment(pid)
        self.killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            self.figures.kills += 1
            self._lose_power()
            return False
        assert os.waitstatus_to_exitcode(status) == 0
        return True

    def _wait_for_the_moment(self, pid: int) -> None:
        long = 0.012 if self.way == "kill" and self.chance.random() < 0.9 else 3 * EVERY
        if self.chance.random() < 0.8:
            give_up = time.monotonic() + PATIENCE
            while not told[BEGUN] and not _is_over(pid):
                assert time.monotonic() < give_up, "the child does nothing"
                time.sleep(0.0005)
        time.sleep(self.chance.uniform(0, long))

    def _ended(self, pid: int) -> bool:
        give_up = time.monotonic() + PATIENCE
        while not _is_over(pid):
            assert time.monotonic() < give_up, "the child does not end"
            time.sleep(0.001)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        return True

    def _lose_power(self) -> None:
        # What a loss of power would leave: the file of the lock, but not what was written in it.
        if self.way == "kill":
            return
        for path in self.run.glob("*.lock"):
            if self.way == "remove":
                path.unlink()
            else:
                os.truncate(path, 0)
        if self.way == "remove":
            time.sleep(0.55)  # nobody can tell that the owner is dead but by its lease

    def _count(self, kind: str) -> None:
        """Where the run that has ended came to, each item being done after the one before it."""
        if not told[BEGUN]:
            return
        if self.way == "kill" and kind in EXACT:
            begin = 8 * (16 + SIZE)
            found = _memory.find(b"\0", begin + self.end)
            self.end = SIZE if found < 0 else found - begin
        else:
            done = sum(effects[: size_of(kind)])
            self.end = told[START] + done - self.done
            self.done = done

    def _check(self, kind: str) -> None:
        """What the run that went on at `START` found, against what was done before it."""
        figures = self.figures
        start, end = told[START], self.end
        again = end - start
        assert again >= 0, f"{-again} items of {kind} are lost: {start} after {end}"
        figures.adopted += start > told[SAVED]
        figures.redone += again
        if kind in EXACT:
            figures.redone_exact += again
            figures.most_redone_exact = max(figures.most_redone_exact, again)
        self.redone += again
        reported, self.was_redone = told[REDONE] - self.was_redone, told[REDONE]
        if kind in STATE:
            assert start == told[SAVED] == told[STATED], (start, told[SAVED], told[STATED])
        elif self.way == "kill":
            # But for the item in hand, which may have been done without being counted.
            assert again - reported in {0, 1}, f"{kind}: {again} again, reported {reported}"
            if kind in EXACT:
                assert not reported, f"{kind} was not adopted: {start} of {end}"
        else:
            assert start == told[SAVED], (start, told[SAVED])
        if again and told[OLDEST]:
            figures.latest = max(figures.latest, self.ended_at - told[OLDEST] / 1e9)


def _is_over(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def main() -> None:
    folder, way, kills, seed = sys.argv[1:]
    os.environ["TRACEDJOBS_RUN_DIR"] = f"{folder}/run"
    killer = Killer(Path(folder), way, int(seed))
    (Path(folder) / "run").mkdir(mode=0o700)
    for module in ("tracedjobs.stores.sqlite", "tracedjobs._core.snapshot", "tempfile", "sqlite3"):
        import_module(module)  # here, once
    files("tracedjobs.stores")
    kinds = [*EXACT, *TEXT, *STATE] if way == "kill" else [*SLOW]
    killer.chance.shuffle(kinds)
    for kind in cycle(kinds):  # each as often, so that no seed leaves one out
        killer.torture(kind, int(kills))
        if killer.figures.kills >= int(kills):
            break
    killer.figures.left = len(list(killer.run.iterdir()))
    sys.stdout.write(json.dumps(asdict(killer.figures)))


if __name__ == "__main__":
    main()
