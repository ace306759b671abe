"""Time bars from trades, longer bars from shorter ones, and the fillers between them (ANALYTICS 1)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from crypto_lake.features.compiled import IS_COMPILED, compiled
from crypto_lake.models.bar import TIMEFRAMES_US
from crypto_lake.models.dataset import TIME

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

PRICES: Final = ("open", "high", "low", "close")
SUMS: Final = ("volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume")
SCHEMA: Final[dict[str, Any]] = {
    "time": TIME,
    **dict.fromkeys(PRICES, pl.Float64),
    "volume": pl.Float64,
    "quote_volume": pl.Float64,
    "count": pl.Int64,
    "taker_buy_volume": pl.Float64,
    "taker_buy_quote_volume": pl.Float64,
}
# Longer timeframes are made from this one.
BASE: Final = "1m"
# A place for every interval costs less than sorting, unless nearly all of them are empty.
PLACES_PER_TRADE, FEW_PLACES = 4, 100_000
# What a venue writes has so many decimals at the most, and a double tells so many whole numbers apart with room to
# spare for what the trades' own doubles are off.
DECIMALS, TELLABLE = 8, 2.0**50
MOST_OFF_ULPS: Final = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Trades:
    """Trades of one symbol by ascending id, each id once; all with a price and a quantity above 0.

    `time` in µs since 1970; `count` is how many trades of the venue a row stands for; `is_buyer_maker` is 1, 0, or -1
    where the venue does not say.
    """

    id: Ints
    time: Ints
    price: Floats
    quantity: Floats
    count: Ints
    is_buyer_maker: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.id)


def trades_of(rows: pl.DataFrame) -> Trades:
    """Rows of `agg_trade` or of `trade`, of one symbol and in any order, as trades; what cannot be a trade is left out.

    Of several rows of one id the first one counts.
    """
    ids = "agg_trade_id" if "agg_trade_id" in rows.columns else "trade_id"
    inside = pl.col("last_trade_id") - pl.col("first_trade_id") + 1 if ids == "agg_trade_id" else pl.lit(1)
    kept = rows.select(
        pl.col(ids).alias("id"),
        pl.col("time").to_physical(),
        "price",
        "quantity",
        inside.cast(pl.Int64).alias("count"),
        pl.col("is_buyer_maker").cast(pl.Int8).fill_null(-1),
    )
    kept = kept if kept.select(_IS_TRADE.all()).item() else kept.filter(_IS_TRADE)
    if not kept.select((pl.col("id").diff() > 0).all()).item():
        kept = kept.unique("id", keep="first", maintain_order=True).sort("id")
    return Trades(**{name: kept[name].to_numpy() for name in kept.columns})


def _is_amount(name: str) -> pl.Expr:
    # NaN is above every number for Polars.
    return (pl.col(name) > 0) & (pl.col(name) < math.inf)


_IS_TRADE: Final = (_is_amount("price") & _is_amount("quantity") & (pl.col("count") > 0)).fill_null(value=False)


def bars(trades: Trades, width_us: int) -> pl.DataFrame:
    """The bars of these trades, in the order of time, one for each interval with trades.

    A trade belongs to a bar by its time alone, and inside a bar ids give the order. Volumes of decimals are exact: the
    double that is nearest to their sum. The taker's columns are null in a bar with a trade of an unknown side.
    """
    if not len(trades):
        return pl.DataFrame(schema=SCHEMA)
    opens = _opens(trades.time, width_us)
    totals = Totals.empty(len(opens))
    add = _sum_up if IS_COMPILED else _sum_up_in_numpy
    add(
        trades.time, trades.price, trades.quantity, trades.count, trades.is_buyer_maker, opens, width_us,
        totals.prices, totals.sums, totals.counts,
    )  # fmt: skip
    return totals.frame(opens)


def roll_up(shorter: pl.DataFrame, width_us: int) -> pl.DataFrame:
    """Longer bars out of shorter ones in the order of time, which the longer ones consist of.

    Fillers (count 0) do not contribute; where there is nothing else the longer bar is a filler too.
    """
    if shorter.is_empty():
        return pl.DataFrame(schema=SCHEMA)
    opens, into = np.unique(_floor(shorter["time"].to_physical().to_numpy(), width_us), return_inverse=True)
    totals = Totals.empty(len(opens))
    prices = np.stack([shorter[name].to_numpy() for name in PRICES])
    sums = np.stack([shorter[name].fill_null(math.nan).to_numpy() for name in SUMS])
    _join(into.astype(np.int64), prices, sums, shorter["count"].to_numpy(), totals.prices, totals.sums, totals.counts)
    return totals.frame(opens, with_fillers=True)


def all_bars(trades: Trades, timeframes: Iterable[str]) -> dict[str, pl.DataFrame]:
    """The bars of several timeframes in one pass over the trades; those above 1m are rolled up.

    So a longer bar opens and closes as its 1m bars do, also where ids go back over the edge of a minute.
    """
    asked = list(timeframes)
    made = {name: bars(trades, TIMEFRAMES_US[name]) for name in needed(asked) if TIMEFRAMES_US[name] <= BASE_US}
    return {name: made[name] if name in made else roll_up(made[BASE], TIMEFRAMES_US[name]) for name in asked}


def needed(timeframes: Iterable[str]) -> list[str]:
    """These timeframes and those that they are made from, by length."""
    asked = set(timeframes)
    if any(TIMEFRAMES_US[name] > BASE_US for name in asked):
        asked.add(BASE)
    return [name for name in TIMEFRAMES_US if name in asked]


def filled(
    found: pl.DataFrame,
    width_us: int,
    *,
    before: float | None = None,
    first: int | None = None,
    until: int | None = None,
) -> pl.DataFrame:
    """The same bars, in the order of time, with a filler for each interval between them.

    `before` is the close that comes in from earlier: with it fillers begin at the interval `first` (µs since 1970);
    without it nothing stands in front of the first bar. Fillers behind the last bar go up to `until`, exclusive.
    """
    times = found["time"].to_physical().to_numpy()
    start = first if before is not None and first is not None else (int(times[0]) if len(times) else None)
    if start is None:
        return found
    end = max(until or 0, int(times[-1]) + width_us if len(times) else start)
    grid = np.arange(start, end, width_us, dtype=np.int64)
    if len(grid) == len(times):
        return found
    whole = pl.DataFrame({"time": grid}).with_columns(pl.col("time").cast(TIME))
    whole = whole.join(found, on="time", how="left", maintain_order="left")
    close = pl.coalesce("close", pl.col("close").forward_fill(), pl.lit(before, pl.Float64))
    is_filler = pl.col("count").is_null()
    return whole.with_columns(
        *(pl.when(is_filler).then(close).otherwise(name).alias(name) for name in PRICES),
        *(pl.when(is_filler).then(0).otherwise(name).alias(name).cast(SCHEMA[name]) for name in (*SUMS, "count")),
    )


BASE_US: Final = TIMEFRAMES_US[BASE]


def _floor(times: Ints, width_us: int) -> Ints:
    return times - times % width_us


def _opens(times: Ints, width_us: int) -> Ints:
    """The opens of all intervals that may have trades, in order."""
    first, last = (int(each) // width_us * width_us for each in (times.min(), times.max()))
    if (last - first) // width_us < PLACES_PER_TRADE * len(times) + FEW_PLACES:
        return np.arange(first, last + width_us, width_us, dtype=np.int64)
    return np.unique(_floor(times, width_us))


# Sums on the way


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """Bars while they grow, one column each. Of volumes there are two parts, the second is what the first has lost."""

    prices: Floats  # open, high, low, close
    sums: Floats  # volume, its rest, taker's volume, its rest, quote volume, taker's quote volume
    counts: Ints

    @classmethod
    def empty(cls, places: int) -> "Totals":
        """Without a trade yet."""
        return cls(np.zeros((4, places)), np.zeros((6, places)), np.zeros(places, np.int64))

    def frame(self, opens: Ints, *, with_fillers: bool = False) -> pl.DataFrame:
        """The bars with trades, or all of them."""
        volume, rest, taker, taker_rest, quote, taker_quote = self.sums
        columns = {
            "time": opens,
            **dict(zip(PRICES, self.prices, strict=True)),
            "volume": as_decimal(volume + rest),
            "quote_volume": quote,
            "count": self.counts,
            "taker_buy_volume": as_decimal(taker + taker_rest),
            "taker_buy_quote_volume": taker_quote,
        }
        found = pl.DataFrame(columns).with_columns(pl.col("time").cast(TIME), pl.col(SUMS).fill_nan(None))
        return found if with_fillers else found.filter(pl.col("count") > 0)


def as_decimal(sums: Floats) -> Floats:
    """Sums of decimals as the doubles that are nearest to what the decimals add up to; other sums as they are.

    A sum without its error is off by what its parts are: a decimal of the venue is at most half a unit in the last
    place from its double. So the decimal that lies within two such units is meant, as long as there is only one.
    """
    with np.errstate(divide="ignore"):
        digits = np.floor(np.log10(TELLABLE / np.abs(sums)))
    scale = 10.0 ** np.clip(np.nan_to_num(digits), 0, DECIMALS)
    rounded = np.rint(sums * scale) / scale
    is_meant = (np.abs(rounded - sums) <= MOST_OFF_ULPS * np.spacing(sums)) & (np.abs(sums) < TELLABLE)
    return np.where(is_meant, rounded, sums)


@compiled
def _sum_up(
    time: Any, price: Any, quantity: Any, count: Any, maker: Any, opens: Any, width: Any,
    prices: Any, sums: Any, counts: Any,
) -> None:  # fmt: skip
    """Adds trades in the order of ids. What a bar becomes depends on its own trades alone: when the time goes back to
    one, its sums go on where they were."""
    trades, at = len(time), 0
    while at < trades:
        start = time[at] - time[at] % width
        end = start + width
        place = np.searchsorted(opens, start)
        is_new = counts[place] == 0
        first = price[at] if is_new else prices[0, place]
        high = first if is_new else prices[1, place]
        low = first if is_new else prices[2, place]
        last = first
        volume, rest, taker, taker_rest, quote, taker_quote = sums[:, place]
        number = counts[place]
        while at < trades and start <= time[at] < end:
            last = price[at]
            high, low = max(high, last), min(low, last)
            number += count[at]
            size = quantity[at]
            bought = size if maker[at] == 0 else (0.0 if maker[at] > 0 else np.nan)
            quote += last * size
            taker_quote += last * bought
            # What the addition loses is known exactly (Knuth's TwoSum).
            total = volume + size
            share = total - volume
            rest += (volume - (total - share)) + (size - share)
            volume = total
            total = taker + bought
            share = total - taker
            taker_rest += (taker - (total - share)) + (bought - share)
            taker = total
            at += 1
        prices[0, place], prices[1, place], prices[2, place], prices[3, place] = first, high, low, last
        sums[0, place], sums[1, place], sums[2, place], sums[3, place] = volume, rest, taker, taker_rest
        sums[4, place], sums[5, place], counts[place] = quote, taker_quote, number


def _sum_up_in_numpy(
    time: Ints, price: Floats, quantity: Floats, count: Ints, maker: NDArray[np.int8], opens: Ints, width: int,
    prices: Floats, sums: Floats, counts: Ints,
) -> None:  # fmt: skip
    """The same without machine code: the trades of a bar stand together, still in the order of ids."""
    places = np.searchsorted(opens, _floor(time, width))
    if (np.diff(places) < 0).any():
        order = np.argsort(places, kind="stable")
        places, price, quantity = places[order], price[order], quantity[order]
        count, maker = count[order], maker[order]
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    ends = np.append(starts[1:], len(places))
    at = places[starts]
    bought = np.where(maker == 0, quantity, np.where(maker > 0, 0.0, np.nan))
    prices[0, at], prices[3, at] = price[starts], price[ends - 1]
    prices[1, at], prices[2, at] = np.maximum.reduceat(price, starts), np.minimum.reduceat(price, starts)
    sums[0, at], sums[2, at] = _exact_sums(quantity, starts, ends), _exact_sums(bought, starts, ends)
    sums[4, at], sums[5, at] = np.add.reduceat(price * quantity, starts), np.add.reduceat(price * bought, starts)
    counts[at] = np.add.reduceat(count, starts)


def _exact_sums(values: Floats, starts: Ints, ends: Ints) -> list[float]:
    plain = values.tolist()
    return [math.fsum(plain[start:end]) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


@compiled
def _join(into: Any, prices: Any, values: Any, count: Any, joined: Any, sums: Any, counts: Any) -> None:
    """Adds bars in the order of time to the longer bars that they are part of."""
    for at in range(len(into)):
        place = into[at]
        if counts[place] == 0:  # fillers may stand in front, they have the close of another time
            joined[:, place] = prices[:, at]
        if count[at] == 0:
            continue
        joined[1, place] = max(joined[1, place], prices[1, at])
        joined[2, place] = min(joined[2, place], prices[2, at])
        joined[3, place] = prices[3, at]
        counts[place] += count[at]
        sums[4, place] += values[1, at]
        sums[5, place] += values[3, at]
        for row, part in ((0, values[0, at]), (2, values[2, at])):
            total = sums[row, place] + part
            share = total - sums[row, place]
            sums[row + 1, place] += (sums[row, place] - (total - share)) + (part - share)
            sums[row, place] = total
