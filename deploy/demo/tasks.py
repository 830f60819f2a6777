"""The jobs of the demonstration: three types, with what happens to jobs in a month, in minutes."""

import os
import random
import signal
import time

from celery import Celery

import tracedjobs
from tracedjobs import telemetry
from tracedjobs.queues.celery import continuable

app = Celery("tasks", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1)
tracedjobs.configure(os.environ["TRACEDJOBS_STORE"])
telemetry.configure()


@continuable(app, name="shop:import_orders", queue="imports", deadline=600.0)
def import_orders(ctx: tracedjobs.Context, orders: int, pace: float) -> int:
    """Now and then its process is killed, and another goes on with the order that was in hand."""
    ctx.step("download", time.sleep, 1.0)
    for _ in ctx.each("import_orders", range(orders), total=orders):
        time.sleep(pace)
        if random.random() < 1 / 20_000:
            os.kill(os.getpid(), signal.SIGKILL)
    return ctx.step("report", lambda: orders)


@continuable(app, name="shop:send_mails", queue="mails")
def send_mails(ctx: tracedjobs.Context, mails: int) -> None:
    """Some addresses are wrong: an interruption at first, a failure when nothing more is done."""
    bad = mails // 2 if ctx.id[-1] in "01" else -1
    for mail in ctx.each("mails", range(mails), total=mails):
        time.sleep(0.05)
        if mail == bad:
            raise ValueError("There is no such address.")


@continuable(app, name="shop:reindex", queue="imports", stall_after=20.0)
def reindex(ctx: tracedjobs.Context, pages: int) -> None:
    """One page in some hundreds hangs for five minutes: a stall, with its stack."""
    for _ in ctx.each("pages", range(pages), total=pages):
        time.sleep(300 if random.random() < 1 / 500 else 0.2)
    ctx.step("swap", time.sleep, 0.5)
