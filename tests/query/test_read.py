"""What is read is what was written, in whichever form, and nothing else is opened for it."""

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import write_deltalake

from crypto_lake.config import ConfigError
from crypto_lake.models import DATASETS, Dataset
from crypto_lake.processors.shape import shape
from crypto_lake.query import read
from crypto_lake.writers import Sink
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.files import Files

FIRST_DAY = date(2024, 1, 14)
SYMBOLS = ("BTCUSDT", "ETHUSDT", "币安人生USDT")
FORMS = ("delta", "parquet", "jsonl")


def agg_trades(day: date, *, count: int = 48) -> pl.DataFrame:
    """Trades of a day, one every half hour, the first at midnight sharp."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    first = day.toordinal() * 1000
    return shape(
        DATASETS["agg_trade"],
        pl.DataFrame(
            {
                "venue": "binance-futures",
                "symbol": [SYMBOLS[n % 3] for n in range(count)],
                "time": [midnight + n * timedelta(minutes=30) for n in range(count)],
                "received_time": [midnight + timedelta(microseconds=n) for n in range(count)],
                "source": ["live" if n % 2 else "rest" for n in range(count)],
                "agg_trade_id": [first + n for n in range(count)],
                "price": [0.1 + n for n in range(count)],
                "quantity": [float(n) for n in range(count)],
                "first_trade_id": list(range(count)),
                "last_trade_id": list(range(count)),
                "is_buyer_maker": [n % 2 == 0 for n in range(count)],
            }
        ),
    )


def depths(day: date) -> pl.DataFrame:
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    rows: dict[str, Any] = {
        "venue": "binance",
        "symbol": "BTCUSDT",
        "time": [midnight, midnight + timedelta(milliseconds=1)],
        "received_time": [midnight, midnight],
        "source": ["live", "rest"],
        "first_update_id": [5, None],
        "final_update_id": [2**62, 6],
        "bids": [[{"price": 1.5, "quantity": 0.0}, {"price": 0.00000001, "quantity": 3.0}], []],
        "asks": [[], [{"price": 2.0, "quantity": 1.0}]],
    }
    return shape(DATASETS["depth"], pl.DataFrame(rows))


def gaps() -> pl.DataFrame:
    when = datetime(2024, 1, 14, 23, 59, 59, tzinfo=UTC)
    rows: dict[str, Any] = {
        "venue": "binance",
        "symbol": "BTCUSDT",
        "dataset": ["depth", "agg_trade"],
        "start_time": [when, when + timedelta(days=1)],
        "reason": "restart",
        "state": "open",
        "filled_rows": 0,
        "state_time": when,
        "date": [when.date(), when.date() + timedelta(days=1)],
    }
    gap = DATASETS["gap"]
    frame = pl.DataFrame(rows)
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in gap.schema.items() if name not in frame.columns]
    return frame.with_columns(missing).select(pl.col(name).cast(dtype) for name, dtype in gap.schema.items())


def sink(form: str, root: Path) -> Sink:
    return Lake(str(root)) if form == "delta" else Files(str(root), "parquet" if form == "parquet" else "jsonl")


def write(root: Path, form: str, dataset: Dataset, *batches: pl.DataFrame) -> str:
    into = sink(form, root)
    into.check(dataset)
    for number, rows in enumerate(batches):
        into.append(dataset, rows, f"test/{dataset.name}", start=number, end=number + 1)
    return str(root)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def root(tmp_path: Path, form: str) -> str:
    days = [agg_trades(FIRST_DAY + timedelta(days=n)) for n in range(4)]
    return write(tmp_path / form, form, DATASETS["agg_trade"], *days)


@pytest.mark.parametrize("name", ["agg_trade", "depth", "gap"])
def test_what_was_written_comes_back_with_the_same_types(tmp_path: Path, form: str, name: str) -> None:
    rows = {"agg_trade": agg_trades(FIRST_DAY), "depth": depths(FIRST_DAY), "gap": gaps()}[name]
    root = write(tmp_path, form, DATASETS[name], rows)
    found = read(name, root=root).collect()
    assert dict(found.schema) == DATASETS[name].schema
    clock = DATASETS[name].partition
    assert found.sort(clock).equals(rows.sort(clock))


@pytest.mark.parametrize(
    ("start", "end", "count"),
    [
        ("2024-01-15", "2024-01-15", 48),
        ("2024-01-15", "2024-01-16", 96),
        (date(2024, 1, 15), date(2024, 1, 15), 48),
        ("2024-01", None, 192),
        (None, "2023-12", 0),
        ("2024-01-15T00:00", "2024-01-15T01:00", 3),
        (datetime(2024, 1, 15), datetime(2024, 1, 15), 1),  # noqa: DTZ001 naive is UTC
        ("2024-01-14T23:30Z", "2024-01-15T00:00Z", 2),
        ("2024-01-16T22:00", "2024-01-17", 52),
    ],
)
def test_both_ends_are_inside(root: str, start: Any, end: Any, count: int) -> None:
    assert read("agg_trade", start=start, end=end, root=root).collect().height == count


def test_symbols_venue_and_further_columns_narrow_down(root: str) -> None:
    assert read("agg_trade", symbols="币安人生USDT", root=root).collect()["symbol"].unique().to_list() == [SYMBOLS[2]]
    assert read("agg_trade", symbols=["BTCUSDT", "ETHUSDT"], root=root).collect().height == 128
    assert read("agg_trade", venue="binance", root=root).collect().is_empty()
    assert read("agg_trade", source="rest", is_buyer_maker=True, root=root).collect().height == 96


def test_columns_come_in_the_order_asked_for(root: str) -> None:
    assert read("agg_trade", columns=["price", "time"], symbols="BTCUSDT", root=root).collect().columns == [
        "price",
        "time",
    ]


def test_a_dataset_without_a_time_is_read_by_the_column_that_gives_its_day(tmp_path: Path, form: str) -> None:
    root = write(tmp_path, form, DATASETS["gap"], gaps())
    assert read("gap", start="2024-01-15", root=root, dataset="agg_trade").collect().height == 1
    assert read("gap", end="2024-01-14", root=root).collect()["dataset"].to_list() == ["depth"]


def files_scanned(plan: str) -> int:
    """How many files a plan opens: Polars names the first and counts the others."""
    scans = re.findall(r"SCAN \[(.*?)(?:, \.\.\. (\d+) other sources?)?\]", plan)
    return sum(len(names.split(", ")) + int(others or 0) for names, others in scans if names)


def test_a_day_opens_the_files_of_that_day_only(root: str) -> None:
    assert files_scanned(read("agg_trade", root=root).explain()) == 4
    assert files_scanned(read("agg_trade", start="2024-01-15", end="2024-01-15", root=root).explain()) == 1
    assert files_scanned(read("agg_trade", start="2024-01-15T23:00", end="2024-01-16", root=root).explain()) == 2


def test_a_day_is_found_by_its_partition_when_the_log_has_no_statistics(tmp_path: Path) -> None:
    place, no_statistics = str(tmp_path / "agg_trade"), {"delta.dataSkippingNumIndexedCols": "0"}
    for day in (FIRST_DAY, FIRST_DAY + timedelta(days=1)):
        write_deltalake(place, agg_trades(day), mode="append", partition_by="date", configuration=no_statistics)
    one = read("agg_trade", start=FIRST_DAY, end=FIRST_DAY, root=str(tmp_path))
    assert one.collect().height == 48
    assert files_scanned(one.explain()) == 1


def test_an_instant_is_exact_to_the_microsecond(tmp_path: Path, form: str) -> None:
    noon = datetime(2024, 1, 14, 12, tzinfo=UTC)
    near = [noon + timedelta(microseconds=n) for n in range(-2, 3)]
    frame = agg_trades(FIRST_DAY, count=5).with_columns(pl.Series("time", near))
    root = write(tmp_path, form, DATASETS["agg_trade"], frame)
    found = read("agg_trade", start=noon - timedelta(microseconds=1), end=noon, root=root).collect()
    assert found["time"].sort().to_list() == near[1:3]


def test_a_symbol_and_an_hour_skip_files_of_a_day_by_their_statistics(tmp_path: Path) -> None:
    hours = [agg_trades(FIRST_DAY)[n * 8 : n * 8 + 8] for n in range(6)]
    root = write(tmp_path, "delta", DATASETS["agg_trade"], *hours)
    one = read("agg_trade", start="2024-01-14T09:00", end="2024-01-14T10:00", root=root)
    assert one.collect().height == 3
    assert files_scanned(one.explain()) == 1


def test_files_that_are_being_written_are_not_read(tmp_path: Path) -> None:
    root = write(tmp_path, "parquet", DATASETS["agg_trade"], agg_trades(FIRST_DAY))
    day = next((tmp_path / "agg_trade").glob("date=*"))
    whole = next(day.glob("*.parquet"))
    for name in (".hidden.parquet", "open.parquet.tmp", "open.jsonl.tmp"):
        (day / name).write_bytes(whole.read_bytes()[:100])
    assert read("agg_trade", root=root).collect().height == 48


def test_instants_in_jsonl_may_have_a_fraction_or_not(tmp_path: Path) -> None:
    root = write(tmp_path, "jsonl", DATASETS["agg_trade"], agg_trades(FIRST_DAY))
    file = next((tmp_path / "agg_trade").glob("date=*/*.jsonl"))
    before = read("agg_trade", root=root).collect()
    lines = file.read_text().splitlines()
    lines[0] = lines[0].replace(".000000Z", "Z")
    lines[1] = lines[1].replace(".000000Z", "+00:00")
    assert lines != file.read_text().splitlines()
    file.write_text("\n".join(lines) + "\n")
    assert read("agg_trade", root=root).collect().equals(before)


def test_the_root_is_the_one_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "delta", DATASETS["agg_trade"], agg_trades(FIRST_DAY))
    monkeypatch.setenv("LAKE_ROOT", str(tmp_path))
    assert read("agg_trade").collect().height == 48


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("agg_trades", {}, "there is no dataset 'agg_trades'; did you mean 'agg_trade'?"),
        ("zzz", {}, "there is no dataset 'zzz'; there are agg_trade, "),
        ("agg_trade", {"columns": ["prise"]}, "agg_trade has no column 'prise'; did you mean 'price'?"),
        ("agg_trade", {"syde": "BUY"}, "agg_trade has no column 'syde'"),
        ("rejected", {"symbols": "BTCUSDT"}, "rejected has no column 'symbol'"),
        ("agg_trade", {"start": "2024-13"}, "start='2024-13' is no time"),
        ("depth", {}, "no table depth under "),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    tmp_path: Path, name: str, arguments: dict[str, Any], sentence: str
) -> None:
    root = write(tmp_path, "delta", DATASETS["agg_trade"], agg_trades(FIRST_DAY))
    with pytest.raises(ConfigError) as caught:
        read(name, root=root, **arguments)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
