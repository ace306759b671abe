"""A lake in an object store: the same drain, over a real S3 protocol server."""

import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from crypto_lake.config import ConfigError
from crypto_lake.journal import FRAME, Journal
from crypto_lake.models import DATASETS
from crypto_lake.models.symbol import Named
from crypto_lake.processors.shape import shape
from crypto_lake.query.snapshot import snapshot, touched
from crypto_lake.services import symbols
from crypto_lake.services.drain import Drain
from crypto_lake.services.look import Look
from crypto_lake.services.worker import check
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.derived import Derived
from tests.s3 import Flatfiles, reset, s3_address

AGG_TRADE = DATASETS["agg_trade"]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    reset()
    settings = {
        "AWS_ENDPOINT_URL": s3_address(),
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    Flatfiles(s3_address(), "lake").make()


def payload(number: int) -> bytes:
    data = {"e": "aggTrade", "E": 1_790_164_800_000, "s": "BTCUSDT", "a": number, "p": "1", "q": "1", "f": 1, "l": 1,
            "T": 1_790_164_800_000, "m": True}  # fmt: skip
    return json.dumps({"stream": "x", "data": data}).encode()


def test_a_lake_in_s3_holds_every_row_once(tmp_path: Path, store: None) -> None:
    lake = Lake("s3://lake/tables")
    check(lake, [AGG_TRADE])
    journal = Journal(tmp_path)
    for number in range(100):
        journal.append(FRAME, b"binance-futures x", payload(number), 1)
        journal.flush()
        if number % 30 == 0:
            Drain(AGG_TRADE, tmp_path, lake, collector="me").run_dry()  # as after a restart
    Drain(AGG_TRADE, tmp_path, Lake("s3://lake/tables"), collector="me").run_dry()
    journal.close()
    assert sorted(pl.read_delta("s3://lake/tables/agg_trade")["agg_trade_id"]) == list(range(100))


def test_a_bucket_that_is_not_there_is_one_sentence(store: None) -> None:
    with pytest.raises(ConfigError, match="LAKE_ROOT=s3://nowhere/tables"):
        check(Lake("s3://nowhere/tables"), [AGG_TRADE])


def test_symbols_in_s3_are_added_removed_and_followed(store: None) -> None:
    root, now = "s3://lake/tables", datetime(2026, 3, 1, tzinfo=UTC)
    look = Look(root, every_s=0)
    assert look.now() == {}
    symbols.add(root, symbols.names(["BTCUSDT", "us-stocks:AAPL"]), asset_type=None, now=now)
    symbols.remove(root, symbols.names(["us-stocks:AAPL"]), (), now=now)
    assert look.again() == {"binance-futures": Named(("BTCUSDT",)), "us-stocks": Named((), ("AAPL",))}
    assert Look("s3://nowhere/tables", every_s=0).now() is None


def test_derived_rows_and_states_in_s3(store: None) -> None:
    root, book = "s3://lake/tables", DATASETS["book_snapshot"]
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    level = [{"price": 1.0, "quantity": 2.0}]
    frame = pl.DataFrame({"time": [now], "venue": ["binance"], "symbol": ["BTCUSDT"], "source": ["derived"],
                          "update_id": [7], "bids": [level], "asks": [level]})  # fmt: skip
    derived = Derived(Lake(root), book)
    derived.put(shape(book, frame))
    derived.keep("books/binance/BTCUSDT", b"the whole book")
    derived.settle(all=True)
    seen = snapshot(root, book)
    assert seen is not None
    assert seen.scan(now.date(), now.date(), symbols=["BTCUSDT"]).collect()["update_id"].to_list() == [7]
    assert len(touched(seen, seen.version - 1) or []) == 1
    again = Derived(Lake(root), book)
    assert again.state("books/binance/BTCUSDT") == b"the whole book"
    again.put(shape(book, frame.with_columns(update_id=8)), gone=again.held(now.date(), now.date()))
    again.keep("books/binance/BTCUSDT", b"the next one")
    again.settle(all=True)
    assert again.held(now.date(), now.date())["update_id"].to_list() == [8]
    assert Derived(Lake(root), book).state("books/binance/BTCUSDT") == b"the next one"
