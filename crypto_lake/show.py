"""What a person is shown: tables on a terminal, JSON for programs, and a picture of a recording."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import polars as pl
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from crypto_lake.config import Settings, origin, unknown_names
from crypto_lake.models import Dataset

if TYPE_CHECKING:
    from crypto_lake.backfill.findings import Differences
    from crypto_lake.backfill.flow import Summary
    from crypto_lake.backfill.plan import Absent
    from crypto_lake.backfill.reconcile import Outcome, Reconciled
    from crypto_lake.backfill.yahoo import Summary as Charted
    from crypto_lake.build.export import Checked, Exported
    from crypto_lake.build.extract import Extracted
    from crypto_lake.build.flow import Built
    from crypto_lake.query import Report
    from crypto_lake.query.watermarks import Watermarks
    from crypto_lake.writers.maintenance import Done

ROWS_ON_A_TERMINAL: Final = 20
# A table with more columns would be lines and no figures: of such a one the first that say something.
MOST_COLUMNS: Final = 16
COLUMNS_SHOWN: Final = 12
PAGE_WIDTH: Final = 120
FAILED: Final = 1
UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
BATCH_ROWS: Final = 200_000
FINDINGS_SHOWN: Final = 40
FEW_LINES: Final = 10
# Of more symbols than that only the laggards are named.
SYMBOLS_LISTED: Final = 40
SEVERITIES: Final = {"error": "bold red", "warn": "yellow", "info": "dim"}


def tables(found: pl.DataFrame, *, as_json: bool = False, title: str = "") -> None:
    """A line per table, and per kind of file that is none, layer by layer; or the same as JSON."""
    if as_json:
        _json(found.to_dicts())
        return
    if not found["files"].sum() and found["rows"].null_count() == found.height:
        typer.echo("no tables there yet")
        return
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("layer", "table", "time span, UTC"):
        table.add_column(name, no_wrap=True)
    for name in ("newest", "rows", "symbols", "gaps", "duplicates", "files", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    above = None
    for row in found.iter_rows(named=True):
        numbers = (row[name] for name in ("rows", "symbols", "holes", "duplicates", "files"))
        span = _short_span(row["first_time"], row["last_time"])
        layer, above = "" if row["layer"] == above else row["layer"], row["layer"]
        table.add_row(layer, row["dataset"], span, _age(row["age_s"]), *map(_number, numbers), _size(row["bytes"]))
    _console().print(table)


def watermarks(found: "Sequence[Watermarks]", *, now: datetime, as_json: bool) -> None:
    """How far each series is up to date; of many symbols how far all are, and which are behind."""
    if as_json:
        _json(
            [{"dataset": each.dataset, "looked_back_to": each.since, "series": each.rows.drop("dataset").to_dicts()}
             for each in found]
        )  # fmt: skip
        return
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in ("table", "venue", "symbol", "bars", "up to, UTC", "age"):
        table.add_column(name, no_wrap=True)
    notes: list[str] = []
    for each in found:
        for _, group in each.rows.group_by("venue", "timeframe", "origin", maintain_order=True):
            is_long = group.height > SYMBOLS_LISTED
            for row in [_summed_up(group)] if is_long else group.iter_rows(named=True):
                age = _age((now - row["watermark"]).total_seconds())
                place = (row["dataset"], row["venue"] or "", row["symbol"] or "", _bars(row))
                table.add_row(*map(escape, place), f"{row['watermark']:%Y-%m-%d %H:%M:%S}", age)
            notes += _behind(group) if is_long else []
        if each.since:
            notes.append(f"{each.dataset}: what ended before {each.since} was not looked for")
    _console().print(table)
    for note in notes:
        typer.echo(note)


def _summed_up(group: pl.DataFrame) -> dict[str, Any]:
    newest = group.sort("watermark").row(-1, named=True)
    return newest | {"symbol": f"{group.height:,} symbols"}


def _behind(group: pl.DataFrame) -> list[str]:
    """`bar us-stocks 1m flatfile: 2 of 11,000 symbols end a day or more earlier: OLD 2026-05-01, OTHER 2026-05-27`."""
    from crypto_lake.query.watermarks import laggards

    late, newest = laggards(group), group.sort("watermark").row(-1, named=True)
    name = " ".join(word for word in (newest["dataset"], newest["venue"], _bars(newest)) if word)
    oldest = group.sort("watermark").row(0, named=True)["watermark"]
    if late.is_empty():
        return [f"{name}: none ends a day or more earlier; the oldest is of {oldest:%Y-%m-%d %H:%M:%S}"]
    words = [f"{symbol} {time:%Y-%m-%d}" for symbol, time in late.head(FEW_LINES).select("symbol", "watermark").rows()]
    more = [f"and {late.height - FEW_LINES:,} more"] if late.height > FEW_LINES else []
    return [
        f"{name}: {late.height:,} of {group.height:,} symbols end a day or more earlier: {', '.join([*words, *more])}"
    ]


def _bars(row: dict[str, Any]) -> str:
    return " ".join(row[name] for name in ("timeframe", "origin") if row[name])


def _age(age_s: float | None) -> str:
    """`5 s`, `12 min`, `3 h`, `4 days`: of what lies in the future, as it is."""
    if age_s is None:
        return "-"
    for unit, length_s in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if age_s >= 2 * length_s:
            return f"{age_s / length_s:,.0f} {unit}"
    return f"{age_s:,.0f} s"


def rows(found: pl.LazyFrame, *, limit: int | None, out: Path | None, as_json: bool) -> None:
    """Rows on the terminal, as JSON, or into a file whose ending says what it becomes. Raises `ConfigError`."""
    if out is not None:
        _export(found if limit is None else found.head(limit), out)
        return
    clock = next((name for name in ("time", "received_time", "start_time") if name in found.collect_schema()), None)
    found = found.sort(clock) if clock else found
    shown = found.head(limit or ROWS_ON_A_TERMINAL).collect()
    if as_json:
        typer.echo(shown.write_ndjson(), nl=False)
        return
    few = shown.columns if len(shown.columns) <= MOST_COLUMNS else [*_telling(shown)][:COLUMNS_SHOWN]
    table = Table(*few)
    for row in shown.select(few).iter_rows():
        table.add_row(*map(_cell, row))
    _console().print(table)
    if left := shown.width - len(few):
        typer.echo(f"{left} more columns; --columns A,B for those you want, --out FILE for all")
    if limit is None and shown.height == ROWS_ON_A_TERMINAL:
        typer.echo(f"the first {shown.height} rows; --limit N for more, --out FILE for all")


def _telling(shown: pl.DataFrame) -> Iterator[str]:
    """The columns that say something in these rows: several things, or one that is not said by all rows of a table."""
    for name in shown.columns:
        if shown[name].null_count() < shown.height and name not in ("source", "date", "received_time"):
            yield name


def _export(found: pl.LazyFrame, out: Path) -> None:
    from crypto_lake.writers.extract import form_of, left_out, write

    form, schema = form_of(out), found.collect_schema()
    write(out, form, schema, found.collect_batches(chunk_size=BATCH_ROWS))
    typer.echo(f"wrote {out} ({_size(out.stat().st_size)}){_without(left_out(form, schema))}")


def _without(columns: list[str]) -> str:
    return f"; without {', '.join(columns)}, of which CSV has no form" if columns else ""


def extracted(done: "Extracted", *, as_json: bool) -> None:
    """What was written for other programs."""
    if as_json:
        _json(asdict(done))
        return
    files = "" if done.files == 1 else f" in {done.files:,} files"
    typer.echo(f"wrote {done.rows:,} rows{files} to {done.out}, in {done.seconds:.1f} s{_without(done.left_out)}")


def exported(done: "Exported | None", checked: "Checked | None", *, as_json: bool) -> None:
    """What an export to Qlib did, and what is wrong with the root; exit status 1 if something is."""
    if as_json:
        found = {"findings": [each._asdict() for each in checked.findings]} if checked else {}
        _json((asdict(checked) if checked else {}) | (asdict(done) if done else {}) | found)
    else:
        if done:
            _say_exported(done)
        if checked:
            _say_checked(checked)
    if checked and checked.findings:
        raise typer.Exit(FAILED)


def _say_exported(done: "Exported") -> None:
    size = f"{_count(done.symbols, 'symbol')}, {_count(done.fields, 'field')}, {done.slots:,} slots of {done.frequency}"
    how = "made anew" if done.is_anew else f"{done.added:,} of them appended" if done.added else "nothing new"
    typer.echo(f"{done.folder}: {size}: {how}, in {done.seconds:.1f} s")
    for note in done.notes:
        typer.echo(f"crypto-lake: {note}", err=True)


def _say_checked(checked: "Checked") -> None:
    for finding in checked.findings:
        typer.echo(f"{finding.file}: {finding.what}")
    about = f"{checked.folder}: {_count(checked.symbols, 'symbol')}, {checked.slots:,} slots of {checked.frequency}"
    typer.echo(f"{about}: {_count(len(checked.findings), 'finding') if checked.findings else 'as it should be'}")


def schema(datasets: list[Dataset], *, as_json: bool) -> None:
    """Columns, types and meanings of datasets."""
    if as_json:
        _json({each.name: {c.name: {"type": str(c.dtype), "meaning": c.meaning} for c in each.columns}
               for each in datasets})  # fmt: skip
        return
    console = _console()
    for dataset in datasets:
        table = Table(title=f"{dataset.name}: {dataset.meaning}", title_justify="left")
        for name in ("column", "type", "null", "meaning"):
            table.add_column(name)
        for column in dataset.columns:
            is_key = "[bold]" if column.name in dataset.key else ""
            table.add_row(
                is_key + column.name, escape(_type(column.dtype)), "yes" if column.nullable else "", column.meaning
            )
        console.print(table)
        console.print(f"key: {', '.join(dataset.key) or 'none'}\n")


def settings(in_force: Settings, *, as_json: bool) -> None:
    """Every setting with its value and where it comes from."""
    facts = [
        {"setting": field.alias, "value": _secret(name, getattr(in_force, name)), "from": origin(str(field.alias))}
        for name, field in Settings.model_fields.items()
    ]
    if as_json:
        _json(facts)
        return
    table = Table("setting", "value", "from")
    for fact in facts:
        table.add_row(*map(str, fact.values()))
    _console().print(table)
    for name in unknown_names():
        typer.echo(f"{name} is set, but there is no such setting", err=True)


def symbols(found: pl.DataFrame, *, as_json: bool) -> None:
    """Symbols to collect, and who says so."""
    if as_json:
        _json(found.to_dicts())
        return
    if found.is_empty():
        typer.echo("no symbols: add some with crypto-lake symbols add, or name them in LAKE_SYMBOLS")
        return
    table = Table("venue", "symbol", "type", "state", "since, UTC", "from")
    for row in found.iter_rows(named=True):
        state = "active" if row["is_active"] else "removed"
        since = "" if row["added_time"] is None else f"{row['added_time']:%Y-%m-%d %H:%M:%S}"
        table.add_row(row["venue"], escape(row["symbol"]), row["asset_type"], state, since, row["from"])
    _console().print(table)


def health(answer: dict[str, Any], *, as_json: bool) -> None:
    """How a recorder is; exit status 1 when it does not record."""
    if as_json:
        _json(answer)
    else:
        details = answer["details"]
        typer.echo(f"{answer['status']}: pid {answer['pid']}, up {details['up_s']:.0f} s")
        for reason in answer["reasons"]:
            typer.echo(f"  - {reason}")
        table = Table("dataset", "rows since start", "last commit", "waiting in the journal")
        for name, drain in details["drains"].items():
            ago = drain["committed_s_ago"]
            table.add_row(
                name,
                f"{details['rows'].get(name, 0):,}",
                "none yet" if ago is None else f"{ago:.0f} s ago",
                _size(drain["backlog_bytes"]),
            )
        _console().print(table)
        _console().print(_feeds(details["feeds"]))
        typer.echo(f"load level {details['load_level']}")
    if answer["status"] == "failing":
        raise typer.Exit(FAILED)


def _feeds(feeds: dict[str, Any]) -> Table:
    table = Table("feed", "last message")
    for name in ("connections", "messages", "repeats", "lapses", "given up", "silent streams"):
        table.add_column(name, justify="right")
    for name, feed in feeds.items():
        ago_s = feed["heard_s_ago"]
        connections = f"{feed['connections']} of {feed['connections_wanted']}"
        counts = (feed["messages"], feed["repeats"], feed["lapses"], feed["shed"], len(feed["silent"]))
        heard = "none yet" if ago_s is None else f"{ago_s:.0f} s ago"
        table.add_row(name, heard, connections, *(f"{count:,}" for count in counts))
    return table


def done(steps: "Iterable[Done]") -> bool:
    """What maintenance did, a line each; whether every step could be done."""
    went_well = True
    for step in steps:
        day = f" {step.day}" if step.day else ""
        if step.error:
            went_well = False
            typer.echo(f"{step.dataset}{day}: {step.step} failed: {step.error}", err=True)
        elif step.changed:
            files = f"{step.files_before} files became {step.files_after}"
            size = f"{_size(step.bytes_before)} became {_size(step.bytes_after)}"
            typer.echo(f"{step.dataset}{day}: {step.step}: {files}, {size}")
    return went_well


def validation(report: "Report", *, as_json: bool) -> None:
    """A line per table and per finding, the conditions of the days, and the result in a sentence."""
    from crypto_lake import report as reports

    if as_json:
        typer.echo(reports.as_json(report))
        return
    console = _console()
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in ("table", "days"):
        table.add_column(name, no_wrap=True)
    for name in ("rows", "files", "missing days", "errors", "warned"):
        table.add_column(name, justify="right")
    for row in report.tables.iter_rows(named=True):
        days = "-" if row["first_day"] is None else f"{row['first_day']} to {row['last_day']}"
        numbers = [_number(row[name]) for name in ("rows", "files", "missing_days", "errors", "warnings")]
        style = "red" if row["errors"] else "yellow" if row["warnings"] else "green"
        table.add_row(f"[{style}]{row['dataset']}", days, *numbers)
    console.print(table)
    for row in report.findings.head(FINDINGS_SHOWN).iter_rows(named=True):
        console.print(_finding(row), soft_wrap=True)
    if (hidden := report.counts["found"].sum() - min(FINDINGS_SHOWN, report.findings.height)) > 0:
        console.print(f"... and {hidden:,} more; --report FILE.md or --json for them")
    if report.days["condition"].count():
        found = report.days.drop_nulls("condition").group_by("condition").len().sort("condition")
        console.print("days: " + ", ".join(f"{number:,} {name}" for name, number in found.iter_rows()))
    console.print(reports.headline(report))


def _finding(row: dict[str, Any]) -> Text:
    place = " ".join(str(row[name]) for name in ("venue", "symbol") if row[name])
    span = "" if row["first_time"] is None else _span(row["first_time"], row["last_time"] or row["first_time"])
    ids = "" if row["first_id"] is None else f"ids {row['first_id']} to {row['last_id']}"
    what = row["detail"] or ("" if row["observed"] is None else f"{row['observed']:g}")
    words = " ".join(word for word in (row["dataset"], place, row["check"] + ":", what) if word)
    about = "; ".join(word for word in (words, ids, span) if word)
    return Text.assemble((f"{row['severity']:5}", SEVERITIES[row["severity"]]), " ", about)


def coverage(found: pl.DataFrame, *, as_json: bool) -> None:
    """A calendar of each dataset and symbol; letters where nobody sees colours."""
    from crypto_lake.calendar import COLOURED, PLAIN, calendar

    if as_json:
        _json(found.to_dicts())
        return
    if found.is_empty():
        typer.echo("no day to show")
        return
    console = _console()
    is_plain = not console.is_terminal or console.no_color or console.color_system is None or console.options.ascii_only
    for line in calendar(found, PLAIN if is_plain else COLOURED):
        console.print(line, soft_wrap=True)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal's stderr: call it with the table, the days done, and how many there are."""
    columns = (TextColumn("{task.description}"), BarColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as shown:
        task = shown.add_task("", total=None)

        def step(table: str, done: int, of: int) -> None:
            words = f"{table}: {done} of {of} days" if of else table
            shown.update(task, description=words, completed=done, total=of or None)

        yield step


def backfilled(done: "Summary", *, as_json: bool) -> None:
    """What a backfill did: a line of figures, then whatever a person should know."""
    if as_json:
        _json(
            {
                "mode": done.mode,
                "files": done.files,
                "rows": done.rows,
                "added_rows": done.added,
                "refused_rows": done.refused,
                "test_rows": done.tests,
                "unseen_symbols": done.unseen,
                "changed_rows": done.changed,
                "bytes": done.size,
                "days": done.days,
                "held_days": done.held_days,
                "absent": [{"symbol": each.symbol, "days": each.days} for each in done.absent],
                "awaited": [{"symbol": each.symbol, "days": each.days} for each in done.awaited],
                "incomplete_months": done.short,
                "replaced": done.replaced,
                "failed": [{"path": each.path, "reason": each.reason} for each in done.wrong],
                "verdicts": done.verdicts,
                "differences": done.compared,
                "is_stopped": done.is_stopped,
            }
        )
        return
    console = _console()
    held = f"; there already: {_count(done.held_days, 'day')}" if done.held_days else ""
    console.print(
        f"{_count(done.files, 'file')}, {_size(done.size)}, {_count(done.rows, 'row')}, {done.added:,} of them new, "
        f"{_count(done.days, 'day')}{held}",
        soft_wrap=True,
    )
    if done.verdicts:
        words = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(done.verdicts.items()))
        console.print(f"days by verdict: {words}", soft_wrap=True)
    if done.refused:
        console.print(f"what fits nothing is in `rejected`: {_count(done.refused, 'line')}", soft_wrap=True)
    if done.tests:
        console.print(f"left out, of symbols that exchanges test with: {_count(done.tests, 'row')}", soft_wrap=True)
    if done.changed:
        console.print(f"changed by files that took others' places: {_count(done.changed, 'row')}", soft_wrap=True)
    for title, lines in (
        ("symbols of which there was no row (case matters)", done.unseen),
        ("not published", _absent(done.absent)),
        ("not published yet", _absent(done.awaited)),
        ("months whose file lacks days", done.short),
        ("replaced by the venue since they were taken", done.replaced),
        ("failed; the same command tries again", [each.reason for each in done.wrong]),
    ):
        if lines:
            more = [f"... and {len(lines) - FEW_LINES:,} more"] if len(lines) > FEW_LINES else []
            console.print("\n  ".join([f"{title}:", *lines[:FEW_LINES], *more]), soft_wrap=True, markup=False)
    for each in done.compared:
        _differences(console, each)
    if done.is_stopped:
        console.print("stopped; the same command goes on from here", soft_wrap=True)


