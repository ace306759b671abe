"""Reports as files: a validation as JSON, Markdown or HTML, coverage as a heat map."""

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
import polars as pl

from crypto_lake.config import ConfigError
from crypto_lake.models import DATASETS, Dataset
from crypto_lake.models.bar import BAR
from crypto_lake.models.coverage import COMPLETE, DIFFERS, EVERY_SYMBOL, INCOMPLETE, UNVERIFIABLE
from crypto_lake.query import Report

REPORTS: Final = (".json", ".md", ".html")
PICTURES: Final = (".png", ".html")
# A day that is complete, and was held against the official dump.
CERTIFIED: Final = "certified"
COLOURS: Final = {
    CERTIFIED: "#1b7a5a", COMPLETE: "#7fcdb5", UNVERIFIABLE: "#b8b8b8", DIFFERS: "#e9c46a", INCOMPLETE: "#c1121f"
}  # fmt: skip
MEANINGS: Final = {
    CERTIFIED: "whole, and compared with the official dump",
    COMPLETE: "whole: the ids go on without a hole",
    INCOMPLETE: "something is missing",
    DIFFERS: "rows are not those of the dump",
    UNVERIFIABLE: "nothing is known to be missing, and nothing proves it",
}
# What a line of coverage is about.
SERIES: Final = ("dataset", "venue", "symbol", "timeframe")
NO_DAY: Final = "#ffffff"
STYLE: Final = """body{font:14px system-ui,sans-serif;margin:2em;color:#264653}
table{border-collapse:collapse;margin:1em 0}
td,th{padding:2px 8px;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}td.number{text-align:right}
.error,.degraded,.missing{color:#c1121f}.warn,.pending{color:#b07d00}.available{color:#2a9d8f}
table.calendar td{padding:0;border:1px solid #fff;min-width:10px;height:16px}table.calendar th{border:0}"""


def check_ending(option: str, path: Path, endings: tuple[str, ...]) -> None:
    """Raises `ConfigError` when the ending does not say what the file becomes: before the long work, not after it."""
    if path.suffix not in endings:
        raise ConfigError(f"{option} {path}: the ending says what it becomes: {', '.join(endings)}")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}")


def write_validation(report: Report, path: Path) -> None:
    """The whole report, in the form that the ending says. Raises `ConfigError`."""
    forms: dict[str, Callable[[Report], str]] = {".json": as_json, ".md": _markdown, ".html": _html}
    _write("--report", path, forms[path.suffix](report))


def as_json(report: Report) -> str:
    """The report for programs: counts, tables, days, findings."""
    facts = {
        "root": report.root,
        "level": report.level,
        "checked_time": report.checked_time,
        "errors": report.errors,
        "warnings": report.warnings,
        **{name: frame.to_dicts() for name, frame in _parts(report)},
    }
    return msgspec.json.format(msgspec.json.encode(facts)).decode()


def headline(report: Report) -> str:
    """The result in a sentence."""
    errors, warnings = _counted(report.errors, "error"), _counted(report.warnings, "warning")
    return f"{report.level}: {_counted(report.tables.height, 'table')}, {errors}, {warnings}"


def draw_coverage(found: pl.DataFrame, path: Path) -> None:
    """A heat map of days: a line per dataset and symbol. Raises `ConfigError`, also where matplotlib is missing."""
    if path.suffix == ".html":
        _write("--out", path, _coverage_html(found))
    else:
        _coverage_png(found, path)


def lines(found: pl.DataFrame) -> Iterator[tuple[str, dict[date, dict[str, Any]]]]:
    """Coverage, a line per series: its name, and its days."""
    for _, part in found.group_by(SERIES, maintain_order=True):
        days = {row["date"]: row for row in part.iter_rows(named=True)}
        yield series(part.row(0, named=True)), days


