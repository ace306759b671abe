"""The command line: one function per verb.

Verbs import what they run: a recorder needs neither the simulator nor the table libraries, and starts in half the time.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from crypto_lake import show
from crypto_lake.config import ConfigError, Settings, SinkFormat, example, load, nearest
from crypto_lake.connections import SourceError
from crypto_lake.models import DATASETS, Dataset, dataset_named
from crypto_lake.monitoring.log import configure
from crypto_lake.writers import CommitFailed, CommitUnknown

if TYPE_CHECKING:
    from crypto_lake.build.flow import Built
    from crypto_lake.query.validate import Level
    from crypto_lake.simulator import Market, Scenario
    from crypto_lake.writers.extract import Form

app = typer.Typer(
    name="crypto-lake",
    help="Market data into Delta tables: every row exactly once, every hole known.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
backfill_app = typer.Typer(help="History into the same tables; without a source on a terminal, it asks.")
app.add_typer(backfill_app, name="backfill")
symbols_app = typer.Typer(
    help="What to collect: the table `symbol`, which a running recorder follows.", no_args_is_help=True
)
app.add_typer(symbols_app, name="symbols")
build_app = typer.Typer(help="Derived tables out of what was recorded: only what is new is made.", no_args_is_help=True)
app.add_typer(build_app, name="build")
export_app = typer.Typer(help="Tables for other programs: a Qlib root, or files.", no_args_is_help=True)
app.add_typer(export_app, name="export")
config_app = typer.Typer(help="Settings: write a .env, or see what is in force and why.", no_args_is_help=True)
app.add_typer(config_app, name="config")

# What a user can cause or mend; anything else is a fault of ours and keeps its traceback.
EXPECTED: Final = (ConfigError, SourceError, CommitFailed, CommitUnknown)
FAILED: Final = 1
COULD_NOT_RUN: Final = 2
USAGE: Final = 2
STDERR: Final = 2
# Whoever is ended at once does not come to show what a bar has hidden.
SHOW_CURSOR: Final = b"\x1b[?25h\n"

Datasets = Annotated[str | None, typer.Option(help="Datasets, separated by commas [LAKE_DATASETS].")]
Symbols = Annotated[
    str | None, typer.Option(help="Symbols, separated by commas; binance:BTCUSDT is spot; all [LAKE_SYMBOLS].")
]
Root = Annotated[str | None, typer.Option(help="Where the tables are: a path or an s3:// URL [LAKE_ROOT].")]
State = Annotated[str | None, typer.Option(help="Where journals and logs are [LAKE_STATE].")]
KeepArchives = Annotated[
    bool, typer.Option("--keep-archives", help="Leave the downloaded files in LAKE_STATE/landing.")
]
Recheck = Annotated[bool, typer.Option(help="Ask whether files taken before were replaced since.", show_default=True)]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
Venue = Annotated[str | None, typer.Option(help="Only of this venue: binance-futures, binance, us-stocks, ...")]
BuildSymbols = Annotated[
    str | None,
    typer.Option(
        "--symbols", help="Symbols, separated by commas; binance:BTCUSDT is of one venue; else all there are."
    ),
]
BuildStart = Annotated[str | None, typer.Option("--start", help="From that day or month on, inclusive.")]
BuildEnd = Annotated[str | None, typer.Option("--end", help="To that day or month, inclusive.")]
Workers = Annotated[int, typer.Option(help="Processes that compute side by side; 1 = this one.", min=1, max=256)]
Scheduler = Annotated[
    str | None, typer.Option(help="A Dask cluster instead: tcp://host:port of its scheduler (extra dask).")
]
SymbolWords = Annotated[list[str], typer.Argument(help="BTCUSDT (USD-M), binance:BTCUSDT (spot), us-stocks:AAPL, ...")]


@app.command()
def run(
    datasets: Datasets = None,
    symbols: Symbols = None,
    for_: Annotated[str | None, typer.Option("--for", help="Stop after so long: 60s, 5m, 2h.")] = None,
    sink: Annotated[SinkFormat | None, typer.Option(help="Delta tables, or files per day [LAKE_SINK].")] = None,
    root: Root = None,
    state: State = None,
    flush_interval: Annotated[float | None, typer.Option(help="Seconds between commits [LAKE_COMMIT_EVERY_S].")] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(help="Messages in one commit at the most [LAKE_BATCH_MESSAGES].")
    ] = None,
) -> None:
    """Record until stopped (SIGTERM or Ctrl-C; a second one ends at once)."""
    from crypto_lake.services import daemon

    run_s = None if for_ is None else seconds(for_)
    settings = load(
        datasets=datasets,
        symbols=symbols,
        sink=sink,
        root=root,
        state=state,
        commit_every_s=flush_interval,
        batch_messages=max_batch_size,
    )
    configure(settings)
    run_loop(daemon.run(settings, run_s=run_s))


@app.command()
def price_once(symbols: Symbols = None, root: Root = None, state: State = None) -> None:
    """Take one snapshot of all prices (or of --symbols) into `prices`, then exit."""
    from crypto_lake.services import once

    settings = load(symbols=symbols, root=root, state=state)
    configure(settings)
    done = run_loop(once.price_once(settings, every=symbols is None))
    typer.echo(f"{done.rows} prices into {settings.root}/prices")


@app.command()
def demo(
    for_: Annotated[str, typer.Option("--for", help="How long to record.")] = "20s",
    out: Annotated[Path, typer.Option(help="A folder for the tables and the picture; what was there goes.")] = Path(
        "demo"
    ),
) -> None:
    """The main job in half a minute, without a network: an exchange on loopback, a recorder, and what landed."""
    from crypto_lake import demo as demonstration

    run_loop(demonstration.run(out, seconds(for_)))


@app.command()
def simulate(
    market: Annotated[
        str, typer.Option(help="generated, or captures (commas between them) or a journal's folder to replay.")
    ] = "generated",
    port: Annotated[
        int, typer.Option(help="Where to listen on 127.0.0.1; 0 = any free port.", min=0, max=65535)
    ] = 8787,
    speed: Annotated[float, typer.Option(help="Times real time; 0 = a replay as fast as it is read.", min=0)] = 1.0,
    symbols: Annotated[int, typer.Option(help="Generated: how many USD-M symbols.", min=1, max=1000)] = 3,
    rate: Annotated[float, typer.Option(help="Generated: messages per second.", min=0.1)] = 200.0,
    start: Annotated[
        str | None, typer.Option(help="Generated: what its clock says at first, such as 2026-03-01T23:59 (UTC); now.")
    ] = None,
    dumps: Annotated[bool, typer.Option(help="Generated: official files too, of each day that is over.")] = True,
    faults: Annotated[Path | None, typer.Option(help="A scenario of faults, such as docs/faults.toml.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of a generated market [1] and, instead of the file's own, of --faults.")
    ] = None,
) -> None:
    """An exchange on loopback: Binance's WebSocket and REST protocols over a made-up or a recorded market."""
    from crypto_lake.simulator import GeneratedMarket, read_scenario

    scenario = None if faults is None else read_scenario(faults, seed=seed)
    made: Market
    if market == "generated":
        start_ms = None if start is None else _milliseconds(start)
        seed = 1 if seed is None else seed
        made = GeneratedMarket(symbols, rate=rate, seed=seed, speed=speed or 1.0, start_ms=start_ms)
    elif start is not None:
        raise ConfigError(f"--start {start}: a recording begins when it began; leave it out, or --market generated")
    else:
        made, dumps = _replayed(market.split(","), speed), False
    run_loop(_simulate(made, port, scenario, dumps=dumps))


