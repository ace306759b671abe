"""Spans of time as people write them: a day or a month is all of it, both ends are inside, no zone means UTC."""

import re
from datetime import UTC, date, datetime, timedelta
from typing import Final

from crypto_lake.config import ConfigError

Moment = date | datetime | str

MONTH: Final = re.compile(r"(\d{4})-(\d{2})")
DAY: Final = timedelta(days=1)
# Tables count in microseconds: behind an instant the next one is this far.
TICK: Final = timedelta(microseconds=1)


def span(start: Moment | None, end: Moment | None) -> tuple[datetime | None, datetime | None]:
    """The first instant inside and the first one behind; None where there is no end.

    Raises `ConfigError` for a text that is no time, and for an end before the start.
    """
    since = None if start is None else _limits("start", start)[0]
    until = None if end is None else _limits("end", end)[1]
    if since and until and since >= until:
        raise ConfigError(f"start={start} is after end={end}")
    return since, until


def limits(option: str, text: str) -> tuple[date, date]:
    """The first and the last day of what a text names, a day or a month. Raises `ConfigError` naming the option."""
    form = f"{option} {text}: write a day (2024-01-15) or a month (2024-01)"
    try:
        since, behind = span(text, text)
    except ConfigError:
        raise ConfigError(form) from None
    assert since is not None
    assert behind is not None
    if behind - since < DAY:
        raise ConfigError(form)
    return since.date(), (behind - DAY).date()


def _limits(name: str, value: Moment) -> tuple[datetime, datetime]:
    """The first instant of what `value` names, and the first one behind it."""
    try:
        if isinstance(value, str):
            return _text_limits(value.strip())
        return _instant_limits(value) if isinstance(value, datetime) else _day_limits(value)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{name}={value!r} is no time: write a day (2024-01-15), a month (2024-01) or an instant (2024-01-15T10:30)"
        ) from None


def _text_limits(text: str) -> tuple[datetime, datetime]:
    if month := MONTH.fullmatch(text):
        first = date(int(month[1]), int(month[2]), 1)
        return _day_limits(first)[0], _day_limits((first + 31 * DAY).replace(day=1))[0]
    if len(text) <= len("2024-01-15"):
        return _day_limits(date.fromisoformat(text))
    return _instant_limits(datetime.fromisoformat(text))


def _day_limits(day: date) -> tuple[datetime, datetime]:
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return midnight, midnight + DAY


def _instant_limits(instant: datetime) -> tuple[datetime, datetime]:
    utc = instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    return utc, utc + TICK
