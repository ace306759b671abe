"""The command line, as a user types it: processes, exit statuses, files."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pytest

from crypto_lake.journal import FRAME, Journal
from crypto_lake.models import DATASETS
from crypto_lake.services.drain import Drain
from crypto_lake.services.worker import check
from crypto_lake.simulator import GeneratedMarket, Simulator
from crypto_lake.writers.delta import Lake

HOME = Path(__file__).parents[1]
AGG_TRADE = DATASETS["agg_trade"]


async def call(
    home: Path, *words: str, program: tuple[str, ...] = ("-m", "crypto_lake"), **environment: str
) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command in an empty folder."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LAKE_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *program, *words),
        cwd=home,
        env={**clean, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert b"Traceback" not in err
    return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """A lake with ten trades; the fifth is missing."""
    journal = Journal(tmp_path / "journal")
    for number in (1, 2, 3, 4, 6, 7, 8, 9, 10, 11):
        data = {"e": "aggTrade", "E": 1_790_164_800_000, "s": "BTCUSDT", "a": number, "p": "1.5", "q": "2",
                "f": number, "l": number, "T": 1_790_164_800_000 + number, "m": True}  # fmt: skip
        payload = json.dumps({"stream": "x", "data": data}).encode()
        journal.append(FRAME, b"binance-futures x", payload, 1)
    journal.close()
    sink = Lake(str(tmp_path / "tables"))
    check(sink, [AGG_TRADE])
    Drain(AGG_TRADE, tmp_path / "journal", sink, collector="me").run_dry()
    return tmp_path


@pytest.mark.parametrize(
    "verb",
    [
        *("", "run", "price-once", "demo", "simulate", "tables", "validate", "coverage", "read", "optimize", "vacuum"),
        *("schema", "status", "config"),
    ],
)
async def test_every_verb_has_help(verb: str, tmp_path: Path) -> None:
    status, out, _ = await call(tmp_path, *([verb] if verb else []), "--help")
    assert status == 0
    assert "Usage" in out


@pytest.mark.parametrize("words", [("fly",), ("run", "--fast"), ("read",), ("simulate", "--port", "99999")])
async def test_wrong_usage_is_status_2(words: tuple[str, ...], tmp_path: Path) -> None:
    assert (await call(tmp_path, *words))[0] == 2


async def test_tables_counts_what_is_there_and_what_is_missing(lake: Path) -> None:
    status, out, _ = await call(lake, "tables", "--json")
    assert status == 0
    found = {table["dataset"]: table for table in json.loads(out)}
    assert (found["agg_trade"]["rows"], found["agg_trade"]["holes"], found["agg_trade"]["duplicates"]) == (10, 1, 0)
    assert "agg_trade" in (await call(lake, "tables"))[1]


@pytest.mark.parametrize(
    ("suffix", "scan"), [("csv", pl.read_csv), ("parquet", pl.read_parquet), ("jsonl", pl.read_ndjson)]
)
async def test_rows_go_into_files(lake: Path, suffix: str, scan: object) -> None:
    status, out, _ = await call(lake, "read", "agg_trade", "--symbols", "BTCUSDT", "--out", f"rows.{suffix}")
    assert status == 0
    assert f"wrote rows.{suffix}" in out
    assert scan(lake / f"rows.{suffix}")["agg_trade_id"].sum() == 61  # type: ignore[operator]


async def test_rows_are_shown_in_the_order_of_time(lake: Path) -> None:
    _, out, _ = await call(lake, "read", "agg_trade", "--limit", "3", "--json", "--start", "2026-09-23")
    assert [json.loads(line)["agg_trade_id"] for line in out.splitlines()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("read", "agg_trad"), "did you mean 'agg_trade'?"),
        (("read", "depth"), "no table depth under tables"),
        (("read", "agg_trade", "--columns", "prise"), "did you mean 'price'?"),
        (("read", "agg_trade", "--start", "yesterday"), "yesterday"),
        (("read", "agg_trade", "--out", "rows.xlsx"), "the ending says what it becomes"),
        (("status",), "no crypto-lake runs with LAKE_STATE=var"),
        (("schema", "candles"), "there is no dataset 'candles'"),
        (("simulate", "--market", "nowhere.gz"), "nowhere.gz"),
        (("vacuum", "--datasets", "dept"), "did you mean 'depth'?"),
    ],
)
async def test_a_mistake_is_one_sentence_and_status_1(lake: Path, words: tuple[str, ...], sentence: str) -> None:
    status, _, err = await call(lake, *words)
    assert status == 1
    assert sentence in err
    assert err.startswith("crypto-lake: ")


async def test_maintenance_by_hand_keeps_the_rows(lake: Path) -> None:
    assert (await call(lake, "optimize"))[0] == 0
    assert (await call(lake, "vacuum", "--full"))[0] == 0
    assert pl.read_delta(str(lake / "tables" / "agg_trade")).height == 10


async def test_a_written_env_file_is_read_and_never_overwritten(tmp_path: Path) -> None:
    assert (await call(tmp_path, "config", "init"))[0] == 0
    assert (await call(tmp_path, "config", "init"))[0] == 1
    with (tmp_path / ".env").open("a") as file:
        file.write("LAKE_SYMBOLS=ETHUSDT\nLAKE_SYMBOL=x\n")
    _, out, err = await call(tmp_path, "config", "show", "--json")
    symbols = next(each for each in json.loads(out) if each["setting"] == "LAKE_SYMBOLS")
    assert symbols == {"setting": "LAKE_SYMBOLS", "value": "ETHUSDT", "from": ".env"}
    _, out, err = await call(tmp_path, "config", "show", LAKE_SYMBOLS="BTCUSDT", API_KEY="secret")
    assert "environment" in out
    assert "secret" not in out
    assert "LAKE_SYMBOL is set, but there is no such setting" in err
    assert "LAKE_BATCH_MESSAGES=" in (await call(tmp_path, "config", "profile"))[1]


async def test_prices_once_and_again(tmp_path: Path) -> None:
    async with Simulator(GeneratedMarket(futures=5, rate=50)) as exchange:
        for _ in range(2):
            status, out, _ = await call(tmp_path, "price-once", **exchange.environment)
            assert status == 0
            assert out == "5 prices into tables/prices\n"
        script = (str(HOME / "bin" / "collect_prices_once.py"),)
        assert (await call(tmp_path, program=script, **exchange.environment))[0] == 0
        assert (await call(tmp_path, "price-once", "--symbols", "BTCUSDT", **exchange.environment))[1].startswith("1 ")
    rows = pl.read_delta(str(tmp_path / "tables" / "prices"))
    assert rows.height == rows.unique(["venue", "symbol", "time"]).height == 16
    assert rows["source"].unique().to_list() == ["rest"]


async def test_prices_once_without_a_venue_is_one_sentence(tmp_path: Path) -> None:
    status, _, err = await call(tmp_path, "price-once", LAKE_BINANCE_FUTURES_REST="http://127.0.0.1:9")
    assert status == 1
    assert "cannot reach http://127.0.0.1:9" in err


@pytest.mark.parametrize("script", ["run_liquidations", "run_prices", "run_both"])
async def test_the_scripts_record(script: str, tmp_path: Path) -> None:
    async with Simulator(GeneratedMarket(futures=5, rate=500)) as exchange:
        environment: Mapping[str, str] = {**exchange.environment, "LAKE_SYMBOLS": "all", "LAKE_METRICS_PORT": "0"}
        program = (str(HOME / "bin" / f"{script}.py"),)
        status, _, err = await call(tmp_path, "--for", "2s", program=program, **environment)
        assert status == 0, err
    tables = {path.name for path in (tmp_path / "tables").iterdir()} - {"rejected", "gap", "quality"}
    wanted = {"run_liquidations": {"liquidation"}, "run_prices": {"prices"}}.get(script, {"liquidation", "prices"})
    assert tables == wanted
    for table in wanted:
        assert pl.read_delta(str(tmp_path / "tables" / table)).height > 0


@pytest.mark.slow
async def test_the_demo_fills_its_tables_and_draws_a_picture_twice(tmp_path: Path) -> None:
    for _ in range(2):
        status, out, err = await call(tmp_path, "demo", "--for", "4s")
        assert status == 0, err
        assert "what landed" in out
        assert (tmp_path / "demo" / "demo.png").stat().st_size > 10_000
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    assert (await call(tmp_path, "demo", "--out", "mine"))[0] == 1
    assert (tmp_path / "mine" / "precious").exists()
