"""Typed values to JSON text and back, with the same type and the same value.

Not a general serializer: what is not in the table is refused, with the path to it, and nothing that
is read is ever imported or executed, but for `__init__` of registered dataclasses.

The text is part of the stored record, so this table may grow but never change. A tag is an object
with one key that begins with `$`; any other object with such a key is refused as written by a newer
version. The order of keys is kept, so stores keep the text as text (PostgreSQL's jsonb would not).

| value | text |
| --- | --- |
| None, bool, str, list; int to 600 digits; finite float | JSON's own |
| dict whose keys are all str and do not begin with `$` | JSON's object |
| any other dict | `{"$d":[[key,value],...]}` |
| tuple | `{"$t":[...]}` |
| set, frozenset, sorted by text | `{"$s":[...]}`, `{"$fs":[...]}` |
| longer int | `{"$i":"-1f"}`, hexadecimal |
| NaN, infinities | `{"$f":"nan"}`, `"inf"`, `"-inf"` |
| bytes | `{"$b":"base64"}` |
| datetime, naive and fold 0 | `{"$dt":"2024-10-27T02:30:00"}` |
| any other datetime | `{"$dt":["2024-10-27T02:30:00",fold,zone]}` |
| time | `{"$time":...}`, as datetime |
| date | `{"$date":"2024-10-27"}` |
| timedelta | `{"$td":[days,seconds,microseconds]}` |
| Decimal | `{"$dec":"1.20"}` |
| UUID | `{"$uuid":"00000000-0000-0000-0000-000000000000"}` |
| registered enum | `{"$e":[name,"MEMBER"]}`; a combination of flags `{"$e":[name,["A","B"]]}` |
| registered dataclass | `{"$c":[name,{"field":value,...}]}` |

`zone` is null, the key of a ZoneInfo, or a fixed offset: `[offset in microseconds, name or null]`.
"""

from __future__ import annotations

from tracedjobs._core.values.decoding import decode
from tracedjobs._core.values.encoding import MAX_CURSOR_BYTES, MAX_DEPTH, encode, encode_cursor
from tracedjobs._core.values.registry import register_type

__all__ = [
    "MAX_CURSOR_BYTES",
    "MAX_DEPTH",
    "decode",
    "encode",
    "encode_cursor",
    "register_type",
]
