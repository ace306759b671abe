"""Both ends are inside, and a day or a month is all of it."""

from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from crypto_lake.config import ConfigError
from crypto_lake.query.span import Moment, span


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("moment", "first", "behind"),
    [
        ("2024-01-15", utc(2024, 1, 15), utc(2024, 1, 16)),
        ("2024-02", utc(2024, 2, 1), utc(2024, 3, 1)),
        ("2024-12", utc(2024, 12, 1), utc(2025, 1, 1)),
        (date(2024, 2, 29), utc(2024, 2, 29), utc(2024, 3, 1)),
        ("2024-01-15T10:30", utc(2024, 1, 15, 10, 30), utc(2024, 1, 15, 10, 30, 0, 1)),
        ("2024-01-15 10:30:00Z", utc(2024, 1, 15, 10, 30), utc(2024, 1, 15, 10, 30, 0, 1)),
        (datetime(2024, 1, 15, 10), utc(2024, 1, 15, 10), utc(2024, 1, 15, 10, 0, 0, 1)),  # noqa: DTZ001 naive is UTC
        (
            datetime(2024, 1, 15, 10, tzinfo=timezone(timedelta(hours=2))),
            utc(2024, 1, 15, 8),
            utc(2024, 1, 15, 8, 0, 0, 1),
        ),
    ],
)
def test_a_moment_names_all_of_itself(moment: Moment, first: datetime, behind: datetime) -> None:
    assert span(moment, moment) == (first, behind)


def test_an_end_that_is_not_given_is_open() -> None:
    assert span(None, None) == (None, None)
    assert span("2024-01", None) == (utc(2024, 1, 1), None)


@pytest.mark.parametrize("wrong", ["2024-13", "2024-01-32", "yesterday", "", "15.01.2024", "2024-1"])
def test_what_is_no_time_is_refused_with_what_would_be_right(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"start='.*' is no time: write a day \(2024-01-15\)"):
        span(wrong, None)


def test_an_end_before_the_start_is_refused() -> None:
    with pytest.raises(ConfigError, match="start=2024-02 is after end=2024-01"):
        span("2024-02", "2024-01")
