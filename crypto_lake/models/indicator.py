"""Indicators: what traders read off a series of bars (ANALYTICS 3), and what it takes to go on from any of its rows."""

from typing import Final

from crypto_lake.models.dataset import Column, market, price, text

_MEANINGS: Final = {
    "sma_20": "mean close of 20 bars",
    "ema_20": "exponential mean of the close over 20 bars",
    "rsi_14": "relative strength of 14 bars, 0 to 100",
    "macd": "exponential mean of the close over 12 bars less that over 26",
    "macd_signal": "exponential mean of macd over 9 bars",
    "macd_hist": "macd less macd_signal",
    "bb_upper": "upper Bollinger band: bb_middle and two deviations of 20 closes",
    "bb_middle": "mean close of 20 bars",
    "bb_lower": "lower Bollinger band: bb_middle less two deviations of 20 closes",
    "atr_14": "average true range of 14 bars, quote units",
    "adx_14": "average directional index of 14 bars, 0 to 100",
    "plus_di_14": "positive directional indicator of 14 bars, 0 to 100",
    "minus_di_14": "negative directional indicator of 14 bars, 0 to 100",
    "stoch_k": "slow stochastic of 14 bars, 0 to 100",
    "stoch_d": "mean of three stoch_k",
    "obv": "on-balance volume since the begin of the series, base units",
    "vwap": "price weighted by volume since 00:00 UTC; null while nothing was traded",
    "cci_20": "commodity channel index of 20 bars",
    "mfi_14": "money flow index of 14 bars, 0 to 100",
    "willr_14": "Williams' %R of 14 bars, -100 to 0",
    "roc_10": "change of the close over 10 bars, percent",
    "natr_14": "atr_14 in percent of the close",
}
_STATE_MEANINGS: Final = {
    "ema_12": "state: exponential mean of the close over 12 bars, as macd is made of",
    "ema_26": "state: exponential mean of the close over 26 bars, as macd is made of",
    "avg_gain_14": "state: Wilder's mean of the gains that rsi_14 is made of",
    "avg_loss_14": "state: Wilder's mean of the losses that rsi_14 is made of",
    "tr_14": "state: Wilder's sum of true ranges that the directional indicators are made of",
    "plus_dm_14": "state: Wilder's sum of upward moves",
    "minus_dm_14": "state: Wilder's sum of downward moves",
    "dx_14": "state: directional index that adx_14 is the mean of",
}

# The columns of ANALYTICS 3, in its order.
VALUES: Final = tuple(_MEANINGS)
# What else the next row is made of.
STATES: Final = tuple(_STATE_MEANINGS)


def _columns() -> tuple[Column, ...]:
    return tuple(price(name, meaning, nullable=True) for name, meaning in (_MEANINGS | _STATE_MEANINGS).items())


INDICATOR = market(
    "indicator",
    "indicators of a series of bars without holes; `time` is the open of the bar",
    text("timeframe", "of the bar: 1s, 1m, 5m, 15m, 1h, 4h or 1d"),
    *_columns(),
    text("origin", "of the bar that the row was made of: trades, kline, flatfile or yahoo"),
    key=("venue", "symbol", "timeframe", "time"),
    order="time",
    within=("venue", "symbol", "timeframe"),
    layer="silver",
)
