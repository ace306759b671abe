"""Prices and quantities as whole ticks and steps, and as the decimal strings that the venue writes."""

import zlib
from dataclasses import dataclass, field
from functools import cache

from crypto_lake.config import SPOT

_SPOT_DECIMALS = 8  # spot writes eight decimals whatever the tick


class _Texts(dict[int, str]):
    """Integer -> decimal string, made once: the same few thousand prices come again and again."""

    def __init__(self, unit: int, decimals: int) -> None:
        super().__init__()
        self._unit, self._decimals = unit, decimals

    def __missing__(self, count: int) -> str:
        text = self[count] = decimal(count * self._unit, self._decimals)
        return text


@cache
def _texts(unit: int, decimals: int) -> _Texts:
    """Shared by all symbols that write alike: what stays in the processor's cache is found twice as fast."""
    return _Texts(unit, decimals)


@dataclass(frozen=True)
class Grid:
    """The steps of one symbol; `tick` and `step` are counted in units of the last decimal."""

    tick: int
    price_decimals: int
    step: int
    quantity_decimals: int
    price: _Texts = field(init=False, repr=False)
    quantity: _Texts = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "price", _texts(self.tick, self.price_decimals))
        object.__setattr__(self, "quantity", _texts(self.step, self.quantity_decimals))

    def quote(self, ticks_times_steps: int) -> str:
        """Price times quantity."""
        decimals = self.price_decimals + self.quantity_decimals
        shown = min(decimals, _SPOT_DECIMALS)
        return decimal(ticks_times_steps * self.tick * self.step // 10 ** (decimals - shown), shown)

    def ratio(self, ticks: float, decimals: int) -> str:
        """A price between the ticks."""
        return f"{ticks * self.tick / 10**self.price_decimals:.{decimals}f}"


def decimal(units: int, decimals: int) -> str:
    """`decimal(6499090, 2)` is `64990.90`."""
    if not decimals:
        return str(units)
    whole, part = divmod(abs(units), 10**decimals)
    return f"{'-' if units < 0 else ''}{whole}.{part:0{decimals}d}"


# Of the futures symbols: price to begin with in ticks, decimals of the tick and of prices as written, of quantities.
_KNOWN = {
    "BTCUSDT": (650_000, 1, 2, 3),
    "ETHUSDT": (320_000, 2, 2, 3),
    "币安人生USDT": (4_762, 4, 7, 0),
    "BTCUSD_PERP": (650_000, 1, 1, 0),
}


def grid_of(symbol: str, venue: str) -> tuple[Grid, int]:
    """The grid of a symbol and the price, in ticks, with which it begins; made up from the name when unknown."""
    made_up = (5_000 + zlib.crc32(symbol.encode()) % 90_000, 3, 4, 1)
    start, tick_decimals, price_decimals, quantity_decimals = _KNOWN.get(symbol, made_up)
    if venue == SPOT:
        step_decimals = min(quantity_decimals + 2, _SPOT_DECIMALS)
        tick, step = 10 ** (_SPOT_DECIMALS - tick_decimals), 10 ** (_SPOT_DECIMALS - step_decimals)
        return Grid(tick, _SPOT_DECIMALS, step, _SPOT_DECIMALS), start
    return Grid(10 ** (price_decimals - tick_decimals), price_decimals, 1, quantity_decimals), start
