"""JSON text without blanks, of the lists of plain values that records are kept as.

Nothing here knows types of its own: what jobs give is made text by `values`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["compact"]

_PLAIN: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_TRIED: Final = ["ü\\\n\0\ud800", 1.5, -0.0, 1 << 70, None, True, {"a": [(), "/"]}]


def _encoder() -> Callable[[object], str]:
    # `JSONEncoder.encode` makes this very encoder anew for each text, which takes twice as long as
    # the text itself, and a step has three. Where it cannot be had so, that is what is used.
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    escape: Any = getattr(json.encoder, "encode_basestring", None)
    try:
        chunks = make(None, _PLAIN.default, escape, None, ":", ",", False, False, True)  # noqa: FBT003 - theirs

        def encode(value: object) -> str:
            return "".join(chunks(value, 0))

        if encode(_TRIED) == _PLAIN.encode(_TRIED):
            return encode
    except TypeError:
        pass
    return _PLAIN.encode


compact: Final = _encoder()