def built(done: "Built", *, as_json: bool) -> None:
    """What a build did: a line of figures, then whatever a person should know."""
    if as_json:
        _json(asdict(done))
        return
    console = _console()
    did = [f"{done.series:,} series", f"{_number(done.computed)} rows computed", f"{_number(done.added)} written"]
    did += [
        f"{_number(count)} {what}" for count, what in ((done.revised, "revised"), (done.removed, "removed")) if count
    ]
    did += [_count(done.findings, "finding")] if done.findings else []
    console.print(f"{done.dataset}: {', '.join(did)}, in {done.seconds:.1f} s", highlight=False)
    for note in done.notes:
        console.print(f"  {note}", style="yellow", highlight=False, markup=False)
    if done.is_stopped:
        console.print("  stopped: what is written stands, the next run goes on from there", style="yellow")


def charted(done: "Charted", *, as_json: bool) -> None:
    """What a backfill out of charts did."""
    if as_json:
        said = {"answers": done.answers, "bytes": done.size, "rows": done.rows, "added_rows": done.added}
        failed = [{"path": each.path, "reason": each.reason} for each in done.wrong]
        refused = {"refused_rows": done.refused, "ends": done.ends, "failed": failed}
        _json({**said, **refused, "is_stopped": done.is_stopped})
        return
    console = _console()
    console.print(
        f"{_count(done.answers, 'answer')}, {_size(done.size)}, {_count(done.rows, 'bar')}, {done.added:,} of them new",
        soft_wrap=True,
    )
    if done.refused:
        console.print(f"what fits nothing is in `rejected`: {_count(done.refused, 'row')}", soft_wrap=True)
    for title, lines in (
        ("nothing older", done.ends),
        ("failed; the same command tries again", [each.reason for each in done.wrong]),
    ):
        if lines:
            console.print("\n  ".join([f"{title}:", *lines]), soft_wrap=True, markup=False)
    if done.is_stopped:
        console.print("stopped; the same command goes on from here", soft_wrap=True)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _absent(found: "Sequence[Absent]") -> list[str]:
    """`BTCUSDT: 2024-01-03 to 2024-01-05, 2024-02-01 (4 days)`, a line per symbol."""
    days: dict[str, list[date]] = {}
    for each in found:
        days.setdefault(each.symbol, []).extend(each.days)
    return [f"{symbol}: {_days_in_words(sorted(set(some)))}" for symbol, some in days.items()]


