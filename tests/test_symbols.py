"""`crypto-lake symbols` and the table behind it: what is written, what is said, and what backfills make of it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from crypto_lake.backfill.ask import symbols_to_collect
from crypto_lake.cli import app, main
from crypto_lake.config import ConfigError
from crypto_lake.models.symbol import SYMBOL_TABLE, Named
from crypto_lake.query.symbols import active, named, states
from crypto_lake.services import symbols
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.maintenance import maintain

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    for name in ("LAKE_ROOT", "LAKE_SYMBOLS"):
        monkeypatch.delenv(name, raising=False)
    return str(tmp_path / "tables")


def say(*words: str) -> tuple[int, str]:
    """The exit status of `crypto-lake symbols`, and what it says."""
    done = CliRunner().invoke(app, ["symbols", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def rows(root: str) -> list[tuple[object, ...]]:
    held = pl.read_delta(f"{root}/symbol").sort("added_time", "symbol")
    return held.select("venue", "symbol", "asset_type", "is_active").rows()


def test_words_name_symbols_as_their_venues_write_them() -> None:
    words = [
        "btcusdt,ethusdt",
        "binance:btcusdt",
        "us-stocks:brk.b",
        "us-options:O:SPY251219C00650000",
        "crypto:X:BTC-USD",
    ]
    assert [str(name) for name in symbols.names([*words, "BTCUSDT"])] == [
        *("binance-futures:BTCUSDT", "binance-futures:ETHUSDT", "binance:BTCUSDT", "us-stocks:brk.b"),
        *("us-options:O:SPY251219C00650000", "crypto:X:BTC-USD"),
    ]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("kraken:BTCUSD", "there is no venue 'kraken'"),
        ("us-stock:AAPL", "did you mean 'us-stocks'"),
        ("all", "name symbols one by one"),
        ("binance:", "that is no symbol"),
        ("BTC USDT", "that is no symbol"),
        (",", "name at least one symbol"),
    ],
)
def test_words_that_name_nothing_are_said(word: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        symbols.names([word])


def test_the_newest_row_of_a_symbol_is_its_state_also_after_the_clock_was_set_back(root: str) -> None:
    names = symbols.names(["BTCUSDT", "us-stocks:SPY"])
    assert states(root).is_empty()
    assert symbols.add(root, names, asset_type=None, now=NOW) == names
    assert symbols.add(root, names, asset_type=None, now=NOW) == []
    assert symbols.add(root, names[1:], asset_type="etf", now=NOW) == names[1:]
    symbols.remove(root, names[:1], (), now=NOW - HOUR)
    assert rows(root) == [
        ("binance-futures", "BTCUSDT", "perpetual", True),
        ("us-stocks", "SPY", "stock", True),
        ("us-stocks", "SPY", "etf", True),
        ("binance-futures", "BTCUSDT", "perpetual", False),
    ]
    assert named(states(root)) == {"us-stocks": Named(("SPY",)), "binance-futures": Named((), ("BTCUSDT",))}
    assert (active(root, "us-stocks"), active(root, "binance-futures"), active(root, "forex")) == (["SPY"], [], [])
    symbols.add(root, names[:1], asset_type=None, now=NOW - HOUR)
    assert active(root, "binance-futures") == ["BTCUSDT"]


def test_symbols_are_added_listed_and_removed_by_the_command(root: str) -> None:
    assert say("add", "SOLUSDT", "us-stocks:AAPL") == (
        0,
        "binance-futures:SOLUSDT is added\nus-stocks:AAPL is added\n",
    )
    version = Lake(root).table(SYMBOL_TABLE).version()  # type: ignore[union-attr]
    assert say("add", "SOLUSDT") == (0, "binance-futures:SOLUSDT is there already\n")
    assert Lake(root).table(SYMBOL_TABLE).version() == version  # type: ignore[union-attr]
    assert say("remove", "ETHUSDT", "us-stocks:AAPL")[0] == 0
    found = json.loads(say("list", "--json")[1])
    assert {(each["symbol"], each["from"]) for each in found} == {("BTCUSDT", "LAKE_SYMBOLS"), ("SOLUSDT", "table")}
    of_all = json.loads(say("list", "--json", "--all")[1])
    assert {each["symbol"] for each in of_all if not each["is_active"]} == {"ETHUSDT", "AAPL"}
    assert "removed" in say("list", "--all")[1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("remove", "XRPUSDT"), "binance-futures:XRPUSDT is not there"),
        (("add", "kraken:X"), "no venue 'kraken'"),
        (("add", "X", "--asset-type", "stonk"), "--asset-type stonk: there is no such type; did you mean 'stock'?"),
        (("list", "--root", "/proc/nowhere/x"), None),
        (("add", "X", "--root", "/proc/nowhere/x"), "LAKE_ROOT=/proc/nowhere/x"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_1(
    root: str, words: tuple[str, ...], sentence: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["symbols", *words])
    assert ended.value.code == (0 if sentence is None else 1)
    said = capsys.readouterr().err
    assert sentence is None or (sentence in said and said.startswith("crypto-lake: "))


def test_of_several_that_are_to_go_one_that_is_not_there_keeps_all(root: str) -> None:
    symbols.add(root, symbols.names(["SOLUSDT"]), asset_type=None, now=NOW)
    for word in ("XRPUSDT", "binance:SOLUSDT"):
        with pytest.raises(ConfigError, match="is not there"):
            symbols.remove(root, symbols.names(["SOLUSDT", word]), ("BTCUSDT",), now=NOW)
    assert active(root, "binance-futures") == ["SOLUSDT"]
    symbols.remove(root, symbols.names(["XRPUSDT"]), ("all",), now=NOW)  # one of all
    with pytest.raises(ConfigError, match="is not there"):
        symbols.remove(root, symbols.names(["XRPUSDT"]), ("all",), now=NOW)


def test_a_backfill_takes_the_active_symbols_of_its_market(root: str) -> None:
    with pytest.raises(ConfigError, match="--symbols: name symbols, or all; the table symbol of"):
        symbols_to_collect(root, "um")
    symbols.add(root, symbols.names(["SOLUSDT", "BTCUSDT", "binance:ETHUSDT"]), asset_type=None, now=NOW)
    symbols.remove(root, symbols.names(["SOLUSDT"]), (), now=NOW)
    assert (symbols_to_collect(root, "um"), symbols_to_collect(root, "spot")) == ("BTCUSDT", "ETHUSDT")
    with pytest.raises(ConfigError, match="there is no market 'usd'"):
        symbols_to_collect(root, "usd")


def test_maintenance_keeps_every_state(root: str) -> None:
    for hour, word in enumerate(("BTCUSDT", "ETHUSDT", "SOLUSDT")):
        symbols.add(root, symbols.names([word]), asset_type=None, now=NOW + hour * HOUR)
    symbols.remove(root, symbols.names(["ETHUSDT"]), (), now=NOW + 3 * HOUR)
    before = states(root)
    done = list(maintain(root, [SYMBOL_TABLE], NOW + 48 * HOUR, retention_h=168))
    assert not any(each.error for each in done)
    assert states(root).equals(before)
