"""What bars of a market are made of and what is said of them: trades read, late ones left out, outages."""

import json
import re
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final, Literal, NamedTuple, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from crypto_lake.build.changes import Difference, difference
from crypto_lake.build.findings import Findings
from crypto_lake.build.flow import Built
from crypto_lake.build.select import Market, one_of
from crypto_lake.config import ConfigError
from crypto_lake.features.bars import BASE_US, SCHEMA, bars, trades_of
from crypto_lake.models.agg_trade import AGG_TRADE
from crypto_lake.models.bar import BAR, TIMEFRAMES_US, TRADES
from crypto_lake.models.frame import OTHERS
from crypto_lake.models.gap import OPEN, UNFILLABLE
from crypto_lake.models.trade import TRADE
from crypto_lake.processors.shape import shape
from crypto_lake.query.snapshot import EPOCH, Snapshot
from crypto_lake.writers.derived import Derived

Late = Literal["revise", "drop"]
LATES: Final = ("revise", "drop")
LATENESS_US: Final = 5_000_000
UNITS_US: Final = {"ms": 1000, "s": 1_000_000, "m": 60_000_000}
DURATION: Final = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)(ms|s|m)?")

SOURCES: Final = {"agg_trade": AGG_TRADE, "trade": TRADE}
INSIDE: Final = {"agg_trade": ("agg_trade_id", "first_trade_id", "last_trade_id"), "trade": ("trade_id",)}
WANTED: Final = ("venue", "symbol", "time", "received_time", "price", "quantity", "is_buyer_maker")

BAR_IN_GAP: Final = "bar_in_gap"
LATE_DROPPED: Final = "late_dropped"
FOREVER_US: Final = 2**62
DAY_US: Final = TIMEFRAMES_US["1d"]
# Made by more than one set of rules.
MIXED: Final = 1


@dataclass(frozen=True, slots=True)
class Rules:
    """What happens to trades that come when their interval is closed (ANALYTICS 1.4), and whether intervals without
    trades have bars."""

    late: Late = "revise"
    lateness_us: int = LATENESS_US
    fill: bool = True


def made_by(dataset: str, rules: Rules) -> int:
    """Tells apart who makes other bars of the same trades."""
    said = [dataset, rules.late, rules.fill]
    said += [rules.lateness_us] if rules.late == "drop" else []
    return MIXED + 1 + zlib.crc32(json.dumps(said).encode())


def rules_app(market: Market) -> str:
    """Under this name the table of bars notes who made a market's (`made_by`), or `MIXED`."""
    return f"build/bars/made/{market.venue}/{market.symbol}"


def late_of(word: str) -> Late:
    """The policy of that name. Raises `ConfigError`."""
    one_of("--late", word, LATES)
    return cast(Late, word)


def lateness_us(text: str) -> int:
    """`5s`, `500ms` or `2m` in microseconds. Raises `ConfigError`."""
    found = DURATION.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"--lateness {text!r}: say a duration such as 5s, 500ms or 2m")
    return int(float(found[1]) * UNITS_US[found[2] or "s"])


def start_us(day: date) -> int:
    """The first instant of a day, µs since 1970."""
    return (day - EPOCH.date()).days * DAY_US


