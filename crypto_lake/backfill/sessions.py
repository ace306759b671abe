"""The days on which there should be a flat file: its exchange trades, and what was traded has been published by now."""

from datetime import date, datetime, time
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from crypto_lake.config import ConfigError
from crypto_lake.models.bucket import DAY

# A day's file comes on the next day at about this time (PROTOCOLS E.3), whatever is traded, and wherever.
PUBLISHED: Final = time(11, tzinfo=ZoneInfo("America/New_York"))


def sessions(calendar: str, first: date, last: date) -> list[date]:
    """The days of a calendar (XNYS, 24/7, 24/5), both ends inside. Raises `ConfigError` without the extra `stocks`."""
    return [day for day in _of_years(calendar, first.year, last.year) if first <= day <= last]


def is_due(day: date, now: datetime) -> bool:
    """Whether the file of a day should be there."""
    return now >= datetime.combine(day + DAY, PUBLISHED)


@lru_cache(maxsize=4)
def _of_years(calendar: str, first: int, last: int) -> tuple[date, ...]:
    try:
        import exchange_calendars
    except ImportError:
        raise ConfigError(
            "to know when exchanges trade needs the extra `stocks`: pip install 'crypto-lake[stocks]'"
        ) from None
    # Without bounds a calendar begins twenty years ago.
    made = exchange_calendars.get_calendar(calendar, start=f"{first}-01-01", end=f"{last}-12-31")
    return tuple(session.date() for session in made.sessions)
