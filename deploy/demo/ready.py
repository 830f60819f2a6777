"""Asks addresses until all of them answer; `--once` asks them one time, for a health check.

`--age SECONDS FILE` instead: whether the file was touched lately. Needs nothing but Python.
"""

import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

PATIENCE = 180.0


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:  # it refuses, is slow, or says that it is not ready
        return False


def main(words: list[str]) -> int:
    if words[:1] == ["--age"]:
        path = Path(words[2])
        fresh = path.exists() and time.time() - path.stat().st_mtime < float(words[1])
        return 0 if fresh else 1
    if words[:1] == ["--once"]:
        return 0 if all(answers(each) for each in words[1:]) else 1
    give_up = time.monotonic() + PATIENCE
    waiting = list(words)
    while waiting and time.monotonic() < give_up:
        waiting = [each for each in waiting if not answers(each)]
        if waiting:
            time.sleep(1)
    if waiting:
        print(f"Not ready within {PATIENCE:.0f} s: {', '.join(waiting)}", file=sys.stderr)
    return 1 if waiting else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
