"""A market made up for features: bars with fillers, a reference, books, marks, open interest and liquidations."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from crypto_lake.models import DATASETS
from crypto_lake.models.bar import TIMEFRAMES_US

BEGIN = datetime(2026, 3, 6, 12, tzinfo=UTC)  # a Friday: the weekend and the American session are inside


@dataclass(frozen=True)
class Market:
    """What `features` is given."""

    bars: pl.DataFrame
    timeframe: str = "1m"
    reference: pl.DataFrame | None = None
    books: pl.DataFrame | None = None
    marks: pl.DataFrame | None = None
    open_interest: pl.DataFrame | None = None
    liquidations: pl.DataFrame | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """All but the bars."""
        names = ("timeframe", "reference", "books", "marks", "open_interest", "liquidations")
        return {name: getattr(self, name) for name in names}

    def but(self, **changed: Any) -> "Market":
        """The same market with something else in some places."""
        return replace(self, **changed)


def instants(us: np.ndarray) -> pl.Series:
    """Microseconds since BEGIN as times."""
    begin_us = (BEGIN - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    return pl.Series(us.astype(np.int64) + begin_us).cast(pl.Datetime("us", "UTC"))


def frame(dataset: str, columns: dict[str, Any]) -> pl.DataFrame:
    """Columns of a table in its types."""
    schema = DATASETS[dataset].schema
    return pl.DataFrame(columns).cast({name: schema[name] for name in columns})


def bars_of(
    rng: np.random.Generator, count: int, timeframe: str, *, price: float, idle: float, start: int = 0
) -> pl.DataFrame:
    """Bars of which a share of `idle` are fillers; prices have two decimals where they are large."""
    step = TIMEFRAMES_US[timeframe]
    decimals = 2 if price > 10 else 6
    closes = np.round(price * np.exp(np.cumsum(rng.normal(0, 1e-3, count))), decimals)
    opens = np.round(np.roll(closes, 1) * np.exp(rng.normal(0, 2e-4, count)), decimals)
    highs = np.round(np.maximum(opens, closes) * np.exp(np.abs(rng.normal(0, 5e-4, count))), decimals)
    lows = np.round(np.minimum(opens, closes) * np.exp(-np.abs(rng.normal(0, 5e-4, count))), decimals)
    volumes = np.round(rng.lognormal(2, 1, count), 3)
    quotes = volumes * (opens + highs + lows + closes) / 4
    shares = rng.random(count)
    counts = rng.integers(1, 500, count)
    is_idle = rng.random(count) < idle
    is_idle[0] = False
    for at in np.flatnonzero(is_idle):
        opens[at] = highs[at] = lows[at] = closes[at] = closes[at - 1]
    for column in (volumes, quotes, shares, counts):
        column[is_idle] = 0
    return frame(
        "bar",
        {
            "time": instants((np.arange(count) + start) * step),
            "open": opens,
            "high": highs,
            "low": lows,
            "close": closes,
            "volume": volumes,
            "quote_volume": quotes,
            "count": counts,
            "taker_buy_volume": np.round(volumes * shares, 3),
            "taker_buy_quote_volume": quotes * shares,
        },
    )


def books_of(rng: np.random.Generator, times_us: np.ndarray, price: float, *, holes: float = 0.0) -> pl.DataFrame:
    """Snapshots of seven levels on a grid of prices, so that levels often stay; some lose their last levels."""
    tick = 10.0 ** np.floor(np.log10(price) - 4)
    middles = np.round(price / tick + np.cumsum(rng.integers(-1, 2, len(times_us))))
    rows = []
    for middle in middles:
        depth = int(rng.integers(0, 7)) if rng.random() < holes else 7
        sizes = np.round(rng.lognormal(0, 1, (2, 7)), 3)
        bids = [{"price": (middle - 1 - level) * tick, "quantity": sizes[0, level]} for level in range(depth)]
        asks = [{"price": (middle + 1 + level) * tick, "quantity": sizes[1, level]} for level in range(7)]
        rows.append((bids, asks))
    return frame(
        "book_snapshot",
        {
            "time": instants(times_us),
            "update_id": np.arange(len(times_us)) + 1000,
            "bids": pl.Series([bids for bids, _ in rows], dtype=DATASETS["book_snapshot"].schema["bids"]),
            "asks": pl.Series([asks for _, asks in rows], dtype=DATASETS["book_snapshot"].schema["asks"]),
        },
    )


def marks_of(rng: np.random.Generator, times_us: np.ndarray, price: float) -> pl.DataFrame:
    """Mark prices, now and then without an index or a funding rate."""
    count = len(times_us)
    marks = price * np.exp(np.cumsum(rng.normal(0, 5e-4, count)))
    funding_us = (times_us // 28_800_000_000 + 1) * 28_800_000_000
    held = frame(
        "mark_price",
        {
            "time": instants(times_us),
            "mark_price": marks,
            "index_price": marks * np.exp(rng.normal(0, 2e-4, count)),
            "funding_rate": np.round(rng.normal(1e-4, 5e-5, count), 8),
            "next_funding_time": instants(funding_us),
        },
    )
    is_odd = pl.Series(np.arange(count) == count // 3)
    return held.with_columns(
        pl.when(~is_odd).then(pl.col(name)).alias(name) for name in ("index_price", "funding_rate", "next_funding_time")
    )


def liquidations_of(rng: np.random.Generator, times_us: np.ndarray, price: float) -> pl.DataFrame:
    """Orders of both sides."""
    count = len(times_us)
    prices = np.round(price * np.exp(rng.normal(0, 1e-3, count)), 4)
    sizes = np.round(rng.lognormal(0, 1, count), 3)
    return frame(
        "liquidation",
        {
            "time": instants(times_us),
            "side": np.where(rng.random(count) < 0.5, "BUY", "SELL"),
            "price": prices * 1.01,
            "average_price": prices,
            "quantity": sizes * 2,
            "filled_quantity": sizes,
        },
    )


def market(seed: int, count: int, timeframe: str = "1m", *, price: float = 60_000.0, idle: float = 0.1) -> Market:
    """Everything for so many bars. Some intervals have no book, and none is fresh for a stretch of them; records of
    all kinds begin some time after the bars do, and are also right at the edges of bars."""
    rng = np.random.default_rng(seed)
    span = count * TIMEFRAMES_US[timeframe]
    step = TIMEFRAMES_US[timeframe]
    edges = np.arange(2, count, 7) * step
    instants_of = lambda most, since: np.unique(  # noqa: E731
        np.concatenate(
            (rng.integers(int(since * span), span, most), edges[edges > since * span], edges[edges > since * span] - 1)
        )
    )
    book_times = instants_of(min(2 * span // 40_000_000, 4 * count), 0.02)
    book_times = book_times[(book_times < 0.4 * span) | (book_times > 0.45 * span)]
    books = books_of(rng, book_times, price, holes=0.02)
    twice = books.tail(3).with_columns(pl.col("update_id") + 10, time=books["time"].tail(3).dt.truncate("1ms"))
    skipped = np.delete(np.arange(count), np.arange(count // 2, count // 2 + 3))
    reference = bars_of(rng, count, timeframe, price=2_500.0, idle=idle)[skipped.tolist()]
    return Market(
        bars=bars_of(rng, count, timeframe, price=price, idle=idle),
        timeframe=timeframe,
        reference=reference,
        books=pl.concat([books, twice]).sample(fraction=1, shuffle=True, seed=seed),
        marks=marks_of(rng, instants_of(count, 0.03), price).sample(fraction=1, shuffle=True, seed=seed),
        open_interest=frame(
            "open_interest",
            {
                "time": instants(np.sort(rng.integers(0, span, count // 4))),
                "open_interest": rng.uniform(1e4, 2e4, count // 4),
            },
        ),
        liquidations=liquidations_of(rng, instants_of(count // 3, 0.3), price).sample(
            fraction=1, shuffle=True, seed=seed
        ),
    )