def _days_in_words(days: Sequence[date]) -> str:
    runs: list[list[date]] = []
    for day in days:
        if runs and (day - runs[-1][-1]).days == 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    words = [f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs[:FEW_LINES]]
    words += ["..."] if len(runs) > FEW_LINES else []
    return f"{', '.join(words)} ({len(days)} days)" if len(days) > 1 else words[0]


RECONCILED: Final = ("rows", "in file", "+ file", "+ REST", "only ours", "differ", "not at venue", "missing")


def reconciled(done: "Outcome", *, as_json: bool) -> None:
    """A line per symbol and day; below, what the accounts of a day differ in, and what could not be compared."""
    from crypto_lake.calendar import COLOURED

    if as_json:
        _json([_reconciled_day(each) for each in done.days])
        return
    console, table = _console(), Table(box=box.SIMPLE)
    for name in ("symbol", "day", "verdict"):
        table.add_column(name, no_wrap=True)
    for name in RECONCILED:
        table.add_column(name, justify="right", no_wrap=True)
    for each in done.days:
        numbers = [*_counts(each), each.not_at_venue, each.missing_rows]
        verdict = Text(each.verdict, COLOURED.cells[each.verdict][1])
        table.add_row(each.symbol, str(each.date), verdict, *map(_number, numbers))
    console.print(table)
    for each in done.days:
        for line in _reservations(each):
            console.print(f"{each.symbol} {each.date}: {line}", soft_wrap=True, markup=False)
        if each.differences:
            _differences(console, each.differences)
    if done.is_stopped:
        console.print("stopped; the same command does it again", soft_wrap=True)