def _milliseconds(start: str) -> int:
    from crypto_lake.query.span import span

    since, _ = span(start, None)
    assert since is not None
    return int(since.timestamp() * 1000)


def _replayed(paths: list[str], speed: float) -> "Market":
    from crypto_lake.simulator import ReplayedMarket

    try:
        return ReplayedMarket(*paths, speed=speed)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--market {','.join(paths)}: {error}; say generated, or name captures or a journal's folder"
        ) from None


async def _simulate(market: "Market", port: int, faults: "Scenario | None", *, dumps: bool) -> None:
    from crypto_lake.simulator import Simulator

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with Simulator(market, port, faults=faults, dumps=dumps) as exchange:
            typer.echo("# an exchange on loopback; give a recorder these settings")
            for name, value in exchange.environment.items():
                typer.echo(f"export {name}={value}")
            await stop.wait()
    except OSError as error:
        raise ConfigError(f"--port {port}: cannot listen on 127.0.0.1: {error.strerror}") from None


@app.command()
def tables(
    dataset: Annotated[str | None, typer.Argument(help="How far each symbol of this table is up to date.")] = None,
    watermarks: Annotated[bool, typer.Option("--watermarks", help="The same of every table.")] = False,
    quick: Annotated[bool, typer.Option(help="Without duplicates and holes: no row is read.")] = False,
    root: Root = None,
    state: State = None,
    json: Json = False,
) -> None:
    """What is there, from landing to gold: rows, symbols, time span, holes, duplicates, files, bytes, age."""
    from crypto_lake.query import layers
    from crypto_lake.query.watermarks import of_tables

    settings, now = load(root=root, state=state), datetime.now(UTC)
    if dataset or watermarks:
        chosen = [dataset_named(dataset)] if dataset else list(DATASETS.values())
        show.watermarks(of_tables(settings.root, chosen), now=now, as_json=json)
    else:
        found = layers(settings.root, settings.state, settings.journals, quick=quick, now=now)
        show.tables(found, as_json=json)


