"""`python -m grafana` writes what `tracedjobs.grafana` ships; `--check` only says what differs."""

from __future__ import annotations

import sys

from grafana.written import ROOT, everything

__all__ = ["main"]


def main() -> int:
    """Write it, or compare it; the exit code."""
    check = "--check" in sys.argv[1:]
    differs = []
    for name, text in everything().items():
        path = ROOT / name
        if path.is_file() and path.read_text("utf-8") == text:
            continue
        differs.append(name)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    verb = "differs" if check else "written"
    for name in differs:
        print(f"{verb}: {name}")
    return 1 if check and differs else 0


if __name__ == "__main__":
    sys.exit(main())
