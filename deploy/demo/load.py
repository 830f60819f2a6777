"""The demonstration's load: a few jobs a minute, some of which are paused and resumed."""

import random
import time
from pathlib import Path

from tasks import import_orders, reindex, send_mails

import tracedjobs

SUBMITTED = Path("/tmp/submitted")
"""Touched with each job, for whoever asks whether this goes on."""


def main() -> None:
    runtime = tracedjobs.default_runtime()
    while True:
        kind = random.choice(("orders", "orders", "mails", "mails", "mails", "index"))
        if kind == "orders":
            import_orders.delay(random.randrange(200, 5_000), random.choice((0.005, 0.02)))
        elif kind == "mails":
            send_mails.delay(random.randrange(20, 400))
        else:
            reindex.delay(random.randrange(50, 300))
        SUBMITTED.touch()
        for job in runtime.list(status="running", limit=5):
            if random.random() < 0.02:
                runtime.pause(job.id)
        for job in runtime.list(status="paused", limit=5):
            if random.random() < 0.2:
                runtime.resume(job.id)
        time.sleep(random.uniform(2, 12))


if __name__ == "__main__":
    main()
