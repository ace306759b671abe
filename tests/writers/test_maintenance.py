"""Maintenance moves rows to better files: it neither loses nor doubles one, whoever works beside it."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake import CommitProperties, DeltaTable

from crypto_lake.config import ConfigError
from crypto_lake.models import DATASETS, Dataset
from crypto_lake.processors.shape import shape
from crypto_lake.writers import CommitFailed, maintenance
from crypto_lake.writers import rewrite as rewriting
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.maintenance import Done, compact, maintain, shorten_log, sort_day, unsorted_days, vacuum
from crypto_lake.writers.rewrite import files_of, note, rewrite

DAY = date(2024, 1, 15)
MIDNIGHT = datetime(2024, 1, 15, tzinfo=UTC)
CLOSED = MIDNIGHT + timedelta(hours=26)
AGG_TRADE, DEPTH, REJECTED = DATASETS["agg_trade"], DATASETS["depth"], DATASETS["rejected"]
# The first three begin with the same letters, where a z-order is at its worst.
SYMBOLS = ("1000PEPEUSDT", "1000SHIBUSDT", "1000BONKUSDT", "BTCUSDC", "BTCUSDT", "币安人生USDT")


def agg_trades(start: int, count: int, *, at: datetime = MIDNIGHT) -> pl.DataFrame:
    ids = range(start, start + count)
    return shape(
        AGG_TRADE,
        pl.DataFrame(
            {
                "venue": "binance-futures",
                "symbol": [SYMBOLS[n % len(SYMBOLS)] for n in ids],
                "time": [at + timedelta(microseconds=n * 250_001 % 86_400_000_000) for n in ids],
                "received_time": [at + timedelta(microseconds=n) for n in ids],
                "source": "live",
                "agg_trade_id": list(ids),
                "price": [0.1 + n / 7 for n in ids],
                "quantity": [float("nan") if n % 97 == 0 else n / 3 for n in ids],
                "is_buyer_maker": [n % 2 == 0 for n in ids],
            }
        ),
    )


def depths(start: int, count: int) -> pl.DataFrame:
    ids = range(start, start + count)
    rows: dict[str, Any] = {
        "venue": "binance",
        "symbol": [SYMBOLS[n % 2] for n in ids],
        "time": [MIDNIGHT + timedelta(milliseconds=n) for n in ids],
        "source": ["rest" if n % 5 == 0 else "live" for n in ids],
        "first_update_id": [None if n % 5 == 0 else n for n in ids],
        "final_update_id": list(ids),
        "bids": [[{"price": n + level / 10, "quantity": level / 3} for level in range(n % 4)] for n in ids],
        "asks": [[] if n % 3 else [{"price": 1e-8, "quantity": float(n)}] for n in ids],
    }
    return shape(DEPTH, pl.DataFrame(rows))


def rejections(start: int, count: int) -> pl.DataFrame:
    ids = range(start, start + count)
    rows: dict[str, Any] = {
        "venue": "binance",
        "dataset": ["depth" if n % 2 else "agg_trade" for n in ids],
        "reason": "no JSON",
        "payload": ["x" * (n % 200) for n in ids],
        "received_time": [MIDNIGHT + timedelta(seconds=n) for n in ids],
        "date": DAY,
    }
    return pl.DataFrame(rows).select(pl.col(name).cast(dtype) for name, dtype in REJECTED.schema.items())


MAKE: dict[str, Callable[[int, int], pl.DataFrame]] = {
    "agg_trade": agg_trades,
    "depth": depths,
    "rejected": rejections,
}


def append(root: str, dataset: Dataset, *frames: pl.DataFrame, app: str = "test") -> None:
    lake = Lake(root)
    lake.check(dataset)
    for number, frame in enumerate(frames):
        lake.append(dataset, frame, app, start=number, end=number + 1)


def rows(root: str, dataset: Dataset) -> pl.DataFrame:
    """All rows in an order of their own, so that two of these are equal when the tables hold the same rows."""
    return in_order(pl.read_delta(f"{root}/{dataset.name}").select(*dataset.schema))


def in_order(held: pl.DataFrame) -> pl.DataFrame:
    return held.sort([name for name, dtype in held.schema.items() if not isinstance(dtype, pl.List)])


def paths(root: str, dataset: Dataset) -> list[str]:
    return files_of(DeltaTable(f"{root}/{dataset.name}"))["path"].to_list()


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("step", [compact, sort_day])
def test_the_rows_stay_the_same_to_the_last_bit(root: str, name: str, step: Callable[..., Done]) -> None:
    dataset = DATASETS[name]
    append(root, dataset, *(MAKE[name](n * 500, 500) for n in range(6)))
    before = rows(root, dataset)
    done = step(root, dataset, DAY)
    assert (done.files_before, done.files_after, done.changed) == (6, 1, True)
    assert done.bytes_after < done.bytes_before
    assert rows(root, dataset).equals(before)
    assert len(paths(root, dataset)) == 1


def test_a_sorted_day_has_each_symbol_in_one_stretch_and_in_the_order_of_time(root: str) -> None:
    append(root, AGG_TRADE, *(agg_trades(n * 5_000, 5_000) for n in range(10)))
    sort_day(root, AGG_TRADE, DAY)
    (path,) = paths(root, AGG_TRADE)
    held = pl.read_parquet(f"{root}/agg_trade/{path}", hive_partitioning=False).select("symbol", "time")
    assert held.equals(held.sort("symbol", "time"))
    groups = pq.read_metadata(f"{root}/agg_trade/{path}")
    assert groups.num_rows == 50_000


def test_row_groups_are_small_enough_that_a_symbol_is_a_short_read(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "GROUP_ROWS", (100, 2_000))
    append(root, AGG_TRADE, agg_trades(0, 24_000))
    sort_day(root, AGG_TRADE, DAY)
    file = pq.ParquetFile(f"{root}/agg_trade/{paths(root, AGG_TRADE)[0]}")
    spans = [file.metadata.row_group(n).column(1).statistics for n in range(file.num_row_groups)]
    assert len(spans) == 12
    assert sum(span.min <= "BTCUSDC" <= span.max for span in spans) <= 3


def test_a_day_that_does_not_fit_in_memory_is_sorted_in_pieces(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    append(root, DEPTH, *(depths(n * 700_000, 3_000) for n in range(8)))
    before = rows(root, DEPTH)
    monkeypatch.setattr(rewriting, "PIECE_BYTES", before.estimated_size() // 6)
    done = sort_day(root, DEPTH, DAY)
    assert done.files_after >= 5
    assert rows(root, DEPTH).equals(before)
    pieces = [pl.read_parquet(f"{root}/depth/{path}") for path in sorted(paths(root, DEPTH))]
    held = pl.concat(pieces).select("symbol", "time", "final_update_id")
    assert held.equals(held.sort("symbol", "time", "final_update_id"))


def test_what_the_log_says_of_the_new_files_hides_no_row(root: str) -> None:
    append(root, AGG_TRADE, agg_trades(0, 300))
    sort_day(root, AGG_TRADE, DAY)
    held = rows(root, AGG_TRADE)
    for each in [*held[::40].to_dicts(), *held.sort("time")[[0, -1]].to_dicts()]:
        same = [pl.col(name).eq_missing(pl.lit(value, held.schema[name])) for name, value in each.items()]
        for condition in same:
            found = pl.scan_delta(f"{root}/agg_trade").filter(condition, pl.col("agg_trade_id") == each["agg_trade_id"])
            assert found.select(pl.len()).collect().item() == 1
    # For Polars NaN is above every number.
    above = pl.scan_delta(f"{root}/agg_trade").filter(pl.col("quantity") > 1e9).collect()
    assert above.height == held["quantity"].is_nan().sum() > 0


def test_numbers_that_json_does_not_know_are_left_out_of_the_log(root: str) -> None:
    frame = agg_trades(0, 50).with_columns(price=pl.lit(float("inf")))
    append(root, AGG_TRADE, frame)
    sort_day(root, AGG_TRADE, DAY)
    assert rows(root, AGG_TRADE).equals(in_order(frame))
    said = pl.DataFrame(DeltaTable(f"{root}/agg_trade").get_add_actions(flatten=True))
    assert said["num_records"].to_list() == [50]
    assert said.select("max.price", "max.quantity").row(0) == (None, None)


def test_other_days_are_not_touched(root: str) -> None:
    append(root, AGG_TRADE, *(agg_trades(n, 100, at=MIDNIGHT + timedelta(days=n % 2)) for n in range(6)))
    other = [path for path in paths(root, AGG_TRADE) if "date=2024-01-16" in path]
    sort_day(root, AGG_TRADE, DAY)
    assert set(other) <= set(paths(root, AGG_TRADE))
    assert len(paths(root, AGG_TRADE)) == 4


def test_positions_of_writers_survive_and_the_drain_does_not_take_it_for_new_rows(root: str) -> None:
    lake = Lake(root)
    append(root, AGG_TRADE, agg_trades(0, 100), agg_trades(100, 100))
    lake.append(AGG_TRADE, agg_trades(200, 100), "mine", start=0, end=77)
    compact(root, AGG_TRADE, DAY)
    sort_day(root, AGG_TRADE, DAY)
    assert (lake.position(AGG_TRADE, "mine"), lake.position(AGG_TRADE, "test")) == (77, 2)
    assert not lake.was_changed_by_others(AGG_TRADE)
    Lake(root).append(AGG_TRADE, agg_trades(300, 1), "other", start=0, end=1)
    assert lake.was_changed_by_others(AGG_TRADE)


def test_of_two_runs_over_the_same_files_the_second_gives_up(root: str) -> None:
    append(root, AGG_TRADE, agg_trades(0, 100), agg_trades(100, 100))
    before, files = rows(root, AGG_TRADE), files_of(DeltaTable(f"{root}/agg_trade"))
    rewrite(Lake(root), AGG_TRADE, DAY, files, prefix="merged", level=1, by=["symbol", "time"])
    with pytest.raises(CommitFailed, match="somebody else"):
        rewrite(Lake(root), AGG_TRADE, DAY, files, prefix="sorted", level=1, by=["symbol", "time"])
    assert rows(root, AGG_TRADE).equals(before)


@pytest.mark.parametrize("name", ["agg_trade", "depth"])
def test_nothing_is_lost_or_doubled_while_writers_append_and_two_runs_overlap(root: str, name: str) -> None:
    dataset, writers, commits = DATASETS[name], 2, 25
    Lake(root).check(dataset)
    errors: list[BaseException] = []
    gave_up: list[CommitFailed] = []
    busy = threading.Event()

    def write(number: int) -> None:
        for n in range(commits):
            frame = MAKE[name]((number * commits + n) * 200, 200)
            Lake(root).append(dataset, frame, f"writer-{number}", start=n, end=n + 1)

    def rearrange(step: Callable[..., Done]) -> None:
        while not busy.is_set():
            try:
                step(root, dataset, DAY)
            except CommitFailed as error:
                gave_up.append(error)

    def guarded(work: Callable[..., None], *arguments: Any) -> threading.Thread:
        def run() -> None:
            try:
                work(*arguments)
            except BaseException as error:  # noqa: BLE001 whatever it is, the test tells it
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    runs = [guarded(rearrange, step) for step in (compact, sort_day, compact, sort_day)]
    for thread in [guarded(write, number) for number in range(writers)]:
        thread.join()
    busy.set()
    for thread in runs:
        thread.join()
    assert not errors
    expected = pl.concat([MAKE[name](n * 200, 200) for n in range(writers * commits)])
    assert rows(root, dataset).equals(in_order(expected))
    assert [Lake(root).position(dataset, f"writer-{n}") for n in range(writers)] == [commits] * writers


def test_large_files_wait_until_the_day_is_over(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    append(root, AGG_TRADE, agg_trades(0, 20_000), agg_trades(20_000, 10), agg_trades(30_000, 10))
    monkeypatch.setattr(maintenance, "SMALL_BYTES", 100_000)
    large = max(files_of(DeltaTable(f"{root}/agg_trade")).to_dicts(), key=lambda file: file["size_bytes"])
    compact(root, AGG_TRADE, DAY)
    assert large["path"] in paths(root, AGG_TRADE)
    assert len(paths(root, AGG_TRADE)) == 2


def test_one_small_file_is_left_alone(root: str) -> None:
    append(root, AGG_TRADE, agg_trades(0, 10))
    version = DeltaTable(f"{root}/agg_trade").version()
    assert not compact(root, AGG_TRADE, DAY).changed
    assert DeltaTable(f"{root}/agg_trade").version() == version


def test_a_day_is_closed_an_hour_after_its_end(root: str) -> None:
    append(root, AGG_TRADE, agg_trades(0, 10))
    assert unsorted_days(root, AGG_TRADE, MIDNIGHT + timedelta(hours=24, minutes=59)) == []
    assert unsorted_days(root, AGG_TRADE, MIDNIGHT + timedelta(hours=25)) == [DAY]


def test_a_sorted_day_is_sorted_again_when_enough_came_late(root: str) -> None:
    append(root, AGG_TRADE, agg_trades(0, 20_000))
    sort_day(root, AGG_TRADE, DAY)
    assert unsorted_days(root, AGG_TRADE, CLOSED) == []
    append(root, AGG_TRADE, agg_trades(20_000, 1))
    assert unsorted_days(root, AGG_TRADE, CLOSED) == []
    append(root, AGG_TRADE, agg_trades(20_001, 1))
    assert unsorted_days(root, AGG_TRADE, CLOSED) == [DAY]
    sort_day(root, AGG_TRADE, DAY)
    append(root, AGG_TRADE, agg_trades(30_000, 9_000))
    assert unsorted_days(root, AGG_TRADE, CLOSED) == [DAY]


def test_a_round_merges_the_open_day_sorts_the_closed_one_and_then_has_nothing_to_do(root: str) -> None:
    append(root, AGG_TRADE, *(agg_trades(n * 50, 50, at=MIDNIGHT + timedelta(days=n % 2)) for n in range(8)))
    before = rows(root, AGG_TRADE)
    first = maintain(root, [AGG_TRADE, DEPTH], CLOSED, retention_h=168)
    assert [(done.step, done.day, done.files_before, done.files_after) for done in first if done.changed] == [
        ("compact", DAY + timedelta(days=1), 4, 1),
        ("sort", DAY, 4, 1),
    ]
    version = DeltaTable(f"{root}/agg_trade").version()
    assert not any(done.changed for done in maintain(root, [AGG_TRADE], CLOSED, retention_h=168))
    assert DeltaTable(f"{root}/agg_trade").version() == version
    assert rows(root, AGG_TRADE).equals(before)


def test_what_cannot_be_done_is_told_and_stops_nothing_else(root: str) -> None:
    append(root, AGG_TRADE, agg_trades(0, 50))
    append(root, REJECTED, rejections(0, 50))
    broken = Path(root, "agg_trade", paths(root, AGG_TRADE)[0])
    broken.write_bytes(b"no Parquet at all")
    done = {(each.dataset, each.step): each for each in maintain(root, [AGG_TRADE, REJECTED], CLOSED, retention_h=168)}
    assert done["agg_trade", "sort"].error
    assert "\n" not in done["agg_trade", "sort"].error
    assert done["rejected", "sort"].changed


def test_a_vacuum_takes_dead_files_after_the_retention_only(root: str) -> None:
    append(root, AGG_TRADE, agg_trades(0, 50), agg_trades(50, 50))
    compact(root, AGG_TRADE, DAY)
    now = datetime.now(UTC)
    assert vacuum(root, AGG_TRADE, retention_h=168, now=now).files_before == 0
    assert vacuum(root, AGG_TRADE, retention_h=0, dry_run=True, now=now).files_before == 2
    assert len(list(Path(root).glob("agg_trade/date=*/*.parquet"))) == 3
    assert vacuum(root, AGG_TRADE, retention_h=0, now=now).files_before == 2
    assert len(list(Path(root).glob("agg_trade/date=*/*.parquet"))) == 1
    assert vacuum(root, AGG_TRADE, retention_h=0, now=now).files_before == 0
    assert rows(root, AGG_TRADE).height == 100


def test_a_full_vacuum_takes_orphans_but_no_young_ones(root: str) -> None:
    append(root, AGG_TRADE, agg_trades(0, 50))
    day = next(Path(root).glob("agg_trade/date=*"))
    old, young = day / "old.parquet", day / "young.parquet"
    for file, age_h in ((old, 30), (young, 20)):
        file.touch()
        then = time.time() - age_h * 3600
        os.utime(file, (then, then))
    now = datetime.now(UTC)
    assert vacuum(root, AGG_TRADE, retention_h=0, now=now).files_before == 0
    assert vacuum(root, AGG_TRADE, retention_h=0, full=True, now=now).files_before == 1
    assert (old.exists(), young.exists()) == (False, True)
    assert rows(root, AGG_TRADE).height == 50


def test_a_negative_retention_is_refused(root: str) -> None:
    append(root, AGG_TRADE, agg_trades(0, 5))
    with pytest.raises(ConfigError, match="LAKE_RETENTION_H=-1"):
        vacuum(root, AGG_TRADE, retention_h=-1, now=CLOSED)


def test_a_full_vacuum_runs_once_a_day(root: str) -> None:
    append(root, AGG_TRADE, agg_trades(0, 5))
    assert count_vacuums(maintain(root, [AGG_TRADE], CLOSED, retention_h=168)) == 2
    assert count_vacuums(maintain(root, [AGG_TRADE], CLOSED + timedelta(hours=23), retention_h=168)) == 1
    assert count_vacuums(maintain(root, [AGG_TRADE], CLOSED + timedelta(hours=24), retention_h=168)) == 2


def count_vacuums(done: list[Done]) -> int:
    return sum(each.step == "vacuum" for each in done)


def test_a_log_that_nobody_shortens_gets_a_checkpoint(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "UNCHECKED_COMMITS", 20)
    append(root, AGG_TRADE, agg_trades(0, 5))
    for _ in range(maintenance.UNCHECKED_COMMITS):
        note(DeltaTable(f"{root}/agg_trade"), CommitProperties())
    log = Path(root, "agg_trade", "_delta_log")
    assert not list(log.glob("*.checkpoint.parquet"))
    shorten_log(root, AGG_TRADE)
    assert len(list(log.glob("*.checkpoint.parquet"))) == 1
    shorten_log(root, AGG_TRADE)
    assert len(list(log.glob("*.checkpoint.parquet"))) == 1
    assert Lake(root).position(AGG_TRADE, "test") == 1


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on loopback. In a process of its own: what Python calls of deltalake's store holds the GIL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        make_bucket(f"{address}/lake", server)
        yield "s3://lake/tables"
    finally:
        server.terminate()
        server.wait(timeout=10)


def make_bucket(address: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="PUT"), timeout=10).close()
        except urllib.error.URLError:
            assert time.monotonic() < until, "the bucket did not come up"
            assert server.poll() is None, "the server of the bucket ended"
            time.sleep(0.05)
        else:
            return


@pytest.mark.slow
def test_a_lake_in_an_object_store_is_maintained_and_read_the_same_way(bucket: str) -> None:
    append(bucket, DEPTH, *(depths(n * 100, 100) for n in range(3)))
    before = rows(bucket, DEPTH)
    done = maintain(bucket, [DEPTH], CLOSED, retention_h=0)
    assert [each.error for each in done] == [None] * len(done)
    assert (done[0].step, done[0].files_before, done[0].files_after) == ("sort", 3, 1)
    assert [each.files_before for each in done if each.step == "vacuum"] == [3, 0]
    assert rows(bucket, DEPTH).equals(before)
