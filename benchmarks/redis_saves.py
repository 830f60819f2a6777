"""A worker that does nothing but save: `python -m benchmarks.redis_saves STORE NUMBER JOBS`.

All its jobs once a second, in one call, as the saver of a process does. It says `ready`, and for
each line that it is sent how many saves were made.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from itertools import count

from benchmarks.redis_many import create_running, next_save
from tracedjobs.stores import open_store
from tracedjobs.stores.redis import RedisStore


def main() -> None:
    url, number, n = sys.argv[1:]
    store = open_store(url)
    assert isinstance(store, RedisStore)
    ids = [f"{number}-{at}" for at in range(int(n))]
    create_running(store, ids, steps=5)
    saved = 0

    def save() -> None:
        nonlocal saved
        moment = time.monotonic() + random.random()
        for seq in count(1):
            time.sleep(max(moment - time.monotonic(), 0.0))
            answer = store.save([next_save(job_id, seq) for job_id in ids])
            assert len(answer) == len(ids)
            saved += len(answer)
            moment += 1.0

    threading.Thread(target=save, daemon=True).start()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(saved, flush=True)


if __name__ == "__main__":
    main()