def series(day: Mapping[str, Any]) -> str:
    """What the series of a day is called: `agg_trade binance:BTCUSDT`; `bar us-stocks * 1m` is covered file by file."""
    place = f"{day['venue']} *" if day["symbol"] == EVERY_SYMBOL else f"{day['venue']}:{day['symbol']}"
    return " ".join(filter(None, (day["dataset"], place, day["timeframe"])))


def days_of(found: pl.DataFrame) -> list[date]:
    """Every day from the first of any line to the last."""
    first, last = found.select(pl.col("date").min().alias("first"), pl.col("date").max().alias("last")).row(0)
    return list(pl.date_range(first, last, eager=True))


def shade(day: Mapping[str, Any]) -> str:
    """How a day of coverage is shown: as its verdict, or as certified."""
    is_certified = day["verdict"] == COMPLETE and day["dump_sha256"] is not None
    return CERTIFIED if is_certified else str(day["verdict"])


def reason(days: Sequence[Mapping[str, Any]]) -> str:
    """Why days of one verdict are not complete; numbers are those of all of them."""
    verdict, dataset = days[0]["verdict"], DATASETS[days[0]["dataset"]]
    if verdict == UNVERIFIABLE:
        return _doubt(days[0], dataset)
    differing, missing = (sum(day[name] or 0 for day in days) for name in ("differing_rows", "missing_rows"))
    down_s = sum(day["downtime_s"] for day in days)
    is_unknown = dataset.chain is not None and any(day["missing_rows"] is None for day in days)
    parts = [f"{_counted(differing, 'row')} not as in the dump"] if differing else []
    parts += [f"{_counted(missing, 'row')} missing"] if missing else []
    parts += ["updates of the book missing"] if is_unknown else []
    parts += [f"{duration(down_s)} without delivery"] if down_s else []
    return ", ".join(parts) or "its file is not there"


def _doubt(day: Mapping[str, Any], dataset: Dataset) -> str:
    if day["checked_time"] < datetime.combine(day["date"] + timedelta(days=1), time(), UTC):
        return "the day is not over"
    if day["dump_sha256"] is not None:
        return "not all of its bars are here" if dataset.name == BAR.name else "not all of its dump is here"
    if dataset.sequence or dataset.chain:
        return "not compared with a dump, and its ids do not go on on both sides"
    return "not compared with a dump, and no ids prove anything"


