"""Real messages, replayed through sockets: every one is in its table once, field by field as the file says."""

import gzip
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from crypto_lake.query import read
from crypto_lake.simulator import ReplayedMarket, Simulator

CAPTURES = {
    "binance-futures": ["usdm_btcusdt_20240718.gz", "usdm_btcusdt_20240719.gz"],
    "binance": ["spot_btcusdt_20240808.gz", "spot_btcusdt_20240809.gz"],
}
SYMBOLS = {"binance-futures": "BTCUSDT", "binance": "binance:BTCUSDT"}
DATES = {"binance-futures": ["2024-07-18", "2024-07-19"], "binance": ["2024-08-08", "2024-08-09"]}
KEYS = {"depth": ["is_snapshot", "final_update_id"], "trade": ["trade_id"], "book_ticker": ["update_id"]}


def messages(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        with gzip.open(path, "rt") as lines:
            for line in lines:
                yield json.loads(line.partition(" ")[2])


def levels(side: list[list[str]]) -> list[dict[str, float]]:
    return [{"price": float(price), "quantity": float(quantity)} for price, quantity in side]


def expected(venue: str, paths: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """The rows that the files say there must be, by dataset; read with json and nothing of ours."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in KEYS}
    for message in messages(paths):
        if "lastUpdateId" in message:
            rows["depth"].append(snapshot_row(message))
            continue
        data = message["data"]
        kind = message["stream"].split("@")[1]
        if kind == "depth":
            rows["depth"].append(depth_row(data))
        elif kind == "trade":
            if data.get("X") != "NA":
                rows["trade"].append(trade_row(data))
        else:
            rows["book_ticker"].append(ticker_row(data))
    return {name: [{"venue": venue, "symbol": "BTCUSDT", **row} for row in found] for name, found in rows.items()}


def depth_row(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "time": data.get("T", data["E"]), "event_time": data["E"], "first_update_id": data["U"],
        "final_update_id": data["u"], "previous_update_id": data.get("pu"), "is_snapshot": False,
        "bids": levels(data["b"]), "asks": levels(data["a"]), "source": "live",
    }  # fmt: skip


def snapshot_row(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "time": data.get("T"), "event_time": data.get("E"), "first_update_id": None,
        "final_update_id": data["lastUpdateId"], "previous_update_id": None, "is_snapshot": True,
        "bids": levels(data["bids"]), "asks": levels(data["asks"]), "source": "rest",
    }  # fmt: skip


def trade_row(data: dict[str, Any]) -> dict[str, Any]:
    price, quantity = float(data["p"]), float(data["q"])
    return {
        "time": data["T"], "event_time": data["E"], "trade_id": data["t"], "price": price, "quantity": quantity,
        "quote_quantity": price * quantity, "is_buyer_maker": data["m"], "source": "live",
    }  # fmt: skip


def ticker_row(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "time": data.get("T"), "event_time": data.get("E"), "update_id": data["u"], "bid_price": float(data["b"]),
        "bid_quantity": float(data["B"]), "ask_price": float(data["a"]), "ask_quantity": float(data["A"]),
        "source": "live",
    }  # fmt: skip


def best(book: dict[float, float], pick: Callable[..., float]) -> tuple[float, float]:
    price = pick(book)
    return price, book[price]


def top_of_book(depth: pl.DataFrame) -> dict[int, tuple[float, float, float, float]]:
    """Best bid and ask with their quantities by update id, from a snapshot and the changes behind it."""
    snapshot = depth.filter("is_snapshot").row(0, named=True)
    since = snapshot["final_update_id"]
    bids, asks = ({level["price"]: level["quantity"] for level in snapshot[side]} for side in ("bids", "asks"))
    tops = {}
    changes = depth.filter(~pl.col("is_snapshot"), pl.col("final_update_id") >= since).sort("final_update_id")
    for row in changes.iter_rows(named=True):
        for book, side in ((bids, row["bids"]), (asks, row["asks"])):
            for level in side:
                book[level["price"]] = level["quantity"]
                if not level["quantity"]:
                    del book[level["price"]]
        tops[row["final_update_id"]] = (*best(bids, max), *best(asks, min))
    return tops


@pytest.mark.slow
@pytest.mark.parametrize("venue", CAPTURES)
async def test_a_capture_replayed_is_in_the_tables_as_the_file_says(
    venue: str, data: Path, recorder: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    paths = [data / "captures" / name for name in CAPTURES[venue]]
    market = ReplayedMarket(*paths, speed=0, start_after_s=None)
    async with Simulator(market) as exchange:
        daemon = recorder(
            {**exchange.environment, "LAKE_DATASETS": ",".join(KEYS), "LAKE_SYMBOLS": SYMBOLS[venue],
             "LAKE_COMMIT_EVERY_S": "1"}
        )  # fmt: skip
        await daemon.start()
        await exchange.finished
        depth = daemon.journal("depth")
        await wait_for(lambda: b"lastUpdateId" in b"".join(each.read_bytes() for each in depth.glob("*.journal")))
        assert await daemon.stop() == 0
    for dataset, wanted in expected(venue, paths).items():
        assert_equal(dataset, venue, wanted, daemon.root)
    assert_book_follows_ticker(daemon.root)
    assert read("rejected", root=str(daemon.root)).collect().is_empty()
    assert read("gap", root=str(daemon.root)).collect().is_empty()


@pytest.mark.slow
@pytest.mark.parametrize("venue", CAPTURES)
async def test_one_line_of_depth_removed_is_one_gap_with_its_ids_and_a_new_book(
    venue: str, data: Path, tmp_path: Path, recorder: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    texts = [gzip.decompress((data / "captures" / name).read_bytes()).decode() for name in CAPTURES[venue]]
    lines = "".join(texts).splitlines(keepends=True)
    changes = [at for at, line in enumerate(lines) if '@depth"' in line or "@depth@" in line]
    # Not among the first: without a row in front of it nobody could miss it.
    at = random.Random().choice(changes[100:-10])
    event = json.loads(lines[at].partition(" ")[2])["data"]
    removed = (event.get("pu", event["U"] - 1) + 1, event["u"])
    shortened = tmp_path / "shortened.txt"
    shortened.write_text("".join(lines[:at] + lines[at + 1 :]))
    market = ReplayedMarket(shortened, speed=0, start_after_s=None, venue=venue)
    async with Simulator(market) as exchange:
        daemon = recorder({**exchange.environment, "LAKE_DATASETS": ",".join(KEYS), "LAKE_SYMBOLS": SYMBOLS[venue]})
        await daemon.start()
        await exchange.finished
        await wait_for(lambda: behind(daemon, removed[1]))
        assert await daemon.stop() == 0
    gaps = read("gap", root=str(daemon.root)).filter(pl.col("first_id").is_not_null()).collect()
    assert gaps.select("dataset", "first_id", "last_id", "reason", "state").rows() == [
        ("depth", *removed, "sequence", "unfillable")
    ], f"line {at}"


def behind(daemon: Any, update_id: int) -> bool:
    """Whether the table has a snapshot of the book from behind the hole."""
    if not DeltaTable.is_deltatable(str(daemon.root / "depth")):
        return False
    books = read("depth", root=str(daemon.root), is_snapshot=True).collect()
    return bool((books["final_update_id"] >= update_id).any())


def assert_equal(dataset: str, venue: str, wanted: list[dict[str, Any]], root: Path) -> None:
    found = read(dataset, root=str(root)).sort(KEYS[dataset]).collect()
    schema = {name: found.schema[name] for name in wanted[0]}
    as_written = schema | {name: pl.Int64 for name in ("time", "event_time") if name in schema}
    truth = pl.DataFrame(wanted, schema=as_written).sort(KEYS[dataset])
    truth = truth.with_columns((pl.col("time", "event_time") * 1000).cast(pl.Datetime("us", "UTC")))
    assert found.height == truth.height == found.unique(KEYS[dataset]).height
    # Where the venue gives no time, ours stands in (spot bookTicker and snapshots); everything else is the file's.
    ours = truth["time"].is_null()
    truth = truth.with_columns(pl.when(ours).then(found["received_time"]).otherwise("time").alias("time"))
    for column in schema:
        assert found[column].equals(truth[column], null_equal=True), f"{venue} {dataset}.{column}"
    days = found.filter(~ours)["date"].unique().sort().cast(pl.String).to_list()
    assert days == ([] if ours.all() else DATES[venue])
    assert (found["date"] == found["time"].dt.date()).all()


def assert_book_follows_ticker(root: Path) -> None:
    tops = top_of_book(read("depth", root=str(root)).collect())
    tickers = read("book_ticker", root=str(root)).collect()
    both = [
        (tops[row["update_id"]], (row["bid_price"], row["bid_quantity"], row["ask_price"], row["ask_quantity"]))
        for row in tickers.iter_rows(named=True)
        if row["update_id"] in tops
    ]
    equal = sum(book == ticker for book, ticker in both)
    assert len(both) > 50
    assert equal >= 0.99 * len(both), f"{equal} of {len(both)} best prices agree"
