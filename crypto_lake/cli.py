"""The command line: one function per verb."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Annotated, Any, Final

import typer

from crypto_lake.config import ConfigError, SinkFormat, load
from crypto_lake.connections import SourceError
from crypto_lake.monitoring.log import configure
from crypto_lake.services import daemon, once
from crypto_lake.writers import CommitFailed, CommitUnknown

app = typer.Typer(
    name="crypto-lake",
    help="Market data into Delta tables: every row exactly once, every hole known.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# What a user can cause or mend; anything else is a fault of ours and keeps its traceback.
EXPECTED: Final = (ConfigError, SourceError, CommitFailed, CommitUnknown)
FAILED: Final = 1

Datasets = Annotated[str | None, typer.Option(help="Datasets, separated by commas [LAKE_DATASETS].")]
Symbols = Annotated[
    str | None, typer.Option(help="Symbols, separated by commas; binance:BTCUSDT is spot; all [LAKE_SYMBOLS].")
]
Root = Annotated[str | None, typer.Option(help="Where the tables are: a path or an s3:// URL [LAKE_ROOT].")]
State = Annotated[str | None, typer.Option(help="Where journals and logs are [LAKE_STATE].")]


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
    settings = load(symbols=symbols, root=root, state=state)
    configure(settings)
    done = run_loop(once.price_once(settings, every=symbols is None))
    typer.echo(f"{done.rows} prices into {settings.root}/prices")


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


def main() -> None:
    """The program: exit status 0 done, 1 failed with a sentence on stderr, 2 wrong usage."""
    try:
        app()
    except* EXPECTED as group:
        fail(str(_first(group)))


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def fail(reason: str) -> None:
    """Says why, and ends."""
    typer.echo(f"crypto-lake: {reason}", err=True)
    sys.exit(FAILED)


if __name__ == "__main__":
    main()