@app.command()
def read(
    dataset: Annotated[str, typer.Argument(help="A table, such as agg_trade.")],
    symbols: Symbols = None,
    venue: Annotated[str | None, typer.Option(help="binance-futures, binance, ...")] = None,
    start: Annotated[str | None, typer.Option(help="From, inclusive: 2024-01-15, 2024-01 or an instant (UTC).")] = None,
    end: Annotated[str | None, typer.Option(help="To, inclusive: a day is the whole day.")] = None,
    columns: Annotated[str | None, typer.Option(help="Columns, separated by commas.")] = None,
    limit: Annotated[int | None, typer.Option(help="Rows at the most; 20 on a terminal.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="Into a .csv, .parquet or .jsonl file.")] = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Look at rows, or export them to CSV, Parquet or JSONL."""
    from crypto_lake.query import read as read_table

    settings = load(root=root)
    rows = read_table(
        dataset,
        symbols=symbols.split(",") if symbols else None,
        venue=venue,
        start=start,
        end=end,
        columns=columns.split(",") if columns else None,
        root=settings.root,
    )
    show.rows(rows, limit=limit, out=out, as_json=json)


@app.command()
def optimize(datasets: Datasets = None, root: Root = None) -> None:
    """Merge today's small files, sort closed days by symbol and time, and drop files that are long replaced."""
    from crypto_lake.writers import maintenance

    settings = load(root=root)
    done = maintenance.maintain(settings.root, _datasets(datasets), datetime.now(UTC), retention_h=settings.retention_h)
    if not show.done(done):
        raise typer.Exit(FAILED)


@app.command()
def vacuum(
    datasets: Datasets = None,
    root: Root = None,
    full: Annotated[bool, typer.Option("--full", help="Also files that no log names; slow.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Delete files that no table has used for LAKE_RETENTION_H hours."""
    from crypto_lake.writers import maintenance
    from crypto_lake.writers.delta import Lake

    settings = load(root=root)
    show.done(
        maintenance.vacuum(
            settings.root,
            dataset,
            retention_h=settings.retention_h,
            full=full,
            dry_run=dry_run,
            now=datetime.now(UTC),
        )
        for dataset in _datasets(datasets)
        if Lake(settings.root).table(dataset)
    )


@app.command("validate")
def validate_tables(
    quick: Annotated[bool, typer.Option("--quick", help="Metadata only: log, files, days. The default.")] = False,
    advanced: Annotated[bool, typer.Option("--advanced", help="And all columns: nulls, keys, prices, pauses.")] = False,
    integrity: Annotated[bool, typer.Option("--integrity", help="And every row, and ids against the gaps.")] = False,
    datasets: Annotated[str | None, typer.Option(help="Tables, separated by commas; all that are there.")] = None,
    symbols: Annotated[str | None, typer.Option(help="Symbols, separated by commas.")] = None,
    start: Annotated[str | None, typer.Option(help="From that day on, inclusive.")] = None,
    end: Annotated[str | None, typer.Option(help="To that day, inclusive.")] = None,
    report: Annotated[Path | None, typer.Option(help="Also into a .json, .md or .html file.")] = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Check tables. Exit status 0: no error found, 1: at least one, 2: could not run."""
    from crypto_lake import report as reports
    from crypto_lake.query import validate

    # Each level includes the ones before it: of several the deepest is meant.
    levels: dict[Level, bool] = {"integrity": integrity, "advanced": advanced, "quick": quick}
    try:
        if report is not None:
            reports.check_ending("--report", report, reports.REPORTS)
        settings = load(root=root)
        with show.progress() as on_step:
            found = validate(
                settings.root,
                level=next((level for level, is_asked in levels.items() if is_asked), "quick"),
                datasets=_words(datasets),
                symbols=_words(symbols),
                start=start,
                end=end,
                now=datetime.now(UTC),
                landing=settings.landing,
                on_step=on_step,
            )
        if report is not None:
            reports.write_validation(found, report)
    except ConfigError as error:
        fail(str(error), COULD_NOT_RUN)
    show.validation(found, as_json=json)
    if found.errors:
        raise typer.Exit(FAILED)


@app.command("coverage")
def coverage_of_days(
    dataset: Annotated[str | None, typer.Option(help="One dataset; all that are there.")] = None,
    symbols: Annotated[str | None, typer.Option(help="Symbols, separated by commas.")] = None,
    start: Annotated[str | None, typer.Option(help="From that day on, inclusive.")] = None,
    end: Annotated[str | None, typer.Option(help="To that day, inclusive.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also a heat map: a .png or .html file.")] = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Which days are whole, which lack something, and which nobody can tell."""
    from crypto_lake import report as reports
    from crypto_lake.query import coverage

    if out is not None:
        reports.check_ending("--out", out, reports.PICTURES)
    settings = load(root=root)
    with show.progress() as on_step:
        found = coverage(dataset, symbols=_words(symbols), start=start, end=end, root=settings.root, on_step=on_step)
    if out is not None and found.height:
        reports.draw_coverage(found, out)
    show.coverage(found, as_json=json)


@backfill_app.callback(invoke_without_command=True)
def backfill(context: typer.Context) -> None:
    """History into the same tables; without a source on a terminal, it asks."""
    if context.invoked_subcommand is None:
        if not sys.stdin.isatty():
            typer.echo(context.get_help())
            raise typer.Exit(USAGE)
        # Polars brings a handler of its own, under which a question waits for its answer in spite of Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        source = _prompt(f"Source ({', '.join(ASKED)})", _source, default="binance")
        ASKED[source]()


@backfill_app.command("binance")
def backfill_binance(
    dataset: Annotated[str, typer.Option(help="agg_trade, trade, bar, book_ticker, mark_price, funding_rate, ...")],
    start: Annotated[str, typer.Option(help="From that day or month on, inclusive: 2024-01-15 or 2024-01.")],
    symbols: Annotated[
        str | None,
        typer.Option(help="Symbols, separated by commas; all = every one with files; none = the table symbol's."),
    ] = None,
    end: Annotated[str | None, typer.Option(help="To that day or month, inclusive; without it, to yesterday.")] = None,
    market: Annotated[str, typer.Option(help="um (USD-M futures), cm (COIN-M futures) or spot.")] = "um",
    timeframe: Annotated[str, typer.Option(help="Of bars: 1s (spot), 1m, 5m, 15m, 1h, 4h or 1d.")] = "1m",
    keep_archives: KeepArchives = False,
    recheck: Recheck = True,
    root: Root = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Official files into the tables: only what is not there yet, beside a running recorder if there is one."""
    from crypto_lake.backfill import binance
    from crypto_lake.backfill.ask import symbols_to_collect, wanted_of
    from crypto_lake.backfill.mode import mode_here
    from crypto_lake.watch import Watch

    settings = load(root=root, state=state)
    symbols = symbols_to_collect(settings.root, market) if symbols is None else symbols
    wanted = wanted_of(market, dataset, symbols, start, end, timeframe, today=datetime.now(UTC).date())
    _log_to_file(settings)
    stop, mode = _stopped_by_signals(), mode_here(settings.mode)
    with Watch(f"{dataset} {market} ({mode})", stop=stop) as watch:
        done = asyncio.run(
            binance.backfill(
                settings, wanted, watch, keep_archives=keep_archives, recheck=recheck, mode=mode, stop=stop
            )
        )
    show.backfilled(done, as_json=json)
    if not done.is_good:
        raise typer.Exit(FAILED)


@backfill_app.command("yahoo")
def backfill_yahoo(
    symbols: Annotated[str, typer.Option(help="With venues, separated by commas: us-stocks:AAPL,us-indices:^GSPC.")],
    start: Annotated[str, typer.Option(help="From that day or month on, inclusive: 2024-01-15 or 2024-01.")],
    end: Annotated[str | None, typer.Option(help="To that day or month, inclusive; without it, to today.")] = None,
    timeframe: Annotated[str, typer.Option(help="1m (the last 30 days) or 1d.")] = "1m",
    root: Root = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Bars out of Yahoo's charts, as well as these can be had; for personal use, see docs/yahoo.md."""
    from crypto_lake.backfill import yahoo
    from crypto_lake.watch import Watch

    settings = load(root=root, state=state)
    wanted = yahoo.wanted_of(symbols, start, end, timeframe, now=datetime.now(UTC))
    _log_to_file(settings)
    stop = _stopped_by_signals()
    with Watch(f"bar {timeframe}", stop=stop) as watch:
        done = asyncio.run(yahoo.backfill(settings, wanted, watch, stop=stop))
    show.charted(done, as_json=json)
    if not done.is_good:
        raise typer.Exit(FAILED)


@backfill_app.command("massive")
def backfill_massive(
    dataset: Annotated[str, typer.Option(help="A folder of the bucket, such as us_stocks_sip/minute_aggs_v1.")],
    start: Annotated[str, typer.Option(help="From that day or month on, inclusive: 2024-01-15 or 2024-01.")],
    symbols: Annotated[
        str, typer.Option(help="Only these, separated by commas; of options SPY is all options of it.")
    ] = "all",
    end: Annotated[str | None, typer.Option(help="To that day or month, inclusive; without it, to yesterday.")] = None,
    keep_archives: KeepArchives = False,
    recheck: Recheck = True,
    root: Root = None,
    state: State = None,
    json: Json = False,
) -> None:
    """Flat files of Massive (Polygon.io) into the tables: stocks, options, indices, crypto and forex, day by day.

    Needs the S3 keys of the flat files: LAKE_MASSIVE_KEY_ID and LAKE_MASSIVE_SECRET.
    """
    from crypto_lake.backfill import massive
    from crypto_lake.backfill.ask import flat_wanted_of
    from crypto_lake.backfill.mode import mode_here
    from crypto_lake.watch import Watch

    settings = load(root=root, state=state)
    wanted = flat_wanted_of(dataset, symbols, start, end, today=datetime.now(UTC).date())
    _log_to_file(settings)
    stop, mode = _stopped_by_signals(), mode_here(settings.mode)
    with Watch(f"{dataset} ({mode})", stop=stop) as watch:
        done = asyncio.run(
            massive.backfill(
                settings, wanted, watch, keep_archives=keep_archives, recheck=recheck, mode=mode, stop=stop
            )
        )
    show.backfilled(done, as_json=json)
    if not done.is_good:
        raise typer.Exit(FAILED)


@export_app.command("qlib")
def export_qlib(
    out: Annotated[Path, typer.Option(help="The folder of the root; one folder per timeframe.")],
    timeframe: Annotated[str | None, typer.Option(help="1m, 5m, 15m, 1h, 4h or 1d [1m].")] = None,
    fields: Annotated[
        str | None,
        typer.Option(help="Columns of bar, indicator and feature, separated by commas; prices, volumes and count."),
    ] = None,
    symbols: BuildSymbols = None,
    venue: Venue = None,
    start: Annotated[str | None, typer.Option(help="From, inclusive: a day, a month or an instant (UTC).")] = None,
    end: Annotated[str | None, typer.Option(help="To, inclusive: a day is the whole day.")] = None,
    origin: Annotated[str | None, typer.Option(help="Of bars: trades, kline, flatfile or yahoo [trades].")] = None,
    check: Annotated[bool, typer.Option("--check", help="Hold the root against its format and the tables.")] = False,
    root: Root = None,
    json: Json = False,
) -> None:
    """Bars, indicators and features as a Qlib root: what is new is appended, see docs/export.md.

    --check without --timeframe only checks what is there. Exit status 1: something is wrong with it.
    """
    from crypto_lake.build import export

    settings, done, checked = load(root=root), None, None
    with show.progress() as on_step:
        if timeframe or not check:
            wanted = export.Wanted(timeframe or "1m", fields, symbols, venue, start, end, origin)
            done = export.export_qlib(settings.root, out, wanted, on_step=on_step)
        if check:
            checked = export.check_qlib(settings.root, out, venue=venue, origin=origin, on_step=on_step)
    show.exported(done, checked, as_json=json)


ExportedTable = Annotated[str, typer.Argument(help="A table, such as agg_trade.")]
Out = Annotated[Path, typer.Option(help="A file with the form's ending, or a folder for a file per day.")]
Columns = Annotated[str | None, typer.Option(help="Columns, separated by commas; all of them.")]


@export_app.command("parquet")
def export_parquet(
    dataset: ExportedTable,
    out: Out,
    symbols: BuildSymbols = None,
    venue: Venue = None,
    start: BuildStart = None,
    end: BuildEnd = None,
    columns: Columns = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """A table as Parquet, day by day."""
    _extract("parquet", dataset, out, (symbols, venue, start, end, columns), root, as_json=json)


@export_app.command("csv")
def export_csv(
    dataset: ExportedTable,
    out: Out,
    symbols: BuildSymbols = None,
    venue: Venue = None,
    start: BuildStart = None,
    end: BuildEnd = None,
    columns: Columns = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """A table as CSV, day by day; lists (levels of books) are left out."""
    _extract("csv", dataset, out, (symbols, venue, start, end, columns), root, as_json=json)


@export_app.command("jsonl")
def export_jsonl(
    dataset: ExportedTable,
    out: Out,
    symbols: BuildSymbols = None,
    venue: Venue = None,
    start: BuildStart = None,
    end: BuildEnd = None,
    columns: Columns = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """A table as lines of JSON, day by day."""
    _extract("jsonl", dataset, out, (symbols, venue, start, end, columns), root, as_json=json)


def _extract(
    form: "Form", dataset: str, out: Path, said: tuple[str | None, ...], root: str | None, *, as_json: bool
) -> None:
    from crypto_lake.build.extract import Part, extract

    symbols, venue, start, end, columns = said
    part = Part(_words(symbols), venue, start, end, _words(columns))
    with show.progress() as on_step:
        done = extract(load(root=root).root, dataset, form, out, part, on_step=on_step)
    show.extracted(done, as_json=as_json)


@app.command("reconcile")
def reconcile_days(
    dataset: Annotated[str, typer.Option(help="agg_trade, trade, bar, liquidation (cm), ...")],
    symbols: Annotated[str, typer.Option(help="Symbols, separated by commas; all = every one that has files.")],
    date: Annotated[str, typer.Option(help="A day or a month (UTC): 2024-01-15 or 2024-01.")],
    market: Annotated[str, typer.Option(help="um (USD-M futures), cm (COIN-M futures) or spot.")] = "um",
    timeframe: Annotated[str, typer.Option(help="Of bars: 1s (spot), 1m, 5m, 15m, 1h, 4h or 1d.")] = "1m",
    root: Root = None,
    state: State = None,
    json: Json = False,
) -> None:
    """What was recorded against the official file against REST: fills what can be had, shows what differs.

    Exit status 0: no day differs from its file or is known to lack rows. 1: one does, has a file that is of no use, or
    nothing is there at all; the table is printed all the same.
    """
    from crypto_lake.backfill.ask import wanted_of
    from crypto_lake.backfill.reconcile import day_or_month, reconcile
    from crypto_lake.watch import Watch

    settings, today = load(root=root, state=state), datetime.now(UTC).date()
    span = day_or_month(date, today=today)
    wanted = wanted_of(market, dataset, symbols, span, span, timeframe, today=today)
    _log_to_file(settings)
    stop = _stopped_by_signals()
    with Watch(f"{dataset} {market}", stop=stop) as watch:
        done = asyncio.run(reconcile(settings, wanted, watch, stop=stop))
    show.reconciled(done, as_json=json)
    if not done.is_good:
        raise typer.Exit(FAILED)


def _log_to_file(settings: Settings) -> None:
    """The log of what is watched: the watch says the same in words, and a second voice would spoil its bars."""
    configure(settings.model_copy(update={"log_to_terminal": False}))


def _stopped_by_signals() -> threading.Event:
    """Set by the first SIGINT or SIGTERM; a second one ends at once."""
    stop = threading.Event()

    def ask(number: int, _frame: object) -> None:
        if stop.is_set():
            if os.isatty(STDERR):
                os.write(STDERR, SHOW_CURSOR)
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    return stop


def _ask_binance() -> None:
    """What to backfill, asked for question by question; each answer is looked at before the next question."""
    from crypto_lake.backfill import ask

    today = datetime.now(UTC).date()
    market = _prompt(f"Market ({', '.join(ask.markets())})", ask.datasets_of, default="um")
    said: dict[str, Any] = {"market": market, "timeframe": "1m", "symbols": "all", "start": "2020-01", "end": None}

    def with_(name: str) -> Callable[[str], object]:
        return lambda text: ask.wanted_of(**{**said, name: text or None}, today=today)

    said["dataset"] = _prompt(f"Dataset ({', '.join(ask.datasets_of(market))})", with_("dataset"), default="agg_trade")
    if said["dataset"] == "bar":
        said["timeframe"] = _prompt("Timeframe (1m, 5m, 15m, 1h, 4h, 1d; spot: 1s)", with_("timeframe"), default="1m")
    symbol = "BTCUSD_PERP" if market == "cm" else "BTCUSDT"
    said["symbols"] = _prompt("Symbols, separated by commas, or all", with_("symbols"), default=symbol)
    _ask_span(said, with_)
    _say_command("binance", {name: value for name, value in said.items() if name != "timeframe" or value != "1m"})
    backfill_binance(**said)


def _ask_massive() -> None:
    """The same for flat files."""
    from crypto_lake.backfill import ask
    from crypto_lake.models.flatfile import folders

    today = datetime.now(UTC).date()
    said: dict[str, Any] = {"dataset": folders()[0], "symbols": "all", "start": "2024-01", "end": None}

    def with_(name: str) -> Callable[[str], object]:
        def check(text: str) -> object:
            asked = {**said, name: text or None}
            return ask.flat_wanted_of(asked.pop("dataset"), **asked, today=today)

        return check

    said["dataset"] = _prompt(f"Folder ({', '.join(folders())})", with_("dataset"), default=said["dataset"])
    said["symbols"] = _prompt("Symbols, separated by commas, or all", with_("symbols"), default="all")
    _ask_span(said, with_)
    _say_command("massive", said)
    backfill_massive(**said)


# What a backfill without a source asks for.
ASKED: Final[dict[str, Callable[[], None]]] = {"binance": _ask_binance, "massive": _ask_massive}


def _source(name: str) -> None:
    if name not in ASKED:
        raise ConfigError(f"there is no source {name!r}{nearest(name, ASKED)}")


def _ask_span(said: dict[str, Any], with_: Callable[[str], Callable[[str], object]]) -> None:
    said["start"] = _prompt("From (a day, 2024-01-15, or a month, 2024-01)", with_("start"))
    said["end"] = _prompt("To, inclusive (nothing: to yesterday)", with_("end"), default="") or None


def _say_command(source: str, said: dict[str, Any]) -> None:
    """How to do the same without questions."""
    options = (f"--{name} {value}" for name, value in said.items() if value)
    typer.echo(f"crypto-lake backfill {source} {' '.join(options)}", err=True)


def _prompt(question: str, check: Callable[[str], object], *, default: str | None = None) -> str:
    """An answer that `check` does not refuse with a `ConfigError`."""

    def fit(text: str) -> str:
        try:
            check(text)
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from None
        return text

    return str(typer.prompt(question, default=default, value_proc=fit, show_default=bool(default), err=True))


def _build(build: "Callable[..., Built]", scheduler: str | None, workers: int, *, as_json: bool) -> None:
    """Runs a build on a farm, shows how far it is, and then what it did."""
    from crypto_lake.build.farm import farm

    stop = _stopped_by_signals()
    with farm(scheduler, workers) as (executor, at_once), show.progress() as on_step:
        done = build(executor, at_once, on_step=on_step, stop=stop)
    show.built(done, as_json=as_json)
    if done.is_stopped:
        raise typer.Exit(FAILED)


@build_app.command("bars")
def build_bars(
    symbols: BuildSymbols = None,
    venue: Venue = None,
    start: BuildStart = None,
    end: BuildEnd = None,
    timeframes: Annotated[
        str, typer.Option(help="Of 1s, 1m, 5m, 15m, 1h, 4h, 1d; longer ones are made of 1m, which is made too.")
    ] = "1m,5m,15m,1h,4h,1d",
    source: Annotated[
        str | None, typer.Option("--from", help="agg_trade, or trade (where there is only that: by itself).")
    ] = None,
    late: Annotated[
        str | None,
        typer.Option(help="Trades that came when their bar was closed: revise it, or drop them [LAKE_LATE]."),
    ] = None,
    lateness: Annotated[
        str | None, typer.Option(help="How late a trade may come to an interval that is over: 5s [LAKE_LATENESS_S].")
    ] = None,
    fill: Annotated[bool, typer.Option(help="A bar for intervals without trades, too.", show_default=True)] = True,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Bars of trades: of days that are new or have changed, and the fillers that follow from them."""
    from crypto_lake.build import bars
    from crypto_lake.build.bar_rows import Rules, late_of, lateness_us
    from crypto_lake.build.select import table_of_trades

    settings = load(root=root)
    rules = Rules(late_of(late or settings.late), lateness_us(lateness or f"{settings.lateness_s}s"), fill)
    wanted = bars.Wanted(symbols, venue, timeframes, table_of_trades(settings.root, source), start, end, rules)
    _build(partial(bars.build, settings.root, wanted), scheduler, workers, as_json=json)


@build_app.command("books")
def build_books(
    symbols: BuildSymbols = None,
    venue: Venue = None,
    start: BuildStart = None,
    end: BuildEnd = None,
    levels: Annotated[int, typer.Option(help="The best so many levels of each side.")] = 20,
    every: Annotated[str, typer.Option(help="A row for each such interval with a change: 100ms, 1s, 1m.")] = "1s",
    again: Annotated[
        bool, typer.Option("--again", help="Make all of it anew, also with other --levels or --every.")
    ] = False,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Order books at regular intervals out of depth: of rows that are new, and what follows from late ones."""
    from crypto_lake.build import books

    settings = load(root=root)
    wanted = books.Wanted(symbols, venue, start, end, levels, every, again)
    _build(partial(books.build, settings.root, wanted), scheduler, workers, as_json=json)


@build_app.command("indicators")
def build_indicators(
    symbols: BuildSymbols = None,
    venue: Venue = None,
    timeframes: Annotated[str | None, typer.Option(help="Such as 1m,1h; else all that there are bars of.")] = None,
    origin: Annotated[
        str | None, typer.Option(help="Bars of trades, kline, flatfile or yahoo alone; else the best of each time.")
    ] = None,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Indicators of bars, a row per bar: of bars that are new or revised, and of what follows from them."""
    from crypto_lake.build import indicators

    settings = load(root=root)
    wanted = indicators.Wanted(symbols, venue, timeframes, origin)
    _build(partial(indicators.build, settings.root, wanted), scheduler, workers, as_json=json)


@build_app.command("features")
def build_features(
    symbols: BuildSymbols = None,
    venue: Venue = None,
    start: BuildStart = None,
    end: BuildEnd = None,
    timeframes: Annotated[str, typer.Option(help="Of the bars: 1m, 5m, 15m, 1h, 4h, 1d.")] = "1m",
    reference: Annotated[
        str, typer.Option(help="The other symbol of group K (for itself: BTCUSDT); binance:ETHUSDT, or none.")
    ] = "ETHUSDT",
    origin: Annotated[
        str | None, typer.Option(help="Bars of trades, kline, flatfile or yahoo alone; else the best of each time.")
    ] = None,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """The 111 features of bars: of new and revised bars, and of those whose windows reach into a change."""
    from crypto_lake.build import features

    settings = load(root=root)
    wanted = features.Wanted(symbols, venue, start, end, timeframes, reference, origin)
    _build(partial(features.build, settings.root, wanted), scheduler, workers, as_json=json)


@build_app.command("imbalance")
def build_imbalance(
    symbols: BuildSymbols = None,
    venue: Venue = None,
    start: BuildStart = None,
    end: BuildEnd = None,
    settings: Annotated[str, typer.Option(help="Name of the parameters: one name, one set of them.")] = "default",
    kind: Annotated[
        str, typer.Option(help="What is added up: tick (1 a trade), volume, dollar (price x quantity) or usd_share.")
    ] = "dollar",
    side: Annotated[str, typer.Option(help="Sign of a trade: aggressor, or tick (by the price before).")] = "aggressor",
    mode: Annotated[
        str, typer.Option(help="Expected ticks are const, or ema: they follow the lengths of past bars.")
    ] = "const",
    compare: Annotated[str, typer.Option(help="A bar ends when the sum is ge or gt the threshold.")] = "ge",
    init_ticks: Annotated[float, typer.Option(help="Expected ticks at the begin, and the warm-up.")] = 5000,
    imbalance_window: Annotated[int, typer.Option(help="Past trades for the expected imbalance.")] = 10_000,
    num_prev_bars: Annotated[int, typer.Option(help="Past bars for the expected ticks (ema).")] = 3,
    min_ticks: Annotated[float, typer.Option(help="Expected ticks at the least (ema); 0: no limit.")] = 2500,
    max_ticks: Annotated[float, typer.Option(help="Expected ticks at the most (ema); inf: no limit.")] = 10_000,
    min_imbalance_share: Annotated[
        float, typer.Option(help="The expected imbalance is at least this share of the mean trade; 0: no floor.")
    ] = 0,
    init_dollars: Annotated[float, typer.Option(help="usd_share: expected quote units of a bar at the begin.")] = 5e6,
    alpha_d: Annotated[float, typer.Option(help="usd_share: weight of a bar in the expected quote units.")] = 0.1,
    alpha_s: Annotated[float, typer.Option(help="usd_share: weight of a bar in the expected share.")] = 0.1,
    source: Annotated[
        str | None, typer.Option("--from", help="agg_trade, or trade (where there is only that: by itself).")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Make the series anew, by these parameters.")] = False,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Imbalance bars of trades: each series goes on where it ended; made anew where trades came behind that."""
    from crypto_lake.build import imbalance
    from crypto_lake.build.select import table_of_trades

    lake = load(root=root).root
    made_with = imbalance.parameters(
        kind=kind,
        side=side,
        mode=mode,
        compare=compare,
        init_ticks=init_ticks,
        imbalance_window=imbalance_window,
        num_prev_bars=num_prev_bars,
        min_ticks=min_ticks,
        max_ticks=max_ticks,
        min_imbalance_share=min_imbalance_share,
        init_dollars=init_dollars,
        alpha_d=alpha_d,
        alpha_s=alpha_s,
    )
    wanted = imbalance.Wanted(made_with, settings, symbols, venue, start, end, table_of_trades(lake, source), again)
    _build(partial(imbalance.build, lake, wanted), scheduler, workers, as_json=json)


@app.command()
def schema(
    dataset: Annotated[str, typer.Argument(help="A dataset; without one, all of them.")] = "", json: Json = False
) -> None:
    """The columns of a dataset: types and meanings; its key."""
    show.schema([dataset_named(dataset)] if dataset else list(DATASETS.values()), as_json=json)


@app.command()
def status(state: State = None, json: Json = False) -> None:
    """How a running recorder is. Exit status 1 when none runs, or when it does not record."""
    from crypto_lake.services import daemon

    settings = load(state=state)
    show.health(daemon.ask_health(settings), as_json=json)


@symbols_app.command("add")
def symbols_add(
    words: SymbolWords,
    asset_type: Annotated[
        str | None,
        typer.Option(help="perpetual, spot, stock, etf, option, index, crypto or forex; else as the venue says."),
    ] = None,
    root: Root = None,
) -> None:
    """Collect these symbols, too; a running recorder does so within seconds."""
    from crypto_lake.services import symbols

    settings, wanted = load(root=root), symbols.names(words)
    new = symbols.add(settings.root, wanted, asset_type=asset_type, now=datetime.now(UTC))
    for name in wanted:
        typer.echo(f"{name} {'is added' if name in new else 'is there already'}")


@symbols_app.command("remove")
def symbols_remove(words: SymbolWords, root: Root = None) -> None:
    """Collect these symbols no more, also if LAKE_SYMBOLS names them; what was collected stays."""
    from crypto_lake.services import symbols

    settings, unwanted = load(root=root), symbols.names(words)
    symbols.remove(settings.root, unwanted, settings.symbols, now=datetime.now(UTC))
    for name in unwanted:
        typer.echo(f"{name} is removed")


@symbols_app.command("list")
def symbols_list(
    all_: Annotated[bool, typer.Option("--all", help="Those that were removed, too.")] = False,
    root: Root = None,
    json: Json = False,
) -> None:
    """What is to be collected, and who says so: the table or LAKE_SYMBOLS."""
    from crypto_lake.services import symbols

    settings = load(root=root)
    found = symbols.listed(settings.root, settings.symbols)
    show.symbols(found if all_ else found.filter("is_active"), as_json=json)


@config_app.command("show")
def config_show(json: Json = False) -> None:
    """The settings in force, and where each comes from."""
    show.settings(load(), as_json=json)


@config_app.command("init")
def config_init(path: Annotated[Path, typer.Argument(help="The file to write.")] = Path(".env")) -> None:
    """Write a .env with every setting and its default, commented out."""
    if path.exists():
        raise ConfigError(f"{path} is there already; remove it first, or name another file")
    try:
        path.write_text(example())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    typer.echo(f"wrote {path}: uncomment what you change")


@config_app.command("profile")
def config_profile() -> None:
    """What this machine suggests."""
    show.profile()


def _words(text: str | None) -> list[str] | None:
    return text.split(",") if text else None


def _datasets(names: str | None) -> list[Dataset]:
    return [dataset_named(name) for name in names.split(",")] if names else list(DATASETS.values())


def seconds(text: str) -> float:
    """`90`, `60s`, `5m` or `2h` as seconds. Raises `typer.BadParameter`."""
    factor = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    number = text[:-1] if factor else text
    try:
        value = float(number) * (factor or 1)
    except ValueError:
        raise typer.BadParameter(f"--for {text!r}: say a duration such as 60s, 5m or 2h") from None
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"--for {text!r}: must be more than nothing")
    return value


def run_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs it on uvloop where that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


def main(arguments: list[str] | None = None) -> None:
    """The program: exit status 0 done, 1 failed with a sentence on stderr, 2 wrong usage."""
    try:
        app(arguments)
    except* EXPECTED as group:
        fail(str(_first(group)))


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def fail(reason: str, status: int = FAILED) -> NoReturn:
    """Says why, and ends."""
    typer.echo(f"crypto-lake: {reason}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
