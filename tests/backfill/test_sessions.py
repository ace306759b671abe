"""The days on which there should be a flat file, and from when on."""

import sys
from datetime import UTC, date, datetime

import pytest

from crypto_lake.backfill.flat_plan import began
from crypto_lake.backfill.sessions import is_due, sessions
from crypto_lake.config import ConfigError
from crypto_lake.models import DATASETS
from crypto_lake.models.flatfile import folders

# The calendars' own use of pandas.
pytestmark = pytest.mark.filterwarnings("ignore:Series.values returning:DeprecationWarning")


def test_an_exchange_has_holidays() -> None:
    assert [day.day for day in sessions("XNYS", date(2026, 5, 20), date(2026, 5, 29))] == [20, 21, 22, 26, 27, 28, 29]


def test_history_reaches_back_to_the_first_file() -> None:
    found = sessions("XNYS", date(2003, 9, 1), date(2003, 9, 10))
    assert found[0] == date(2003, 9, 2), "Labor Day was on the first"
    assert sessions("XNYS", date(2012, 10, 26), date(2012, 10, 31)) == [date(2012, 10, 26), date(2012, 10, 31)], "Sandy"


def test_a_span_over_years_has_all_their_sessions() -> None:
    assert (
        len(sessions("XNYS", date(2024, 12, 30), date(2025, 1, 10))) == 8
    )  # two closed days: New Year, and a mourning
    assert sessions("XNYS", date(2026, 5, 23), date(2026, 5, 25)) == []


def test_without_the_extra_it_is_said_which_one_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "exchange_calendars", None)
    with pytest.raises(ConfigError, match=r"needs the extra `stocks`: pip install 'crypto-lake\[stocks\]'"):
        sessions("XNYS", date(1999, 1, 1), date(1999, 1, 2))


@pytest.mark.parametrize(("calendar", "days"), [("24/7", 7), ("24/5", 5), ("XNYS", 4)])
def test_every_calendar_that_a_folder_names_is_known(calendar: str, days: int) -> None:
    named = {kind.calendar for dataset in DATASETS.values() for kind in dataset.flat.values()}
    assert named == {"24/7", "24/5", "XNYS"}
    assert len(sessions(calendar, date(2026, 5, 25), date(2026, 5, 31))) == days


def test_of_every_folder_it_is_known_when_its_files_begin() -> None:
    assert {began(folder).year for folder in folders()} == {2003, 2009, 2010, 2014, 2023}


@pytest.mark.parametrize(
    ("day", "hour_utc"), [(date(2026, 5, 21), 15), (date(2026, 1, 21), 16)], ids=["summer", "winter"]
)
def test_a_file_is_due_at_eleven_in_new_york_on_the_next_day(day: date, hour_utc: int) -> None:
    at = datetime(day.year, day.month, day.day + 1, hour_utc, tzinfo=UTC)
    assert is_due(day, at)
    assert not is_due(day, at.replace(hour=hour_utc - 1, minute=59))