def _counts(each: "Reconciled") -> list[int | None]:
    told = each.differences
    only_ours, differing = (told.only_ours, told.differing) if told else (None, None)
    filled = None if each.dump_rows is None else each.filled_by_dump
    return [each.rows, each.dump_rows, filled, each.filled_by_rest, only_ours, differing]


def _reservations(each: "Reconciled") -> Iterator[str]:
    """What the figures of a day do not say."""
    if each.fault:
        yield f"its file is of no use: {each.fault}"
    elif each.dump_rows is None:
        yield "no official file is published" + ("" if each.rows else ", and the table has no row")
    if each.rest_reason:
        yield f"REST: {each.rest}: {each.rest_reason}"
    elif each.rest_pages:
        yield f"REST: asked for {each.rest_pages:,} page{'s' if each.rest_pages > 1 else ''}"


def _reconciled_day(each: "Reconciled") -> dict[str, Any]:
    names = [name for name in each.__dataclass_fields__ if name != "differences"]
    told = each.differences
    return {name: getattr(each, name) for name in names} | {
        "only_ours": told.only_ours if told else None,
        "differing": told.differing if told else None,
        "rows_only_ours": told.lone if told else [],
        "rows_differing": told.pairs if told else [],
    }


# What REST says of a row that only the table has, and of two accounts of a row.
OF_LONE: Final = {"ours": "REST has it too", "dump": "REST does not have it", "neither": "REST has another one"}
OF_PAIR: Final = {"ours": "REST agrees with ours", "dump": "REST agrees with the file",
                  "neither": "REST agrees with neither", "both": "REST does not say"}  # fmt: skip


