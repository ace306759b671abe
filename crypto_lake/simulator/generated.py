"""The generated market: made up from a seed, without end, and true to its own order books."""

import random
import time
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import accumulate

from crypto_lake.config import FUTURES, SPOT
from crypto_lake.simulator import answers, payloads
from crypto_lake.simulator.dumps_kept import Kept
from crypto_lake.simulator.instrument import Instrument
from crypto_lake.simulator.market import BATCH_FRAMES, Frame, Question
from crypto_lake.simulator.streams import ALL_MARKET, kind_of

COIN_M_SYMBOL = "BTCUSD_PERP"
DEFAULT_FUTURES = ("BTCUSDT", "ETHUSDT", "币安人生USDT")
DEFAULT_MIX = {"depth": 0.45, "aggTrade": 0.35, "bookTicker": 0.18, "forceOrder": 0.02}
# Levels that change per side between two diffs: together 20 to 40, as on a busy symbol.
DEFAULT_LEVELS = (10, 20)
_COIN_M_SHARE = 0.1


def made_up_symbols(count: int) -> tuple[str, ...]:
    """The default symbols, then as many invented ones as are wanted."""
    return (*DEFAULT_FUTURES, *(f"COIN{i:03d}USDT" for i in range(len(DEFAULT_FUTURES), count)))[:count]


