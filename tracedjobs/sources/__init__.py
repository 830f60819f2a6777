"""What a loop can read and resume: each source is called with a cursor and goes on after it.

Sequences and ranges need nothing from here. A source of your own is any callable of that shape.
"""

from __future__ import annotations

from tracedjobs.sources.files import CsvRows, Row, csv_rows

__all__ = ["CsvRows", "Row", "csv_rows"]

CsvRows.__module__ = __name__
csv_rows.__module__ = __name__
