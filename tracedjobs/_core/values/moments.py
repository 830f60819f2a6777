"""Date, time, datetime and timedelta as plain JSON, with fold and zone, and back.

Not a parser of dates: only the exact text that is written here is read.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta, timezone
from typing import TYPE_CHECKING, TypeVar, cast

from tracedjobs._core.values.refusal import RefusedError, type_name
from tracedjobs.errors import SerializationError

if TYPE_CHECKING:
    from datetime import tzinfo
    from zoneinfo import ZoneInfo

_Moment = TypeVar("_Moment", date, time, datetime)

# No dots: a key names a file of the time zone data, or of a package below `tzdata`.
_ZONE_KEY = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")
_MICROSECOND = timedelta(microseconds=1)


def store_date(value: date) -> str:
    """Return the ISO text of a date."""
    return value.isoformat()


def load_date(payload: str) -> date:
    """Return the date of an ISO text."""
    return _canonical(date.fromisoformat(payload), payload)


def store_moment(value: datetime | time) -> object:
    """Return the ISO text, with fold and zone, which it has no room for, beside it if any."""
    text = value.replace(tzinfo=None).isoformat()
    if value.tzinfo is None and not value.fold:
        return text
    return [text, value.fold, None if value.tzinfo is None else _store_zone(value.tzinfo)]


def load_datetime(payload: object) -> datetime:
    """Return the datetime that `store_moment` was given."""
    text, fold, zone = _moment(payload)
    return _canonical(datetime.fromisoformat(text), text).replace(tzinfo=zone, fold=fold)


def load_time(payload: object) -> time:
    """Return the time that `store_moment` was given."""
    text, fold, zone = _moment(payload)
    return _canonical(time.fromisoformat(text), text).replace(tzinfo=zone, fold=fold)


def store_timedelta(value: timedelta) -> list[int]:
    """Return days, seconds and microseconds."""
    return [value.days, value.seconds, value.microseconds]


def load_timedelta(payload: object) -> timedelta:
    """Return the timedelta of days, seconds and microseconds."""
    days, seconds, microseconds = (_int(part) for part in _list(payload))
    value = timedelta(days, seconds, microseconds)
    if store_timedelta(value) != payload:
        raise ValueError(payload)
    return value


def _moment(payload: object) -> tuple[str, int, tzinfo | None]:
    if isinstance(payload, str):
        return payload, 0, None
    text, fold, zone = _list(payload)
    return cast("str", text), _int(fold), None if zone is None else _load_zone(zone)


def _store_zone(zone: tzinfo) -> object:
    if type(zone) is timezone:
        offset, name = zone.utcoffset(None), zone.tzname(None)
        return [offset // _MICROSECOND, None if name == timezone(offset).tzname(None) else name]
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - few jobs need it

    if type(zone) is not ZoneInfo:
        raise RefusedError(
            f"its tzinfo is of type {type_name(type(zone))}, whose rules would be lost; "
            "use zoneinfo.ZoneInfo or datetime.timezone"
        )
    if _zone_info(zone.key) is None:
        raise RefusedError(
            f"its zone {zone!r} cannot be found again by its key; use zoneinfo.ZoneInfo(key)"
        )
    return zone.key


def _load_zone(payload: object) -> tzinfo:
    if isinstance(payload, str):
        zone = _zone_info(payload)
        if zone is None:
            raise SerializationError(
                f"the stored time zone {payload!r} is not known on this machine; "
                "install or upgrade the tzdata package, then run this again"
            )
        return zone
    microseconds, name = _list(payload)
    offset = timedelta(microseconds=_int(microseconds))
    return timezone(offset) if name is None else timezone(offset, cast("str", name))


def _zone_info(key: str | None) -> ZoneInfo | None:
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - few jobs need it

    if key is None or _ZONE_KEY.fullmatch(key) is None:
        return None
    try:
        return ZoneInfo(key)
    except (LookupError, ValueError, OSError):  # unknown, no zone file, a folder
        return None


def _canonical(value: _Moment, text: str) -> _Moment:
    """Refuse what `fromisoformat` understands but `isoformat` does not write."""
    if value.isoformat() != text or getattr(value, "tzinfo", None) is not None:
        raise ValueError(text)
    return value


def _list(payload: object) -> list[object]:
    if not isinstance(payload, list):
        raise TypeError(payload)
    return payload


def _int(payload: object) -> int:
    if type(payload) is not int:
        raise TypeError(payload)
    return payload
