"""Imbalance bars (ANALYTICS 2): trades in the order of their ids in, bars and what the next ones go on from out.

A bar ends when its signed trades add up to more than was expected. Every trade depends on all before it, so this is a
loop; it is compiled where Numba is. The order of its operations is that of the text, to the last bit: the sums are
compared with thresholds, and another order can move a bar.
"""

import math
from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, NamedTuple, get_args

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from crypto_lake.features.compiled import IS_COMPILED, compiled
from crypto_lake.models.dataset import TIME

Kind = Literal["tick", "volume", "dollar", "usd_share"]
Side = Literal["aggressor", "tick"]
Mode = Literal["const", "ema"]
Compare = Literal["ge", "gt"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

# What of the trades is looked at in one piece (it fits into a processor's cache), and how many bars are made in one.
PIECE: Final = 1 << 17
ROOM: Final = 4096
# A state holds so many numbers, and every bar goes through them.
MOST_LOOKED_BACK: Final = 10_000_000
VERSION: Final = 1

Reals = MutableSequence[float] | NDArray[np.float64]
Wholes = MutableSequence[int] | NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a series is made with (ANALYTICS 2.1); the last three are those of `usd_share` (2.4), the only ones it uses.

    `min_ticks` 0 and `max_ticks` infinity (or 0) are no limits. Raises `ValueError` with all that is wrong, in one
    sentence.
    """

    kind: Kind = "dollar"
    side: Side = "aggressor"
    mode: Mode = "const"
    compare: Compare = "ge"
    init_ticks: float = 5000.0
    imbalance_window: int = 10_000
    num_prev_bars: int = 3
    min_ticks: float = 2500.0
    max_ticks: float = 10_000.0
    min_imbalance_share: float = 0.0
    init_dollars: float = 5e6
    alpha_d: float = 0.1
    alpha_s: float = 0.1

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.type is float:  # 20 and 20.0 are one parameter, and are kept as one
                object.__setattr__(self, each.name, float(getattr(self, each.name)))
        if self.max_ticks == 0:
            object.__setattr__(self, "max_ticks", math.inf)
        if wrong := [sentence for is_wrong, sentence in self._judged() if is_wrong]:
            raise ValueError("; ".join(wrong))

    def _judged(self) -> list[tuple[bool, str]]:
        """What could be wrong, and whether it is."""
        words = {"kind": KINDS, "side": get_args(Side), "mode": get_args(Mode), "compare": get_args(Compare)}
        chosen = [(name, getattr(self, name), allowed) for name, allowed in words.items()]
        is_share = self.kind == "usd_share"
        return [
            *(
                (word not in allowed, f"{name}={word} is none of {', '.join(allowed)}")
                for name, word, allowed in chosen
            ),
            *self._judged_numbers(),
            (is_share and self.side != "aggressor", "kind=usd_share knows side=aggressor only"),
            (is_share and self.compare != "ge", "kind=usd_share knows compare=ge only"),
        ]

    def _judged_numbers(self) -> list[tuple[bool, str]]:
        over, alphas = ("init_ticks", "init_dollars"), ("alpha_d", "alpha_s")
        counts = ("imbalance_window", "num_prev_bars")
        low, high, share, most = self.min_ticks, self.max_ticks, self.min_imbalance_share, MOST_LOOKED_BACK
        return [
            *((not 0 < self._at(name) < math.inf, f"{name}={self._at(name):g} is not above 0") for name in over),
            *(
                (not 1 <= self._at(name) <= most, f"{name}={self._at(name):g} is not from 1 to {most}")
                for name in counts
            ),
            *((not 0 <= self._at(name) <= 1, f"{name}={self._at(name):g} is not from 0 to 1") for name in alphas),
            (not 0 <= low < math.inf, f"min_ticks={low:g} is not at least 0"),
            (not high > 0, f"max_ticks={high:g} is not above 0"),
            (low > high, f"min_ticks={low:g} is above max_ticks={high:g}"),
            (not 0 <= share < math.inf, f"min_imbalance_share={share:g} is not at least 0"),
        ]

    def _at(self, name: str) -> float:
        return float(getattr(self, name))


class OpenBar(msgspec.Struct, frozen=True):
    """A bar that has begun."""

    open_us: int
    first_id: int
    ticks: int
    open: float
    high: float
    low: float
    volume: float
    dollar_value: float
    buy_volume: float
    buy_dollar_value: float
    theta: float


class State(msgspec.Struct, frozen=True):
    """Behind a trade of a series, all that the bars after it depend on; made by `begin` and by `feed`.

    `history` are the signed values of the last trades (float64, little-endian, oldest first), `exp_size` is their mean
    without signs. `bar` is the number of the next bar.
    """

    exp_ticks: float
    exp_imbalance: float | None
    exp_size: float
    exp_dollar: float
    exp_share: float
    last_price: float | None = None
    sign: int = 0
    last_id: int | None = None
    tick_num: int = 0
    bar: int = 0
    lengths: tuple[int, ...] = ()
    history: bytes = b""
    open_bar: OpenBar | None = None

    def to_bytes(self) -> bytes:
        """For `from_bytes`; every number stays as it is, bit by bit."""
        return bytes((VERSION,)) + msgspec.msgpack.encode(self)

    @staticmethod
    def from_bytes(kept: bytes) -> "State":
        """Raises `ValueError` when it is not from `to_bytes` of this version."""
        if kept[:1] != bytes((VERSION,)):
            raise ValueError(f"a state of version {kept[0] if kept else 'none'}, not {VERSION}")
        return msgspec.msgpack.decode(kept[1:], type=State)


class Counts(NamedTuple):
    """What `feed` saw beside the bars.

    `clamped`: refreshes in which the expected ticks hit a limit. `skipped`: trades whose id is not above the last one
    used. `refused`: trades without an id, or whose price or quantity is null or not above 0.
    """

    clamped: int
    one_tick_bars: int
    skipped: int
    refused: int


class Fed(NamedTuple):
    """Bars that ended, the state behind the last trade, and counts."""

    bars: pl.DataFrame
    state: State
    counts: Counts


def begin(parameters: Parameters) -> State:
    """The state before the first trade."""
    return State(parameters.init_ticks, None, 0.0, parameters.init_dollars, 1.0)


def feed(trades: pl.DataFrame, parameters: Parameters, state: State) -> Fed:
    """The bars that end within `trades`, which follow those that made `state`; columns of ANALYTICS 2.3.

    `trades` has id, time (an instant, or µs since 1970), price, quantity, and for side=aggressor is_buyer_maker, which
    then is never null. They enter by id, whatever their order here; an id counts once. Raises `ValueError` for a null
    in is_buyer_maker.
    """
    ordered = _ordered(trades, parameters.side)
    work, skipped = _Work(parameters, state), 0
    for piece in ordered.iter_slices(PIECE):
        found = Trades(*(column.to_numpy() for column in piece.iter_columns()))
        new = _new(found, work.last_id)
        skipped += len(found.ids) - len(new.ids)
        work.take(new)
    bars = work.frame()
    counts = Counts(work.clamped, int((bars["ticks"] == 1).sum()), skipped, trades.height - ordered.height)
    return Fed(bars, work.state(), counts)


def is_trade() -> pl.Expr:
    """Whether a row of trades enters: it has an id, a time, and is worth more than nothing and less than everything."""
    value = pl.col("price") * pl.col("quantity")
    is_worth = (pl.col("price") > 0) & (pl.col("quantity") > 0) & (value > 0) & value.is_finite()
    return is_worth.fill_null(value=False) & pl.col("id").is_not_null() & pl.col("time").is_not_null()


# Trades on their way into the loop


class Trades(NamedTuple):
    """Columns of trades; the loop takes lists where it is not compiled."""

    ids: Any
    times: Any
    prices: Any
    quantities: Any
    sold: Any

    def only(self, mask: NDArray[np.bool_]) -> "Trades":
        """Those for which it is true."""
        return self if mask.all() else Trades(*(column[mask] for column in self))


def _ordered(trades: pl.DataFrame, side: Side) -> pl.DataFrame:
    """What enters, by id, with the columns that matter. Of two rows with one id the first counts."""
    clock = pl.col("time").cast(TIME) if trades.schema["time"].is_temporal() else pl.col("time")
    is_sold = pl.lit(value=False).alias("is_buyer_maker") if side == "tick" else pl.col("is_buyer_maker")
    typed = trades.select(
        pl.col("id").cast(pl.Int64), clock.cast(pl.Int64), pl.col("price", "quantity").cast(pl.Float64), is_sold
    )
    entering = typed.select(is_trade()).to_series()
    good = typed if entering.all() else typed.filter(entering)
    if good["is_buyer_maker"].null_count():
        raise ValueError("is_buyer_maker is null: without an aggressor a trade has no sign, but by side=tick")
    return good if good["id"].is_sorted() else good.sort("id", maintain_order=True)


def _new(trades: Trades, last_id: int | None) -> Trades:
    """Those with an id that none before has: the ids are sorted."""
    ids = trades.ids
    if not len(ids):
        return trades
    is_new = np.empty(len(ids), np.bool_)
    is_new[0] = last_id is None or ids[0] > last_id
    np.greater(ids[1:], ids[:-1], out=is_new[1:])
    if last_id is not None and not is_new[0]:
        is_new &= ids > last_id
    return trades.only(is_new)


# The loop. What lives on from trade to trade and from bar to bar stands in two rows of numbers, by these places.

(EXP_TICKS, EXP_IMBALANCE, EXP_SIZE, EXP_DOLLAR, EXP_SHARE, THRESHOLD, LAST_PRICE, SIGN) = range(8)
(OPEN, HIGH, LOW, VOLUME, DOLLAR, BUY_VOLUME, BUY_DOLLAR, THETA, DIVISOR) = range(8, 17)
REALS: Final = 17
(TICK_NUM, BAR, TICKS, OPEN_US, FIRST_ID, CLAMPED, HELD, HEAD, LENGTHS, LENGTHS_HEAD, DIVISOR_OF) = range(11)
WHOLES: Final = 11

TICK, OF_VOLUME, OF_DOLLAR = range(3)
WEIGHTS: Final = {"tick": TICK, "volume": OF_VOLUME, "dollar": OF_DOLLAR, "usd_share": OF_DOLLAR}

MADE_REALS: Final = (
    "open", "high", "low", "close", "volume", "dollar_value", "buy_volume", "buy_dollar_value", "theta", "first",
    "second", "threshold",
)  # fmt: skip
MADE_WHOLES: Final = ("bar", "open_time", "close_time", "ticks", "first_id", "last_id", "tick_num")
COLUMNS: Final = (
    "bar", "open_time", "close_time", "open", "high", "low", "close", "volume", "dollar_value", "buy_volume",
    "buy_dollar_value", "ticks", "theta", "first", "second", "threshold", "first_id", "last_id", "tick_num",
)  # fmt: skip


class Rule(NamedTuple):
    """The parameters as the loop wants them."""

    weight: int
    is_share: bool
    is_by_tick: bool
    is_ema: bool
    is_strict: bool
    window: int
    bars: int
    low: float
    high: float
    floor: float
    alpha_d: float
    alpha_s: float


@compiled
def _divisor(count: int, keep: float) -> float:
    """What the weights of `count` values add up to: the newest weighs 1, each before it `keep` times the next."""
    total = 1.0
    for power in range(1, count):
        total += math.pow(keep, float(power))
    return total


@compiled
def _weighted(ring: Reals, head: int, held: int, keep: float, is_size: bool) -> float:
    """The weighted sum of the last `held` values of a ring whose next value goes to `head`; or of their sizes."""
    size = len(ring)
    place = head - held
    if place < 0:
        place += size
    total = abs(ring[place]) if is_size else ring[place]
    for _ in range(1, held):
        place += 1
        if place == size:
            place = 0
        total = total * keep + (abs(ring[place]) if is_size else ring[place])
    return total


@compiled
def _set_threshold(rule: Rule, reals: Reals) -> None:
    if rule.is_share:
        reals[THRESHOLD] = reals[EXP_DOLLAR] * abs(reals[EXP_SHARE])
    elif math.isnan(reals[EXP_IMBALANCE]):
        reals[THRESHOLD] = math.inf
    else:
        reals[THRESHOLD] = reals[EXP_TICKS] * max(abs(reals[EXP_IMBALANCE]), rule.floor * reals[EXP_SIZE])


@compiled
def _expect_imbalance(rule: Rule, reals: Reals, wholes: Wholes, ring: Reals) -> None:
    """The finite-window exponential mean of the last values, anew from the values themselves."""
    head, held = wholes[HEAD], wholes[HELD]
    keep = 1.0 - 2.0 / (held + 1)
    if wholes[DIVISOR_OF] != held:
        reals[DIVISOR] = _divisor(held, keep)
        wholes[DIVISOR_OF] = held
    reals[EXP_IMBALANCE] = _weighted(ring, head, held, keep, False) / reals[DIVISOR]
    if rule.floor > 0.0:
        reals[EXP_SIZE] = _weighted(ring, head, held, keep, True) / reals[DIVISOR]


@compiled
def _expect_ticks(rule: Rule, reals: Reals, wholes: Wholes, lengths: Reals) -> None:
    """The same mean of the last bars' lengths, kept within its limits; of fewer bars with the span of all."""
    keep, held = 1.0 - 2.0 / (rule.bars + 1), wholes[LENGTHS]
    mean = _weighted(lengths, wholes[LENGTHS_HEAD], held, keep, False) / _divisor(held, keep)
    kept = min(max(mean, rule.low), rule.high)
    if kept != mean:
        wholes[CLAMPED] += 1
    reals[EXP_TICKS] = kept


@compiled
def _expect_share(rule: Rule, reals: Reals) -> None:
    """What usd_share expects of the next bar, by the one that has ended."""
    dollars = reals[DOLLAR]
    share = abs(2.0 * reals[BUY_DOLLAR] / dollars - 1.0)
    if reals[EXP_SHARE] == 1.0:
        reals[EXP_DOLLAR] = dollars
        reals[EXP_SHARE] = share
    else:
        reals[EXP_DOLLAR] += rule.alpha_d * (dollars - reals[EXP_DOLLAR])
        reals[EXP_SHARE] += rule.alpha_s * (share - reals[EXP_SHARE])


@compiled
def _refresh(rule: Rule, reals: Reals, wholes: Wholes, ring: Reals, lengths: Reals) -> None:
    """What a bar that has ended makes of the expectations."""
    if rule.is_share:
        _expect_share(rule, reals)
    else:
        lengths[wholes[LENGTHS_HEAD]] = wholes[TICKS]
        wholes[LENGTHS_HEAD] = (wholes[LENGTHS_HEAD] + 1) % rule.bars
        wholes[LENGTHS] = min(wholes[LENGTHS] + 1, rule.bars)
        if rule.is_ema:
            _expect_ticks(rule, reals, wholes, lengths)
        _expect_imbalance(rule, reals, wholes, ring)
    _set_threshold(rule, reals)
    wholes[BAR] += 1
    wholes[TICKS] = 0


@compiled
def _open(at: int, trades: Trades, reals: Reals, wholes: Wholes) -> None:
    wholes[OPEN_US] = trades.times[at]
    wholes[FIRST_ID] = trades.ids[at]
    reals[OPEN] = reals[HIGH] = reals[LOW] = trades.prices[at]
    reals[VOLUME] = reals[DOLLAR] = reals[BUY_VOLUME] = reals[BUY_DOLLAR] = reals[THETA] = 0.0


@compiled
def _emit(at: int, trades: Trades, rule: Rule, reals: Reals, wholes: Wholes, real: Reals, whole: Wholes) -> None:
    """The bar that ends with the trade `at`, in the order of MADE_REALS and MADE_WHOLES."""
    real[0], real[1], real[2], real[3] = reals[OPEN], reals[HIGH], reals[LOW], trades.prices[at]
    real[4], real[5], real[6], real[7] = reals[VOLUME], reals[DOLLAR], reals[BUY_VOLUME], reals[BUY_DOLLAR]
    real[8], real[11] = reals[THETA], reals[THRESHOLD]
    real[9] = reals[EXP_DOLLAR] if rule.is_share else reals[EXP_TICKS]
    real[10] = reals[EXP_SHARE] if rule.is_share else reals[EXP_IMBALANCE]
    whole[0], whole[1], whole[2], whole[3] = wholes[BAR], wholes[OPEN_US], trades.times[at], wholes[TICKS]
    whole[4], whole[5], whole[6] = wholes[FIRST_ID], trades.ids[at], wholes[TICK_NUM]


@compiled
def _add(at: int, end: int, trades: Trades, rule: Rule, reals: Reals, wholes: Wholes, ring: Reals) -> int:
    """Adds trades to the open bar, from `at` on; the place of the one that ends it, or `end`."""
    prices, quantities, sold = trades.prices, trades.quantities, trades.sold
    threshold, last, sign, high, low = reals[THRESHOLD], reals[LAST_PRICE], reals[SIGN], reals[HIGH], reals[LOW]
    volume, dollars, theta = reals[VOLUME], reals[DOLLAR], reals[THETA]
    bought, bought_dollars, head, size = reals[BUY_VOLUME], reals[BUY_DOLLAR], wholes[HEAD], len(ring)
    place, ends = at, False
    while place < end and not ends:
        price, quantity = prices[place], quantities[place]
        if not rule.is_by_tick:
            sign = -1.0 if sold[place] else 1.0
        else:  # before the first trade stands NaN, and nothing is above or below it
            step = int(price > last) - int(price < last)
            sign = float(step) if step != 0 else sign
        last = price
        dollar = price * quantity
        signed = sign * (1.0 if rule.weight == TICK else quantity if rule.weight == OF_VOLUME else dollar)
        high, low = max(high, price), min(low, price)
        volume += quantity
        dollars += dollar
        bought += quantity if sign > 0.0 else 0.0
        bought_dollars += dollar if sign > 0.0 else 0.0
        theta += signed
        ring[head] = signed
        head += 1
        if head == size:
            head = 0
        ends = abs(theta) > threshold if rule.is_strict else abs(theta) >= threshold
        place += 1
    reals[LAST_PRICE], reals[SIGN], reals[HIGH], reals[LOW] = last, sign, high, low
    reals[VOLUME], reals[DOLLAR], reals[THETA] = volume, dollars, theta
    reals[BUY_VOLUME], reals[BUY_DOLLAR], wholes[HEAD] = bought, bought_dollars, head
    wholes[TICKS] += place - at
    wholes[TICK_NUM] += place - at
    wholes[HELD] = min(wholes[HELD] + place - at, size)
    return place - 1 if ends else end


@compiled
def _warm_end(at: int, end: int, reals: Reals, wholes: Wholes) -> int:
    """Where the warm-up ends, if it does before `end`."""
    wanting = reals[EXP_TICKS] - wholes[TICK_NUM]
    return end if wanting >= end - at else at + math.ceil(wanting)


@compiled
def _walk(
    at: int,
    trades: Trades,
    rule: Rule,
    reals: Reals,
    wholes: Wholes,
    ring: Reals,
    lengths: Reals,
    real: Any,
    whole: Any,
) -> tuple[int, int]:
    """From trade `at` on until the trades end or the room for bars; the place of the next trade, and the bars made."""
    made, count = 0, len(trades.ids)
    while at < count and made < len(real):
        if wholes[TICKS] == 0:
            _open(at, trades, reals, wholes)
        is_cold = not rule.is_share and math.isnan(reals[EXP_IMBALANCE])
        end = _warm_end(at, count, reals, wholes) if is_cold else count
        last = _add(at, end, trades, rule, reals, wholes, ring)
        ends, at = last < end, min(last + 1, end)
        if is_cold and wholes[TICK_NUM] >= reals[EXP_TICKS]:
            _expect_imbalance(rule, reals, wholes, ring)
            _set_threshold(rule, reals)
            theta, threshold = abs(reals[THETA]), reals[THRESHOLD]
            ends = theta > threshold if rule.is_strict else theta >= threshold
        if ends:
            _emit(at - 1, trades, rule, reals, wholes, real[made], whole[made])
            _refresh(rule, reals, wholes, ring, lengths)
            made += 1
    return at, made


# Between states and the loop


class _Work:
    """A state laid out for the loop, and the bars made so far."""

    def __init__(self, parameters: Parameters, state: State) -> None:
        self.rule = _rule(parameters)
        self.last_id = state.last_id
        self.reals: Any = np.zeros(REALS)
        self.wholes: Any = np.zeros(WHOLES, np.int64)
        self._lay_out(state)
        self._lay_open(state.open_bar)
        self.ring, self.lengths = self._rings(state)
        self.reals, self.wholes = _fast(self.reals), _fast(self.wholes)
        self._bars: list[pl.DataFrame] = []
        _set_threshold(self.rule, self.reals)

    @property
    def clamped(self) -> int:
        return int(self.wholes[CLAMPED])

    def _lay_out(self, state: State) -> None:
        nan = math.nan
        self.reals[[EXP_TICKS, EXP_SIZE, SIGN]] = state.exp_ticks, state.exp_size, state.sign
        self.reals[[EXP_DOLLAR, EXP_SHARE]] = state.exp_dollar, state.exp_share
        self.reals[EXP_IMBALANCE] = nan if state.exp_imbalance is None else state.exp_imbalance
        self.reals[LAST_PRICE] = nan if state.last_price is None else state.last_price
        self.wholes[[TICK_NUM, BAR]] = state.tick_num, state.bar

    def _lay_open(self, bar: OpenBar | None) -> None:
        if bar is None:
            return
        self.wholes[[TICKS, OPEN_US, FIRST_ID]] = bar.ticks, bar.open_us, bar.first_id
        self.reals[[OPEN, HIGH, LOW, THETA]] = bar.open, bar.high, bar.low, bar.theta
        self.reals[[VOLUME, DOLLAR]] = bar.volume, bar.dollar_value
        self.reals[[BUY_VOLUME, BUY_DOLLAR]] = bar.buy_volume, bar.buy_dollar_value

    def _rings(self, state: State) -> tuple[Any, Any]:
        history = np.frombuffer(state.history, "<f8")
        ring, lengths = np.zeros(self.rule.window), np.zeros(self.rule.bars)
        assert len(history) <= len(ring), "the state of other parameters"
        ring[: len(history)], lengths[: len(state.lengths)] = history, state.lengths
        self.wholes[[HELD, HEAD]] = len(history), len(history) % len(ring)
        self.wholes[[LENGTHS, LENGTHS_HEAD]] = len(state.lengths), len(state.lengths) % len(lengths)
        return _fast(ring), _fast(lengths)

    def take(self, trades: Trades) -> None:
        """The trades enter; the bars that end are kept."""
        if not len(trades.ids):
            return
        self.last_id = int(trades.ids[-1])
        columns, at = Trades(*(_fast(_fixed(column)) for column in trades)), 0
        while at < len(trades.ids):
            room = min(ROOM, len(trades.ids) - at)
            real, whole = np.empty((room, len(MADE_REALS))), np.empty((room, len(MADE_WHOLES)), np.int64)
            at, made = _walk(at, columns, self.rule, self.reals, self.wholes, self.ring, self.lengths, real, whole)
            if made:
                self._bars.append(_frame(real[:made], whole[:made]))

    def frame(self) -> pl.DataFrame:
        """The bars, with the columns of their kind."""
        nothing = _frame(np.empty((0, len(MADE_REALS))), np.empty((0, len(MADE_WHOLES)), np.int64))
        bars = pl.concat([nothing, *self._bars])
        names = ("exp_dollar", "exp_share") if self.rule.is_share else ("exp_ticks", "exp_imbalance")
        return bars.rename(dict(zip(("first", "second"), names, strict=True)))

    def state(self) -> State:
        """The state behind the last trade."""
        real, whole = [float(each) for each in self.reals], [int(each) for each in self.wholes]
        return State(
            real[EXP_TICKS],
            None if math.isnan(real[EXP_IMBALANCE]) else real[EXP_IMBALANCE],
            real[EXP_SIZE],
            real[EXP_DOLLAR],
            real[EXP_SHARE],
            None if math.isnan(real[LAST_PRICE]) else real[LAST_PRICE],
            int(real[SIGN]),
            self.last_id,
            whole[TICK_NUM],
            whole[BAR],
            tuple(int(each) for each in _unrolled(self.lengths, whole[LENGTHS_HEAD], whole[LENGTHS])),
            _unrolled(self.ring, whole[HEAD], whole[HELD]).astype("<f8").tobytes(),
            _open_bar(real, whole) if whole[TICKS] else None,
        )


def _rule(parameters: Parameters) -> Rule:
    return Rule(
        WEIGHTS[parameters.kind],
        parameters.kind == "usd_share",
        parameters.side == "tick",
        parameters.mode == "ema",
        parameters.compare == "gt",
        1 if parameters.kind == "usd_share" else parameters.imbalance_window,  # it looks back at nothing
        parameters.num_prev_bars,
        float(parameters.min_ticks),
        float(parameters.max_ticks),
        float(parameters.min_imbalance_share),
        float(parameters.alpha_d),
        float(parameters.alpha_s),
    )


def _fixed(column: NDArray[Any]) -> NDArray[Any]:
    """Of one type wherever it comes from: what may be written and what may not is compiled twice."""
    view = column.view()
    view.flags.writeable = False
    return view


def _fast(column: NDArray[Any]) -> Sequence[Any] | NDArray[Any]:
    """What the loop reads fastest: plain Python takes numbers out of a list, not out of an array."""
    return column if IS_COMPILED else column.tolist()


def _unrolled(ring: Any, head: int, held: int) -> NDArray[np.float64]:
    """The last values of a ring, oldest first."""
    return np.roll(np.asarray(ring, np.float64), -head)[-held:] if held else np.empty(0)


def _open_bar(real: list[float], whole: list[int]) -> OpenBar:
    return OpenBar(
        whole[OPEN_US],
        whole[FIRST_ID],
        whole[TICKS],
        real[OPEN],
        real[HIGH],
        real[LOW],
        real[VOLUME],
        real[DOLLAR],
        real[BUY_VOLUME],
        real[BUY_DOLLAR],
        real[THETA],
    )


def _frame(real: NDArray[np.float64], whole: NDArray[np.int64]) -> pl.DataFrame:
    reals = {name: real[:, place] for place, name in enumerate(MADE_REALS)}
    wholes = {name: whole[:, place] for place, name in enumerate(MADE_WHOLES)}
    return pl.DataFrame({**reals, **wholes}).select(COLUMNS).with_columns(pl.col("open_time", "close_time").cast(TIME))
