"""`run` and `list` on a terminal."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

from tests.cli.typed import CONTROL, PATIENCE, Terminal

if TYPE_CHECKING:
    from tests.cli.typed import Desk

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def test_ctrl_c_saves_and_the_bar_moves_until_then(desk: Desk) -> None:
    terminal = Terminal(desk, "run", "jobs:imported", "5000", "0.01", "--job-id", "a")
    terminal.wait_for(r"✓ initialize +0\.\d\d s\n  ▸ import_rows +━*─+ +\d+%  [\d,]+ of 5,000")
    terminal.wait_for(r"(\d+ (s|min) )+left  [\d.]+/s")
    terminal.wait_for(r"Ctrl-C saves and stops")
    terminal.type("\x03")
    assert terminal.finish() == 75
    assert re.search(
        r"Interrupted in import_rows after \d+ items \(SIGINT, Ctrl-C\)", terminal.text
    )
    assert terminal.raw.rfind(SHOW) > terminal.raw.rfind(HIDE)
    lines = [CONTROL.sub("", line) for line in re.split(r"[\r\n]+", terminal.raw)]
    assert all(len(line) <= 80 for line in lines if "To go on" not in line)


def test_a_second_ctrl_c_kills_and_leaves_the_cursor_visible(desk: Desk) -> None:
    terminal = Terminal(desk, "run", "jobs:deaf")
    terminal.wait_for("▸ deaf")
    terminal.type("\x03")
    terminal.wait_for("SIGINT: stopping at the next checkpoint; a second one kills it")
    terminal.type("\x03")
    assert terminal.finish() == -signal.SIGINT
    assert terminal.raw.rfind(SHOW) > terminal.raw.rfind(HIDE)


def test_many_steps_fit_on_the_screen(desk: Desk) -> None:
    terminal = Terminal(desk, "run", "jobs:many", "100")
    text = terminal.wait_for(r"✓ \d+ earlier steps\n(.*\n)+.*▸ deaf")
    last = text[text.rindex("earlier steps") :]
    assert last.count("\n") < 30
    terminal.process.kill()
    terminal.finish()


def test_what_is_not_to_be_drawn_is_printed_line_by_line(desk: Desk) -> None:
    terminal = Terminal(desk, "run", "jobs:imported", "3", TERM="dumb")
    assert terminal.finish() == 0
    assert "\x1b" not in terminal.raw
    assert "✓ import_rows: done" in terminal.text


def test_no_color_is_respected(desk: Desk) -> None:
    terminal = Terminal(desk, "run", "jobs:imported", "3", NO_COLOR="1")
    assert terminal.finish() == 0
    assert not re.search(r"\x1b\[[0-9;]*3\dm", terminal.raw)


def test_what_the_job_prints_stands_above_the_drawing(desk: Desk) -> None:
    (desk.folder / "talks.py").write_text(
        "from tracedjobs import job\n"
        "@job\n"
        "def talks(ctx):\n"
        "    ctx.step('one', print, 'hello from the job')\n"
    )
    terminal = Terminal(desk, "run", "talks:talks")
    assert terminal.finish() == 0
    assert terminal.text.index("hello from the job") < terminal.text.rindex("✓ one")


def test_a_list_fits_on_80_columns_and_its_short_ids_can_be_typed(desk: Desk) -> None:
    assert desk.run("run", "jobs:imported", "3").returncode == 0
    assert desk.run("run", "jobs:stumbles").returncode == 75
    terminal = Terminal(desk, "list")
    assert terminal.finish() == 0
    head, newest, oldest = terminal.text.splitlines()
    assert head.split() == ["ID", "JOB", "STATUS", "STEP", "PROGRESS", "RUNS", "AGE"]
    assert re.match(r"[0-9a-f]{8}  stumbles  interrupted  rows +━+─+  44%  +1 +\d+ s", newest)
    assert all(len(line) <= 80 for line in (head, newest, oldest))
    shown = desk.run("show", oldest.split()[0])
    assert shown.returncode == 0
    assert shown.stdout.startswith("jobs:imported  job " + oldest.split()[0])


def test_a_hang_up_of_the_terminal_is_no_success(desk: Desk) -> None:
    terminal = Terminal(desk, "run", "jobs:deaf")
    terminal.wait_for("▸ deaf")
    terminal.process.send_signal(signal.SIGHUP)
    assert terminal.process.wait(PATIENCE) == -signal.SIGHUP
    terminal.finish()