class GeneratedMarket:
    """A market made from a seed: the same arguments and start give the same bytes.

    `rate` counts the messages of `mix` per second of the market's clock, over all symbols of both venues; single
    trades, tickers, mark prices, klines and partial books come on top unless `with_others` is off. It is over after
    `total` messages of the mix; None = never. With `record`, `ledger` keeps everything that was generated.

    `rates` makes symbols uneven: messages of the mix per second of `"BTCUSDT"` (on every venue) or `"binance:BTCUSDT"`;
    symbols that it does not name share `rate`. So one may trade a hundred times a second beside one with a trade a
    minute. REST has the newest `history` aggregate trades of a symbol. With `dumps`, `kept` has what the official files
    say of all that was generated.
    """

    waits_for_readers = False

    def __init__(
        self,
        futures: Sequence[str] | int = DEFAULT_FUTURES,
        spot: Sequence[str] | int = ("BTCUSDT",),
        *,
        rate: float = 200,
        rates: Mapping[str, float] | None = None,
        seed: int = 1,
        speed: float = 1,
        mix: Mapping[str, float] = DEFAULT_MIX,
        levels: tuple[int, int] = DEFAULT_LEVELS,
        start_ms: int | None = None,
        total: int | None = None,
        with_others: bool = True,
        others_every_ms: int = 1000,
        history: int = 50_000,
        record: bool = False,
        dumps: bool = False,
    ) -> None:
        assert rate > 0
        assert speed > 0
        assert mix
        assert set(mix) <= set(DEFAULT_MIX), f"the mix knows {set(DEFAULT_MIX)}"
        self._random = random.Random(seed)  # noqa: S311 - a made-up market needs no secrets
        self._rate, self._speed, self._levels, self._total = rate, speed, levels, total
        self._with_others, self._others_every_ms = with_others, others_every_ms
        self._kinds, self._shares = tuple(mix), list(accumulate(mix.values()))
        self.start_ms = time.time_ns() // 1_000_000 if start_ms is None else start_ms
        self.clock_ms = self.start_ms
        self.made = 0
        self.ledger: list[Frame] | None = [] if record else None
        self._origin_s: float | None = None
        self._others_due_ms = self.start_ms - self.start_ms % others_every_ms + others_every_ms
        self._delisted: set[tuple[str, str]] = set()
        self._list_instruments(_named(futures), _named(spot), history)
        self._turns: list[float] | None = None
        if rates:
            self._set_rates(rates)
        self.kept: Kept | None = None
        if dumps:
            self.keep()

    def _set_rates(self, rates: Mapping[str, float]) -> None:
        """Turns are drawn by rate, and all rates together are the market's."""
        names = [(f"{each.listing.venue}:{each.listing.symbol}", each.listing.symbol) for each in self._order]
        known = {name for both in names for name in both}
        assert set(rates) <= known, f"rates name symbols that are not listed: {set(rates) - known}"
        own = [rates.get(full, rates.get(plain)) for full, plain in names]
        share = self._rate / max(1, own.count(None))
        self._turns = list(accumulate(share if each is None else each for each in own))
        self._rate = self._turns[-1]
        assert self._rate > 0

    def _list_instruments(self, futures: tuple[str, ...], spot: tuple[str, ...], history: int) -> None:
        listed = [(FUTURES, symbol) for symbol in futures] + [(SPOT, symbol) for symbol in spot]
        assert listed, "a market needs a symbol"
        self._instruments = {
            key: Instrument(*key, first_id=1_000_000 * (i + 1), history=history) for i, key in enumerate(listed)
        }
        self._order = list(self._instruments.values())
        self._futures_order = [each for each in self._order if each.listing.is_futures]
        self._coin_m: Instrument | None = None
        if self._futures_order:
            self._coin_m = Instrument(FUTURES, COIN_M_SYMBOL, first_id=900_000, history=history)

    # What the simulator asks of a market

    @property
    def over(self) -> bool:
        """The `total` has been made."""
        return self._total is not None and self.made >= self._total

    def symbols(self, venue: str) -> tuple[str, ...]:
        """Listed there."""
        return tuple(symbol for at, symbol in self._instruments if at == venue)

    def ready(self, kinds: Set[str], waited_s: float) -> bool:
        """Always: a market waits for nobody."""
        return True

    def due(self, now_s: float) -> Iterator[Frame]:
        """Frames up to now; the clock starts at the first call and never stands still afterwards."""
        if self._origin_s is None:
            self._origin_s = now_s
        now_ms = self.start_ms + int((now_s - self._origin_s) * 1000 * self._speed)
        for _ in range(BATCH_FRAMES):
            if self.over or self._next_ms() > now_ms:
                self.clock_ms = max(self.clock_ms, now_ms)
                return
            yield from self._step()

    async def answer(self, question: Question) -> bytes:
        """A REST answer from the state as it is."""
        return answers.answer(question, self._instruments, self.clock_ms, self._delisted)

    def delist(self, venue: str, symbol: str) -> None:
        """Nothing happens to it any more; its turns pass."""
        self._delisted.add((venue, symbol))

    # What tests and benchmarks ask of it

    def frames(self, count: int) -> Iterator[Frame]:
        """The next `count` frames at once, without clock and sockets."""
        made = 0
        while made < count and not self.over:
            for frame in self._step():
                made += 1
                yield frame
                if made == count:
                    return

    def sent(self, venue: str, kind: str, symbol: str | None = None) -> list[bytes]:
        """Payloads generated so far of a kind (`aggTrade`, `depth`, `forceOrder`, ...), of one symbol or of all.

        COIN-M rows are among the `forceOrder` and `bookTicker` of all, as they are in the all-market streams.
        """
        assert self.ledger is not None, "the market was made without record=True"
        stream = None if symbol is None else f"{symbol.lower()}@{kind}"
        return [
            frame.payload
            for frame in self.ledger
            if frame.venue == venue and (frame.stream == stream if stream else kind_of(frame.stream) == kind)
        ]

    def instrument(self, venue: str, symbol: str) -> Instrument:
        """A symbol's book, ids and history as they are now."""
        return self._instruments[venue, symbol]

    # What the bucket of official files asks of it

    def keep(self) -> Kept:
        """What its files will say is kept, from the beginning or not at all."""
        if self.kept is None:
            assert not self.made, "nothing was kept of what has happened already: make the market with dumps=True"
            self.kept = Kept(self._instruments, self._coin_m, self._delisted, self.start_ms)
        return self.kept

    def keep_up(self) -> None:
        """Write into `kept` what is over by the clock alone."""
        self.keep().close(self.clock_ms, self._others_due_ms)

    # How it is made

    def _next_ms(self) -> int:
        return self.start_ms + int(self.made * 1000 / self._rate)

    def _step(self) -> Iterator[Frame]:
        """The next message of the mix with what comes beside it."""
        time_ms = self._next_ms()
        if self.kept is not None:
            self.kept.tick(time_ms)
        if self._with_others and time_ms >= self._others_due_ms:
            # Who takes so many frames and no more leaves in the middle: what was told is not told again.
            due_ms, self._others_due_ms = self._others_due_ms, self._others_due_ms + self._others_every_ms
            yield from self._noted(self._others(due_ms))
        self.clock_ms = max(self.clock_ms, time_ms)
        self.made += 1
        yield from self._noted(self._event(time_ms))

    def _noted(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        if self.ledger is None and self.kept is None:
            return frames
        noted = list(frames)
        if self.ledger is not None:
            self.ledger.extend(noted)
        if self.kept is not None:
            for frame in noted:
                self.kept.hear(frame)
        return iter(noted)

    def _event(self, time_ms: int) -> Iterator[Frame]:
        draw = self._random.random
        instrument = self._whose_turn(draw())
        if self._is_delisted(instrument):
            return
        kind = self._kinds[bisect(self._shares, draw() * self._shares[-1])]
        if kind == "depth":
            fewest, most = self._levels
            count = fewest + int(draw() * (most - fewest + 1))
            yield instrument.depth(time_ms, self._random.randbytes(4 * count))
        elif kind == "bookTicker":
            yield self._book_ticker(instrument, time_ms)
        elif kind == "forceOrder" and (victim := self._victim(time_ms)):
            yield self._as_all_market(victim, victim.liquidation(time_ms, self._random.randbytes(8)))
        else:
            yield from instrument.trade(time_ms, self._random.randbytes(8), with_parts=self._with_others)

    def _whose_turn(self, draw: float) -> Instrument:
        if self._turns is None:
            return self._order[int(draw * len(self._order))]
        return self._order[min(bisect(self._turns, draw * self._turns[-1]), len(self._order) - 1)]

    def _is_delisted(self, instrument: Instrument) -> bool:
        return bool(self._delisted) and (instrument.listing.venue, instrument.listing.symbol) in self._delisted

    def _book_ticker(self, instrument: Instrument, time_ms: int) -> Frame:
        coin_m = self._coin_m
        if coin_m is None or not instrument.listing.is_futures or self._random.random() >= _COIN_M_SHARE:
            return instrument.book_ticker(time_ms)
        coin_m.depth(time_ms, self._random.randbytes(8))
        return self._as_all_market(coin_m, coin_m.book_ticker(time_ms))

    def _victim(self, time_ms: int) -> Instrument | None:
        """A futures symbol that may be liquidated now, COIN-M now and then; None when all had their turn."""
        if not self._futures_order:
            return None
        coin_m = self._coin_m
        if coin_m is not None and coin_m.may_liquidate(time_ms) and self._random.random() < _COIN_M_SHARE:
            return coin_m
        count = len(self._futures_order)
        start = int(self._random.random() * count)
        turns = (self._futures_order[(start + i) % count] for i in range(count))
        return next((each for each in turns if each.may_liquidate(time_ms) and not self._is_delisted(each)), None)

    def _as_all_market(self, instrument: Instrument, frame: Frame) -> Frame:
        """COIN-M is heard on the USD-M host only inside the all-market streams."""
        if instrument is not self._coin_m:
            return frame
        return frame._replace(stream=ALL_MARKET[kind_of(frame.stream)])

    def _others(self, time_ms: int) -> Iterator[Frame]:
        for instrument in self._order:
            if self._is_delisted(instrument):
                continue
            yield from instrument.told_regularly(time_ms)
        for venue in (FUTURES, SPOT):
            yield from self._all_market(venue, time_ms)

    def _all_market(self, venue: str, time_ms: int) -> Iterator[Frame]:
        here = [each for each in self._order if each.listing.venue == venue and not self._is_delisted(each)]
        if not here:
            return
        with_coin_m = [*here, self._coin_m] if venue == FUTURES and self._coin_m else here
        days = [(each, each.day(time_ms)) for each in with_coin_m]
        minis = payloads.array_of(payloads.mini_ticker(each.listing, time_ms, day) for each, day in days)
        yield Frame(time_ms, venue, "!miniTicker@arr", minis)
        if venue == FUTURES:  # spot retired its own on 2026-03-26
            full = payloads.array_of(payloads.ticker(each.listing, time_ms, day, each.book) for each, day in days)
            yield Frame(time_ms, venue, "!ticker@arr", full)
            marks = payloads.array_of(payloads.mark_price(each.listing, time_ms, each.book) for each in here)
            yield Frame(time_ms, venue, "!markPrice@arr", marks)


def _named(symbols: Sequence[str] | int) -> tuple[str, ...]:
    return made_up_symbols(symbols) if isinstance(symbols, int) else tuple(symbols)
