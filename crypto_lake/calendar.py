"""Coverage as a calendar on a terminal: a line per month with a cell per day, and what is wrong with days in words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final

import polars as pl
from rich.text import Text

from crypto_lake.models.coverage import COMPLETE, DIFFERS, INCOMPLETE, UNVERIFIABLE
from crypto_lake.report import CERTIFIED, MEANINGS, SERIES, days_of, duration, lines, reason, series, shade

# With more months than that a line is a year and a cell a week.
MONTHS_SHOWN: Final = 24
DAYS_TOLD: Final = 20
NAME_WIDTH: Final = 8
WEEKS: Final = 53
DAY: Final = timedelta(days=1)
# The shade of a week is the worst of its days.
WORST_FIRST: Final = (INCOMPLETE, DIFFERS, UNVERIFIABLE, COMPLETE, CERTIFIED)
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True, slots=True)
class Look:
    """How cells look: the sign and the style of each shade, what stands between two days, and the sign of no day."""

    cells: Mapping[str, tuple[str, str]]
    between: str
    nothing: str


COLOURED: Final = Look(
    {
        CERTIFIED: ("■", "bold green"),
        COMPLETE: ("□", "green"),
        INCOMPLETE: ("✗", "bold red"),
        DIFFERS: ("≠", "bold yellow"),
        UNVERIFIABLE: ("·", "bright_black"),
    },
    between=" ",
    nothing=" ",
)
PLAIN: Final = Look(
    {CERTIFIED: ("C", ""), COMPLETE: ("c", ""), INCOMPLETE: ("I", ""), DIFFERS: ("D", ""), UNVERIFIABLE: ("u", "")},
    between="",
    nothing=".",
)


def calendar(found: pl.DataFrame, look: Look) -> Iterator[Text]:
    """The lines to print: each series month by month, or year by year, the legend with totals, and the bad days."""
    days = days_of(found)
    months = (days[-1].year - days[0].year) * 12 + days[-1].month - days[0].month + 1
    for name, held in lines(found):
        yield _heading(name, held)
        yield from _months(held, look) if months <= MONTHS_SHOWN else _years(held, look)
        yield Text()
    yield _legend(found, look)
    if months > MONTHS_SHOWN:
        yield Text("A cell is a week and shows its worst day; --start and --end for days.")
    yield from _told(found, look)


def _heading(name: str, held: Mapping[date, dict[str, Any]]) -> Text:
    shades = [shade(row) for row in held.values()]
    certified = shades.count(CERTIFIED)
    counts = f"{certified + shades.count(COMPLETE):,} of {len(held):,} days complete, {certified:,} certified"
    return Text.assemble((name, "bold"), f"  {min(held)} to {max(held)}: {counts}")


# A line per month


def _months(held: Mapping[date, dict[str, Any]], look: Look) -> Iterator[Text]:
    step = 1 + len(look.between)
    yield _ruler({(day - 1) * step: str(day) for day in (1, 5, 10, 15, 20, 25, 30)})
    for month in sorted({day.replace(day=1) for day in held}):
        days = [month + number * DAY for number in range(31)]
        cells = [_cell(held.get(day) if day.month == month.month else None, look) for day in days]
        own = [held[day] for day in days if day in held and day.month == month.month]
        yield Text.assemble(f"{month:%Y-%m}".ljust(NAME_WIDTH), *_spaced(cells, look), "  ", _counted(own))


def _spaced(cells: Sequence[tuple[str, str]], look: Look) -> Iterator[tuple[str, str] | str]:
    for number, cell in enumerate(cells):
        yield look.between if number else ""
        yield cell


def _cell(row: dict[str, Any] | None, look: Look) -> tuple[str, str]:
    return (look.nothing, "") if row is None else look.cells[shade(row)]


def _counted(rows: Sequence[dict[str, Any]]) -> str:
    whole = sum(row["verdict"] == COMPLETE for row in rows)
    return f"{whole} of {len(rows)}"


def _ruler(marks: Mapping[int, str]) -> Text:
    ruler = ""
    for at, mark in marks.items():
        ruler = ruler.ljust(at) + mark
    return Text(" " * NAME_WIDTH + ruler, "bright_black")


# A line per year


def _years(held: Mapping[date, dict[str, Any]], look: Look) -> Iterator[Text]:
    yield _ruler({(date(2023, number, 1).timetuple().tm_yday - 1) // 7: name for number, name in enumerate(MONTHS, 1)})
    for year in sorted({day.year for day in held}):
        own = {day: row for day, row in held.items() if day.year == year}
        shades: dict[int, set[str]] = {}
        for day, row in own.items():
            shades.setdefault((day.timetuple().tm_yday - 1) // 7, set()).add(shade(row))
        cells = [_worst(shades.get(week, set()), look) for week in range(WEEKS)]
        yield Text.assemble(str(year).ljust(NAME_WIDTH), *cells, "  ", _counted(list(own.values())))


def _worst(shades: set[str], look: Look) -> tuple[str, str]:
    worst = next((each for each in WORST_FIRST if each in shades), None)
    return (look.nothing, "") if worst is None else look.cells[worst]


# What it says


def _legend(found: pl.DataFrame, look: Look) -> Text:
    shades = [shade(row) for row in found.iter_rows(named=True)]
    parts: list[tuple[str, str] | str] = []
    for name, (sign, style) in look.cells.items():
        parts += [(sign, style), f" {name} {shades.count(name):,} ({MEANINGS[name]})\n"]
    return Text.assemble(*parts, sentence(found))


def sentence(found: pl.DataFrame) -> str:
    """All of it in a sentence."""
    counts = dict(found.group_by("verdict").len().iter_rows())
    verdicts = ", ".join(f"{counts[name]:,} {name}" for name in reversed(WORST_FIRST) if name in counts)
    symbols = found.select(SERIES).n_unique()
    missing, repaired, down_s = found.select("missing_rows", "repaired_rows", "downtime_s").sum().row(0)
    return (
        f"{found.height:,} days of {symbols:,} series: {verdicts}; {missing or 0:,} rows missing, "
        f"{repaired:,} repaired, {duration(down_s)} without delivery"
    )


def _told(found: pl.DataFrame, look: Look) -> Iterator[Text]:
    """The days that are not complete and why, the worst first; days of one kind that follow each other are one line."""
    stretches = sorted(_stretches(found), key=lambda rows: WORST_FIRST.index(rows[0]["verdict"]))
    if stretches:
        yield Text("\nNot complete:")
    for rows in stretches[:DAYS_TOLD]:
        first, last = rows[0], rows[-1]
        days = str(first["date"]) + (f" to {last['date']}" if len(rows) > 1 else "")
        name = series(first)
        verdict = first["verdict"], look.cells[first["verdict"]][1]
        yield Text.assemble(f"  {days:24}  {name}  ", verdict, f": {reason(rows)}")
    if (rest := len(stretches) - DAYS_TOLD) > 0:
        yield Text(f"  ... and {rest:,} more; --start, --end and --symbols for fewer days, --json for all of them")


def _stretches(found: pl.DataFrame) -> Iterator[list[dict[str, Any]]]:
    for _, held in lines(found):
        kept: list[dict[str, Any]] = []
        for day, row in held.items():
            if kept and not (kept[-1]["date"] + DAY == day and _kind(kept[-1]) == _kind(row)):
                yield kept
                kept = []
            kept = [*kept, row] if row["verdict"] != COMPLETE else []
        if kept:
            yield kept


def _kind(row: dict[str, Any]) -> tuple[str, str]:
    """Unverifiable days belong together when they have one reason; of others the numbers are added up."""
    return row["verdict"], reason([row]) if row["verdict"] == UNVERIFIABLE else ""