def duration(length_s: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(round(length_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _parts(report: Report) -> list[tuple[str, pl.DataFrame]]:
    parts = [("tables", report.tables), ("counts", report.counts), ("findings", report.findings)]
    return parts if report.level == "quick" else [*parts, ("days", report.days)]


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _write(option: str, path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be written: {error.strerror}") from None


# Markdown and HTML


def _markdown(report: Report) -> str:
    text = f"# Validation of {report.root}\n\n{headline(report)}; {report.checked_time:%Y-%m-%d %H:%M:%S} UTC\n"
    for name, frame in _parts(report):
        text += f"\n## {name.capitalize()}\n\n"
        text += "".join(_markdown_lines(_filled(frame))) if frame.height else "none\n"
    return text


def _markdown_lines(frame: pl.DataFrame) -> Iterator[str]:
    yield f"| {' | '.join(frame.columns)} |\n|{'---|' * frame.width}\n"
    for row in frame.iter_rows():
        yield f"| {' | '.join(_cell(value).replace('|', chr(92) + '|') for value in row)} |\n"


def _html(report: Report) -> str:
    when = f"{report.checked_time:%Y-%m-%d %H:%M:%S} UTC"
    body = f"<h1>Validation of {html.escape(report.root)}</h1><p>{headline(report)}; {when}</p>"
    for name, frame in _parts(report):
        body += f"<h2>{name.capitalize()}</h2>"
        body += "".join(_html_lines(_filled(frame))) if frame.height else "<p>none</p>"
    return _page(f"Validation of {html.escape(report.root)}", body)


def _html_lines(frame: pl.DataFrame) -> Iterator[str]:
    yield f"<table><tr>{''.join(f'<th>{name}</th>' for name in frame.columns)}</tr>"
    for row in frame.iter_rows():
        yield f"<tr>{''.join(map(_html_cell, row))}</tr>\n"
    yield "</table>"


def _html_cell(value: Any) -> str:
    text = html.escape(_cell(value))
    if isinstance(value, str) and text in ("error", "warn", "degraded", "missing", "pending", "available"):
        return f'<td class="{text}">{text}</td>'
    return f'<td class="number">{text}</td>' if isinstance(value, (int, float)) else f"<td>{text}</td>"


def _page(title: str, body: str) -> str:
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{body}</body></html>\n"


def _filled(frame: pl.DataFrame) -> pl.DataFrame:
    """Without columns that say nothing about any row."""
    return frame.select(name for name in frame.columns if frame[name].null_count() < frame.height)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S.%f}".rstrip("0").rstrip(".")
    return f"{value:.10g}" if isinstance(value, float) else str(value)


# The heat map


def _coverage_html(found: pl.DataFrame) -> str:
    days = days_of(found)
    body = "<h1>Coverage</h1><p>"
    body += " ".join(
        f'<span title="{MEANINGS[name]}"><span style="color:{colour}">■</span> {name}</span>'
        for name, colour in COLOURS.items()
    )
    body += f'</p><table class="calendar"><tr><th></th>{"".join(map(_html_month, days))}</tr>'
    for name, held in lines(found):
        cells = "".join(_html_day(day, held.get(day)) for day in days)
        body += f"<tr><th>{html.escape(name)}</th>{cells}</tr>\n"
    return _page("Coverage", body + "</table>")


def _html_month(day: date) -> str:
    return f"<th>{day:%Y-%m}</th>" if day.day == 1 else "<th></th>"


def _html_day(day: date, row: dict[str, Any] | None) -> str:
    if row is None:
        return "<td></td>"
    missing = "" if row["missing_rows"] is None else f", {row['missing_rows']:,} missing"
    dump = f", dump of {row['dump_rows'] or 0:,} rows" if row["dump_sha256"] else ""
    differing = f", {row['differing_rows']:,} differing" if row["differing_rows"] else ""
    title = f"{day}: {shade(row)}, {row['rows']:,} rows{missing}{differing}, {row['downtime_s']:.0f} s without delivery"
    return f'<td style="background:{COLOURS[shade(row)]}" title="{title}{dump}"></td>'


def _coverage_png(found: pl.DataFrame, path: Path) -> None:
    try:
        import matplotlib as mpl
    except ImportError:
        raise ConfigError("a picture needs matplotlib: pip install 'crypto-lake[plot]', or --out FILE.html") from None
    mpl.use("Agg")
    from matplotlib import dates, patches
    from matplotlib import pyplot as plt
    from matplotlib.colors import ListedColormap

    days, symbols = days_of(found), list(lines(found))
    places = {name: number for number, name in enumerate(COLOURS, start=1)}
    grid = [[places[shade(held[day])] if day in held else 0 for day in days] for _, held in symbols]
    figure, axes = plt.subplots(figsize=(12, 1.5 + 0.25 * len(symbols)), constrained_layout=True)
    # matplotlib counts days, and a cell goes from its midnight to the next.
    number: Callable[[date], float] = dates.date2num
    ends = number(days[0]), number(days[-1]) + 1
    palette = ListedColormap([NO_DAY, *COLOURS.values()])
    extent = (*ends, len(symbols) - 0.5, -0.5)
    axes.imshow(grid, aspect="auto", interpolation="none", cmap=palette, vmin=0, vmax=len(COLOURS), extent=extent)
    axes.xaxis_date()
    axes.set_yticks(range(len(symbols)), [name for name, _ in symbols])
    axes.spines[:].set_visible(False)
    axes.legend(
        handles=[patches.Patch(color=colour, label=name) for name, colour in COLOURS.items()],
        loc="lower right", bbox_to_anchor=(1, 1), ncols=len(COLOURS), frameon=False,
    )  # fmt: skip
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be written: {error.strerror}") from None
    finally:
        plt.close(figure)