def _differences(console: Console, told: "Differences") -> None:
    """The first rows in which a day's table and its file differ."""
    name = f"{told.symbol} {told.date}"
    pairs = [
        f"{_told(pair.key)} at {pair.time:%H:%M:%S.%f}: ours {_told(pair.ours)}, file {_told(pair.dump)}; "
        f"{OF_PAIR.get(pair.rest, 'REST was not asked')}"
        for pair in told.pairs
    ]
    lone = [
        f"{_told(row.key)} at {row.time:%H:%M:%S.%f}: {_told(row.row)}; {OF_LONE.get(row.rest, 'REST was not asked')}"
        for row in told.lone
    ]
    for title, count, lines in (("that differ", told.differing, pairs), ("only we have", told.only_ours, lone)):
        if count:
            shown = lines[:FEW_LINES]
            more = [f"... and {count - len(shown):,} more"] if count > len(shown) else []
            console.print(
                "\n  ".join([f"{name}: {count:,} row{'s' if count > 1 else ''} {title}:", *shown, *more]),
                soft_wrap=True,
                markup=False,
            )


def _told(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S.%f}" if isinstance(value, datetime) else str(value)


def profile() -> None:
    """Settings that fit this machine's cores and memory."""
    from crypto_lake.backfill.mode import mode_here

    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # A batch of 50,000 messages of depth takes about 300 MB while it is decoded and written.
    messages = max(5_000, min(200_000, int(memory / 2**30) * 10_000))
    typer.echo(f"# {cores} cores, {_size(memory)} of memory")
    typer.echo(f"LAKE_BATCH_MESSAGES={messages}")
    typer.echo(f"LAKE_COMMIT_EVERY_S={10 if cores > 1 else 30}")
    typer.echo(f"LAKE_MODE={mode_here().word}")
    if cores == 1:
        typer.echo("# one core: receiving and draining share it; expect later receive times while a batch is written")