def day_of(time_us: int) -> date:
    """The UTC day of an instant."""
    return EPOCH.date() + timedelta(days=time_us // DAY_US)


def minute_of(time_us: int) -> int:
    """The start of the minute."""
    return time_us // BASE_US * BASE_US


# Trades


def read_trades(
    of: Snapshot,
    first: date,
    last: date,
    *where: pl.Expr,
    symbols: Collection[str] | None = None,
    since_us: int | None = None,
) -> pl.DataFrame:
    """The columns that bars are made of, of these days (both inclusive) and the rows that fulfil `where`."""
    rows = of.scan(first, last, symbols=symbols, since_us=since_us).filter(*where)
    return rows.select(*WANTED, *INSIDE[of.dataset]).collect()


def timely(
    rows: pl.DataFrame, lateness_us: int, ahead: pl.DataFrame | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A market's trades that came before their 1m interval was closed, and those that came too late.

    The watermark is the largest time received before a trade, `ahead` are trades of later days that move it too. What
    has no time of receipt was backfilled: it is never late and moves nothing.
    """
    ids = INSIDE["agg_trade" if "agg_trade_id" in rows.columns else "trade"][0]
    columns = ("received_time", ids, pl.col("time").to_physical().alias("time_us"))
    received = pl.concat([each.select(columns) for each in (rows, ahead) if each is not None])
    received = received.drop_nulls("received_time").sort("received_time", ids)
    watermark = pl.col("time_us").cum_max().shift(1)
    closes = pl.col("time_us") - pl.col("time_us") % BASE_US + BASE_US + lateness_us
    late = received.filter(watermark >= closes).select(ids)
    if late.is_empty():
        return rows, rows.clear()
    return rows.join(late, on=ids, how="anti", maintain_order="left"), rows.join(late, on=ids, how="semi")


class Made(NamedTuple):
    """Bars with trades by timeframe, and the trades that came too late for them."""

    bars: dict[str, pl.DataFrame]
    late: pl.DataFrame


def bars_of(rows: pl.DataFrame, timeframes: Iterable[str], rules: Rules, ahead: pl.DataFrame | None = None) -> Made:
    """The bars of one market's trades."""
    kept, late = timely(rows, rules.lateness_us, ahead) if rules.late == "drop" else (rows, rows.clear())
    trades = trades_of(kept)
    return Made({name: bars(trades, TIMEFRAMES_US[name]) for name in timeframes}, late)


def bars_of_day(
    of: Snapshot,
    market: Market,
    day: date,
    since_us: int,
    following: date | None,
    timeframes: Sequence[str],
    rules: Rules,
) -> Made:
    """A task: the bars of a market's day from `since_us` on (µs since 1970).

    With the policy `drop` the trades of the `following` day are looked at that came before the day's last one.
    """
    of_market = (pl.col("venue") == market.venue, pl.col("symbol") == market.symbol)
    rows = read_trades(of, day, day, *of_market, since_us=since_us)
    ahead = None
    if rules.late == "drop" and following is not None and rows["received_time"].count():
        came = pl.col("received_time") <= rows["received_time"].max()
        ahead = read_trades(of, following, following, *of_market, came)
    return bars_of(rows, timeframes, rules, ahead)


NO_BARS: Final = pl.DataFrame(schema=SCHEMA)


# Outages


class Outages:
    """Holes of a table that are not filled: no bar that touches one is complete.

    A hole is as long as what stands around it, the facts at its ends belong to it: what is missing may have their time.
    """

    def __init__(self, known: pl.DataFrame) -> None:
        self._known = known.filter(pl.col("state").is_in([OPEN, UNFILLABLE])).select(
            "venue", "symbol", pl.col("start_time", "end_time").to_physical()
        )

    def of(self, market: Market) -> NDArray[np.int64]:
        """First and last microsecond of each outage of a market, in order; none overlaps another."""
        is_ours = (pl.col("venue") == market.venue) & pl.col("symbol").is_in([market.symbol, OTHERS])
        ours = self._known.filter(is_ours).with_columns(pl.col("end_time").fill_null(FOREVER_US)).sort("start_time")
        joined: list[list[int]] = []
        for start, end in ours.select("start_time", "end_time").iter_rows():
            if joined and start <= joined[-1][1]:
                joined[-1][1] = max(joined[-1][1], end)
            else:
                joined.append([start, end])
        return np.array(joined, np.int64).reshape(-1, 2)


def is_whole(times: NDArray[np.int64], width_us: int, outages: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the intervals that open at `times` no outage touches."""
    first = np.searchsorted(outages[:, 1], times)
    starts = np.append(outages[:, 0], FOREVER_US)[first]
    return starts >= times + width_us


# Rows


def named(market: Market, timeframe: str, made: pl.DataFrame, outages: NDArray[np.int64]) -> pl.DataFrame:
    """Bars with what says which ones they are, and whether an outage touches them."""
    whole = is_whole(made["time"].to_physical().to_numpy(), TIMEFRAMES_US[timeframe], outages)
    said = {"venue": market.venue, "symbol": market.symbol, "timeframe": timeframe}
    return made.with_columns(
        *(pl.lit(value).alias(name) for name, value in said.items()), pl.Series("complete", whole, pl.Boolean)
    )


def as_rows(made: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Bars that are `named` as rows of the table."""
    said = {"source": "derived", "revision": 0, "origin": TRADES}
    return shape(BAR, pl.concat(made).with_columns(pl.lit(value).alias(name) for name, value in said.items()))


def ours(timeframes: Iterable[str]) -> tuple[pl.Expr, pl.Expr]:
    """The bars of these timeframes that were made here."""
    return pl.col("origin") == TRADES, pl.col("timeframe").is_in(list(timeframes))


def put_difference(derived: Derived, held: pl.DataFrame, made: pl.DataFrame, built: Built) -> Difference:
    """Puts what is not held as it was made, and says what that is."""
    found = difference(BAR, held, made)
    derived.put(found.added, found.gone)
    built.computed += made.height
    built.added += found.added.height
    built.revised += found.revised
    built.removed += found.gone.height - found.revised
    return found


def note_mixed(derived: Derived, market: Market, maker: int) -> None:
    """Before bars of other rules than those noted are committed, the note says so: whoever stops then leaves both."""
    if derived.noted(rules_app(market)) not in (0, maker):
        derived.note(rules_app(market), MIXED)


# Findings


def tell_incomplete(findings: Findings, rows: pl.DataFrame) -> None:
    """The bars among these rows of `bar` that an outage touches."""
    touched = rows.filter(~pl.col("complete"))
    findings.add(touched, BAR_IN_GAP, "warn", first_time=pl.col("time"), last_time=pl.col("close_time"))


def tell_late(findings: Findings, trades: pl.DataFrame) -> None:
    """Trades that are in no bar because they came too late."""
    if trades.height:
        ids, time = pl.col(INSIDE["agg_trade" if "agg_trade_id" in trades.columns else "trade"][0]), pl.col("time")
        findings.add(trades, LATE_DROPPED, "warn", first_time=time, last_time=time, first_id=ids, last_id=ids)
