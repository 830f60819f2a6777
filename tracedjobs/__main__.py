"""`python -m tracedjobs`: the command line, for when its script is not on the PATH."""

from __future__ import annotations

import sys

from tracedjobs.cli import main

if __name__ == "__main__":
    sys.exit(main())
