"""What a person is shown: tables on a terminal, JSON for programs, and a picture of a recording."""

import os
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import polars as pl
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crypto_lake.config import ConfigError, Settings, origin, unknown_names
from crypto_lake.models import Dataset

if TYPE_CHECKING:
    from crypto_lake.writers.maintenance import Done

ROWS_ON_A_TERMINAL: Final = 20
PAGE_WIDTH: Final = 120
FAILED: Final = 1
UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
WRITERS: Final = (".csv", ".parquet", ".jsonl")


def tables(found: pl.DataFrame, *, as_json: bool = False, title: str = "") -> None:
    """A line per table, or the same as JSON."""
    if as_json:
        _json(found.to_dicts())
        return
    if found.is_empty():
        typer.echo("no tables there yet")
        return
    table = Table(title=title or None, title_justify="left")
    table.add_column("table")
    table.add_column("time span, UTC")
    for name in ("rows", "symbols", "gaps", "duplicates", "files", "size"):
        table.add_column(name, justify="right")
    for row in found.iter_rows(named=True):
        numbers = (row[name] for name in ("rows", "symbols", "holes", "duplicates", "files"))
        span = _span(row["first_time"], row["last_time"])
        table.add_row(row["dataset"], span, *map(_number, numbers), _size(row["bytes"]))
    _console().print(table)


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
    table = Table(*shown.columns)
    for row in shown.iter_rows():
        table.add_row(*map(_cell, row))
    _console().print(table)
    if limit is None and shown.height == ROWS_ON_A_TERMINAL:
        typer.echo(f"the first {shown.height} rows; --limit N for more, --out FILE for all")


def _export(found: pl.LazyFrame, out: Path) -> None:
    if out.suffix not in WRITERS:
        raise ConfigError(f"--out {out}: the ending says what it becomes: {', '.join(WRITERS)}")
    flat = pl.selectors.exclude(pl.selectors.nested())
    try:
        if out.suffix == ".parquet":
            found.sink_parquet(out, compression="zstd")
        elif out.suffix == ".jsonl":
            found.sink_ndjson(out)
        else:
            found.select(flat).sink_csv(out)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error}") from None
    typer.echo(f"wrote {out} ({_size(out.stat().st_size)})")


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
    if answer["status"] == "failing":
        raise typer.Exit(FAILED)


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


def profile() -> None:
    """Settings that fit this machine's cores and memory."""
    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # A batch of 50,000 messages of depth takes about 300 MB while it is decoded and written.
    messages = max(5_000, min(200_000, int(memory / 2**30) * 10_000))
    typer.echo(f"# {cores} cores, {_size(memory)} of memory")
    typer.echo(f"LAKE_BATCH_MESSAGES={messages}")
    typer.echo(f"LAKE_COMMIT_EVERY_S={10 if cores > 1 else 30}")
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


def _console() -> Console:
    # In a file or a pipe there is no width to fit into, and a table folded to 80 columns is hard to read.
    return Console() if sys.stdout.isatty() else Console(width=PAGE_WIDTH)


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