def picture(price: pl.DataFrame, liquidations: pl.DataFrame, path: Path, *, title: str) -> bool:
    """Draws price, traded volume and liquidations of one symbol to a PNG; False where matplotlib is not installed.

    `price` has time, price, quantity and is_buyer_maker, `liquidations` time, average_price and side.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(
        2, 1, sharex=True, figsize=(11, 6), height_ratios=(3, 1), constrained_layout=True
    )
    above.step(price["time"], price["price"], where="post", linewidth=1, color="#264653", label="trades")
    for side, marker, colour in (("SELL", "v", "#c1121f"), ("BUY", "^", "#2a9d8f")):
        some = liquidations.filter(pl.col("side") == side)
        name = "longs liquidated" if side == "SELL" else "shorts liquidated"
        above.scatter(some["time"], some["average_price"], marker=marker, color=colour, label=name, zorder=3)
    above.legend(loc="upper left", frameon=False)
    above.set_title(title, loc="left")
    above.set_ylabel("price")
    seconds_ = price.group_by(pl.col("time").dt.truncate("1s"), "is_buyer_maker").agg(pl.col("quantity").sum())
    for sold, colour in ((False, "#2a9d8f"), (True, "#c1121f")):
        some = seconds_.filter(pl.col("is_buyer_maker") == sold)
        sign = -1 if sold else 1
        below.bar(some["time"], some["quantity"] * sign, width=0.9 / 86400, color=colour)
    below.axhline(0, color="#264653", linewidth=0.5)
    below.set_ylabel("bought / sold a second")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def _console(width: int = PAGE_WIDTH) -> Console:
    # In a file or a pipe there is no width to fit into, and a table folded to 80 columns is hard to read.
    return Console() if sys.stdout.isatty() else Console(width=width)


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S.%f}"
    if isinstance(value, list):
        return f"{len(value)} levels"
    return escape("" if value is None else str(value))


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _span(first: datetime | None, last: datetime | None) -> str:
    if first is None or last is None:
        return "-"
    to = f"{last:%H:%M:%S}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M:%S}"
    return f"{first:%Y-%m-%d %H:%M:%S} to {to}"


def _short_span(first: datetime | None, last: datetime | None) -> str:
    """Of more than a day without seconds."""
    if first is None or last is None or first.date() == last.date():
        return _span(first, last)
    return f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}"


def _size(size_bytes: float) -> str:
    for unit in UNITS:
        if size_bytes < 1024 or unit == UNITS[-1]:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    raise AssertionError


def _type(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.List):
        return "list[price, quantity]"
    return "timestamp[us, UTC]" if isinstance(dtype, pl.Datetime) else str(dtype)


def _secret(name: str, value: Any) -> str:
    if name == "api_key":
        return "(set)" if value else ""
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _json(value: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value, enc_hook=str)) + b"\n")
