"""A Qlib root is what the tables say, float by float, however it grew; and a check finds what is not so."""

import asyncio
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_lake.build.export import Exported, Wanted, check_qlib, export_qlib
from crypto_lake.config import ConfigError
from crypto_lake.models import DATASETS, qlib
from crypto_lake.models.bar import TIMEFRAMES_US
from crypto_lake.processors.shape import shape
from crypto_lake.query import qlib as query
from crypto_lake.query import read
from crypto_lake.writers.delta import Lake
from crypto_lake.writers.derived import Derived

BAR, INDICATOR = DATASETS["bar"], DATASETS["indicator"]
MONDAY = datetime(2024, 1, 15, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
FEW = "open,close,count"


def bars(symbol: str, times: Iterable[datetime], **columns: Any) -> pl.DataFrame:
    """Bars of 1m with values that differ from bar to bar, and that a float32 has to round."""
    times = list(times)
    numbers = np.array([time.timestamp() // 60 % 1e6 for time in times])
    rows = {
        "venue": "binance-futures",
        "symbol": symbol,
        "time": times,
        "source": "derived",
        "timeframe": "1m",
        "open": 43_210.1 + numbers / 7,
        "high": 43_300.1 + numbers / 7,
        "low": 43_200.1 + numbers / 7,
        "close": 43_250.1 + numbers / 3,
        "volume": numbers / 11,
        "quote_volume": None,
        "count": numbers.astype(np.int64) + len(symbol),
        "taker_buy_volume": 0.1,
        "taker_buy_quote_volume": 4_321.1,
        "complete": True,
        "revision": 0,
        "origin": "trades",
    }
    nulls = {name: pl.Float64() for name in ("quote_volume",)}
    return shape(BAR, pl.DataFrame(rows | columns, schema_overrides=nulls))


def minutes(first: int, behind: int) -> list[datetime]:
    """The minutes of Monday (and further on) from the first to before the second."""
    return [MONDAY + number * MINUTE for number in range(first, behind)]


def put(root: Path, name: str, rows: pl.DataFrame, gone: pl.DataFrame | None = None) -> None:
    derived = Derived(Lake(str(root)), DATASETS[name])
    derived.put(rows, gone)
    derived.settle(all=True)


def write(root: Path, out: Path, **wanted: Any) -> Exported:
    return export_qlib(str(root), out, Wanted(**{"fields": FEW, **wanted}))


def findings(root: Path, out: Path) -> list[str]:
    return [f"{each.file}: {each.what}" for each in check_qlib(str(root), out).findings]


def files(out: Path) -> dict[str, bytes]:
    """What Qlib would read, file by file."""
    own = {qlib.MANIFEST, ".crypto_lake.lock"}
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
            and path.name not in own}  # fmt: skip


def view(out: Path, frequency: str = "1min") -> dict[tuple[str, str], dict[str, float | None]]:
    """A root as a reader sees it: by symbol and field the value of each slot, None for NaN.

    It goes by the calendar and by instruments/all.txt, and knows nothing of what is behind their ends.
    """
    calendar = (out / "calendars" / f"{frequency}.txt").read_text().splitlines()
    found = {}
    for line in (out / "instruments" / "all.txt").read_text().splitlines():
        symbol, first, last = line.split("\t")
        for path in sorted((out / "features").glob(f"{symbol.lower()}/*.{frequency}.bin")):
            start, *values = (value for (value,) in struct.iter_unpack("<f", path.read_bytes()))
            seen = dict(zip(calendar[int(start) :], values, strict=False))
            found[symbol, path.name.split(".")[0]] = {
                slot: None if value != value else value for slot, value in seen.items() if first <= slot <= last
            }
    return found


def expected(root: Path, fields: str = FEW, **equals: Any) -> dict[tuple[str, str], dict[str, float | None]]:
    """The same out of the tables: every slot of any bar from a symbol's first bar to its last one."""
    rows = read("bar", timeframe="1m", root=str(root), **equals).collect()
    slots = sorted({f"{time:%Y-%m-%d %H:%M:%S}" for time in rows["time"]})
    found = {}
    for (symbol,), own in rows.group_by("symbol"):
        for field in fields.split(","):
            has = {f"{time:%Y-%m-%d %H:%M:%S}": value for time, value in own.select("time", field).rows()}
            inside = (slot for slot in slots if min(has) <= slot <= max(has))
            found[str(symbol), field] = {
                slot: None if has.get(slot) is None else float(np.float32(has[slot])) for slot in inside
            }
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A lake with two days of BTCUSDT, of which ETHUSDT has a middle, with a hole."""
    lake = tmp_path / "tables"
    put(lake, "bar", bars("BTCUSDT", minutes(0, 10) + minutes(1440, 1450)))
    put(lake, "bar", bars("ETHUSDT", minutes(3, 6) + minutes(8, 10) + minutes(1440, 1445)))
    return lake


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "qlib"


# What is written


def test_the_files_are_those_of_the_format_byte_by_byte(tmp_path: Path, out: Path) -> None:
    lake = tmp_path / "tables"
    put(lake, "bar", bars("B", minutes(0, 4)))
    put(lake, "bar", bars("A", [MONDAY + MINUTE, MONDAY + 3 * MINUTE], close=[0.1, 0.2], quote_volume=[None, 7.0]))
    write(lake, out, fields="close,quote_volume")
    slots = "".join(f"2024-01-15 00:0{minute}:00\n" for minute in range(4))
    assert (out / "calendars/1min.txt").read_text() == slots
    lines = "A\t2024-01-15 00:01:00\t2024-01-15 00:03:00\nB\t2024-01-15 00:00:00\t2024-01-15 00:03:00\n"
    assert (out / "instruments/all.txt").read_text() == lines
    nan = float("nan")
    assert (out / "features/a/close.1min.bin").read_bytes() == struct.pack("<4f", 1, 0.1, nan, 0.2)
    assert (out / "features/a/quote_volume.1min.bin").read_bytes() == struct.pack("<4f", 1, nan, nan, 7)
    assert (out / "features/b/quote_volume.1min.bin").read_bytes() == struct.pack("<5f", 0, nan, nan, nan, nan)
    assert len(files(out)) == 6


def test_what_a_reader_sees_is_what_the_tables_say(root: Path, out: Path) -> None:
    done = write(root, out)
    assert (done.symbols, done.fields, done.slots, done.added, done.is_anew) == (2, 3, 20, 20, True)
    assert view(out) == expected(root)
    assert view(out)["ETHUSDT", "close"]["2024-01-15 00:06:00"] is None
    assert findings(root, out) == []


def test_default_fields_are_all_that_a_bar_says_of_trading(root: Path, out: Path) -> None:
    export_qlib(str(root), out, Wanted())
    assert {path.name.split(".")[0] for path in out.glob("features/btcusdt/*")} == set(qlib.DEFAULT_FIELDS)


def test_fields_of_indicators_stand_in_the_slots_of_their_bars(root: Path, out: Path) -> None:
    times = [*minutes(2, 4), MONDAY - DAY]
    rows = pl.DataFrame({"venue": "binance-futures", "symbol": "BTCUSDT", "time": times, "source": "derived",
                         "timeframe": "1m", "sma_20": [0.1, None, 9.9], "origin": "trades"})  # fmt: skip
    put(root, "indicator", shape(INDICATOR, rows))
    other = rows.with_columns(pl.lit("5m").alias("timeframe"), pl.lit(5.0).alias("sma_20"))
    put(root, "indicator", shape(INDICATOR, other))
    write(root, out, fields="close,sma_20")
    seen = view(out)["BTCUSDT", "sma_20"]
    assert {slot: value for slot, value in seen.items() if value is not None} == {
        "2024-01-15 00:02:00": float(np.float32(0.1))
    }
    assert len(seen) == 20
    assert findings(root, out) == []


def test_a_day_is_written_as_a_day_wherever_its_midnight_is(tmp_path: Path, out: Path) -> None:
    lake = tmp_path / "tables"
    days = [MONDAY, MONDAY + DAY]
    put(lake, "bar", bars("BTCUSDT", days, timeframe="1d"))
    new_york = [day + timedelta(hours=5) for day in days]
    put(lake, "bar", bars("AAPL", new_york[1:], timeframe="1d", venue="us-stocks", origin="flatfile"))
    done = write(lake, out, timeframe="1d")
    assert (done.frequency, done.slots) == ("day", 2)
    assert (out / "calendars/day.txt").read_text() == "2024-01-15\n2024-01-16\n"
    lines = "AAPL\t2024-01-16\t2024-01-16\nBTCUSDT\t2024-01-15\t2024-01-16\n"
    assert (out / "instruments/all.txt").read_text() == lines
    assert findings(lake, out) == []


@pytest.mark.parametrize(("symbol", "folder"), [("CON", "_qlib_con"), ("LPT9", "_qlib_lpt9"), ("COM10", "com10")])
def test_names_of_devices_stand_in_folders_of_another_name(symbol: str, folder: str, tmp_path: Path, out: Path) -> None:
    put(tmp_path, "bar", bars(symbol, minutes(0, 2)))
    write(tmp_path, out)
    assert [path.name for path in (out / "features").iterdir()] == [folder]
    assert findings(tmp_path, out) == []


def test_symbols_that_qlib_cannot_have_are_left_out_and_named_once(root: Path, out: Path) -> None:
    for name in ("BRKpA", "币安人生USDT", "NA", ".."):
        put(root, "bar", bars(name, minutes(0, 2)))
    done = write(root, out)
    assert done.notes == ["skipped, since Qlib has no such names: .., BRKpA, NA, 币安人生USDT"]
    assert {symbol for symbol, _ in view(out)} == {"BTCUSDT", "ETHUSDT"}
    assert findings(root, out) == []


# How it grows


def test_what_is_new_is_appended_to_the_files_that_are_there(root: Path, out: Path, tmp_path: Path) -> None:
    write(root, out, end="2024-01-15")
    before = {name: (text, (out / name).stat().st_ino) for name, text in files(out).items() if "features" in name}
    done = write(root, out)
    assert (done.added, done.is_anew) == (10, False)
    for name, (text, inode) in before.items():
        assert (out / name).read_bytes().startswith(text)
        assert len((out / name).read_bytes()) > len(text)
        assert (out / name).stat().st_ino == inode
    write(root, tmp_path / "at once")
    assert files(out) == files(tmp_path / "at once")
    assert write(root, out).added == 0
    assert findings(root, out) == []


def test_days_may_be_exported_one_by_one_and_slots_between_have_no_value(root: Path, out: Path, tmp_path: Path) -> None:
    put(root, "bar", bars("ETHUSDT", minutes(2900, 2903)))
    put(root, "bar", bars("BTCUSDT", minutes(2880, 2910)))
    for day in ("2024-01-15", "2024-01-16", "2024-01-17"):
        write(root, out, start=day, end=day)
    write(root, tmp_path / "at once", start="2024-01-15")
    assert files(out) == files(tmp_path / "at once")
    assert view(out) == expected(root)
    assert view(out)["ETHUSDT", "close"]["2024-01-17 00:00:00"] is None


@pytest.mark.parametrize(
    ("symbol", "numbers", "slots"),
    [("BTCUSDT", (20, 25), 25), ("ETHUSDT", (1, 3), 20), ("BTCUSDT", (-10, 0), 30)],
)
@pytest.mark.parametrize("fields", [FEW, "taker_buy_volume"])  # the second one is the same in every bar
def test_bars_before_the_end_make_all_files_anew(
    symbol: str, numbers: tuple[int, int], slots: int, fields: str, root: Path, out: Path, tmp_path: Path
) -> None:
    write(root, out, fields=fields)
    put(root, "bar", bars(symbol, minutes(*numbers)))
    done = write(root, out, fields=fields)
    assert (done.is_anew, done.slots) == (True, slots)
    write(root, tmp_path / "at once", fields=fields)
    assert files(out) == files(tmp_path / "at once")
    assert findings(root, out) == []


def test_a_root_that_is_not_what_was_noted_of_it_is_made_anew(root: Path, out: Path, tmp_path: Path) -> None:
    write(root, out)
    before = files(out)
    for path, old, new in (
        (out / "calendars/1min.txt", "00:02:00", "00:02:30"),
        (out / "instruments/all.txt", "ETHUSDT\t2024-01-15 00:03", "ETHUSDT\t2024-01-15 00:04"),
        (out / "calendars/1min.txt", "2024-01-15 00:00:00\n", ""),
    ):
        change(path, old, new)
        assert write(root, out).is_anew
        assert files(out) == before
    cut(out / "features/ethusdt/close.1min.bin", -8)
    assert write(root, out).is_anew
    assert files(out) == before


def test_a_bar_that_was_revised_before_the_end_is_in_the_next_export(root: Path, out: Path) -> None:
    write(root, out)
    held = bars("BTCUSDT", minutes(5, 6))
    put(root, "bar", held.with_columns(pl.lit(7.5).alias("close"), pl.lit(1, pl.Int64()).alias("revision")), gone=held)
    assert any("1 values are not those of table bar" in each for each in findings(root, out))
    assert write(root, out).is_anew
    assert view(out)["BTCUSDT", "close"]["2024-01-15 00:05:00"] == 7.5
    assert findings(root, out) == []


BAR_NONE = pl.DataFrame(schema=BAR.schema)


def test_a_bar_that_is_gone_is_gone_from_the_next_export(root: Path, out: Path) -> None:
    write(root, out)
    put(root, "bar", BAR_NONE, gone=bars("BTCUSDT", minutes(1440, 1450)))
    put(root, "bar", BAR_NONE, gone=bars("ETHUSDT", minutes(1440, 1445)))
    write(root, out)
    assert view(out) == expected(root)
    assert findings(root, out) == []


def test_a_symbol_whose_bars_end_earlier_goes_on_within_the_calendar(root: Path, out: Path, tmp_path: Path) -> None:
    write(root, out)
    put(root, "bar", bars("ETHUSDT", minutes(1447, 1452)))
    done = write(root, out)
    assert (done.is_anew, done.added) == (False, 2)
    write(root, tmp_path / "at once")
    assert files(out) == files(tmp_path / "at once")
    assert view(out)["ETHUSDT", "close"]["2024-01-16 00:06:00"] is None


def test_a_root_only_grows_whatever_is_asked_for_next(root: Path, out: Path, tmp_path: Path) -> None:
    write(root, out, symbols="BTCUSDT", fields="close")
    write(root, out, symbols="ETHUSDT", fields="open", start="2024-01-16")
    assert view(out) == expected(root, "close,open")
    write(root, out, symbols="ETHUSDT", fields="open", end="2024-01-15")
    assert view(out) == expected(root, "close,open")
    write(root, tmp_path / "at once", fields="close,open")
    assert files(out) == files(tmp_path / "at once")


def test_a_table_that_was_made_again_is_no_reason_to_believe_what_was_noted(root: Path, out: Path) -> None:
    write(root, out)
    version = query.manifest(out).versions.popitem()[1]  # type: ignore[union-attr]
    shutil.rmtree(root / "bar")
    for number in range(version):  # the same version as before
        put(root, "bar", bars("BTCUSDT", minutes(number, number + 1), close=9.0))
    write(root, out)
    assert view(out) == expected(root)


def test_only_days_that_changed_are_read_again(root: Path, out: Path, tmp_path: Path) -> None:
    write(root, out)
    put(root, "bar", bars("BTCUSDT", minutes(1450, 1455)))
    for number, file in enumerate((root / "bar/date=2024-01-15").iterdir()):
        file.rename(tmp_path / f"away {number}")  # who opens that day finds nothing
    assert write(root, out).added == 5


@settings(max_examples=20, deadline=None)
@given(
    held=st.dictionaries(st.sampled_from(["A", "B", "C"]), st.sets(st.integers(0, 30), min_size=1), min_size=1),
    cuts=st.lists(st.integers(0, 30), max_size=3),
    cells=st.sampled_from([1, 8, 4_000_000]),
)
def test_however_it_grew_a_root_is_what_one_export_makes(
    held: Mapping[str, set[int]], cuts: list[int], cells: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Rows of any minutes (six of them a day) come in any order in several commits, with an export behind each."""
    folder = tmp_path_factory.mktemp("grown")
    lake, whole = folder / "tables", query.CELLS
    query.CELLS = cells  # type: ignore[misc]
    try:
        for low, behind in zip([0, *sorted(cuts)], [*sorted(cuts), 31], strict=True):
            for symbol, numbers in held.items():
                times = [MONDAY + number % 6 * MINUTE + number // 6 * DAY for number in sorted(numbers)
                         if low <= number < behind]  # fmt: skip
                if times:
                    put(lake, "bar", bars(symbol, times))
            if lake.exists():
                write(lake, folder / "grown")
    finally:
        query.CELLS = whole  # type: ignore[misc]
    write(lake, folder / "at once")
    assert files(folder / "grown") == files(folder / "at once")
    assert view(folder / "grown") == expected(lake)
    assert findings(lake, folder / "grown") == []


# Killed


class Killed(BaseException):
    """Nothing that is done after it reaches the disk: not what `finally` and `except` do, either."""


class Death:
    """Kills whoever changes something under a folder, before the n-th change and all that follow."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.left = 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None or event not in CHANGES or not str(arguments[0]).startswith(self.folder):
            return
        if event == "open" and not (isinstance(arguments[1], str) and arguments[1][0] in "wa"):
            return
        self.left -= 1
        if self.left < 0:
            raise Killed

    def at(self, change: int, folder: Path, work: Callable[[], object]) -> bool:
        """Whether the work was killed before it came to its end."""
        self.folder, self.left = str(folder), change
        try:
            work()
        except Killed:
            return True
        finally:
            self.folder = None
        return False


CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}


@pytest.fixture(scope="module")
def death() -> Death:
    return Death()  # there is no way to take an audit hook away again


@pytest.mark.parametrize("case", ["first", "append", "anew"])
def test_a_killed_export_leaves_a_whole_root_or_none_and_the_next_one_is_whole(
    case: str, root: Path, tmp_path: Path, death: Death
) -> None:
    """At every step; the old root or the new one is what a reader sees, or there is no calendar and nothing to read."""
    wanted = Wanted(fields="close,count")
    before, after = tmp_path / "before", tmp_path / "after"
    if case == "append":
        write(root, before, fields="close,count", end="2024-01-15")
    elif case == "anew":
        write(root, before, fields="close,count")
        put(root, "bar", bars("BTCUSDT", minutes(20, 25)))
    export_qlib(str(root), after, wanted)
    old = view(before) if before.exists() else None
    kills, seen = 0, set()
    while True:
        out = tmp_path / f"killed {kills}"
        if before.exists():
            shutil.copytree(before, out)
        if not death.at(kills, out, lambda out=out: export_qlib(str(root), out, wanted)):  # type: ignore[misc]
            break
        kills += 1
        if (out / "calendars/1min.txt").exists():
            now = view(out)
            assert now in (old, view(after)), f"step {kills}"
            seen.add("old" if now == old else "new")
        else:
            seen.add("none")
        export_qlib(str(root), out, wanted)
        assert files(out) == files(after)
        assert not [path.name for path in out.iterdir() if path.name in (".new", ".old")]
    assert kills > 8
    assert seen >= {"first": {"none"}, "append": {"old"}, "anew": {"old", "none"}}[case]


def test_two_exports_do_not_write_into_one_root(root: Path, out: Path) -> None:
    from crypto_lake.writers.qlib import taken

    with taken(out, "1min"), pytest.raises(ConfigError, match="another export is writing"):
        write(root, out)


# What is refused


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"timeframe": "1s"}, "--timeframe 1s: Qlib has 1m, 5m"),
        ({"timeframe": "5m"}, "bar holds no bars .5m."),
        ({"fields": "closing"}, "'closing'; did you mean 'close'"),
        ({"fields": ","}, "--fields: name at least one"),
        ({"symbols": "BTCUSD"}, "table bar holds no bars .1m. of BTCUSD"),
        (
            {"symbols": "BTCUSDT,ETHUSD"},
            "--symbols ETHUSD: table bar .1m. has no rows",
        ),
        ({"fields": "sma_20"}, "no table indicator"),
        ({"origin": "kline"}, "bar holds no bars .1m, kline."),
        ({"start": "tomorrow"}, "start='tomorrow' is no time"),
        ({"start": "2030-01-01"}, "of that time"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(wanted: dict[str, str], words: str, root: Path, out: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        write(root, out, **wanted)
    assert not (out / "calendars").exists()


def test_a_symbol_of_two_venues_is_refused_until_one_is_named(root: Path, out: Path) -> None:
    put(root, "bar", bars("BTCUSDT", minutes(0, 3), venue="binance"))
    with pytest.raises(ConfigError, match="of binance and of binance-futures, and Qlib knows no venues: say --venue"):
        write(root, out)
    write(root, out, venue="binance-futures")
    with pytest.raises(ConfigError, match="another one goes into another root"):
        write(root, out, venue="binance")
    write(root, out.with_name("spot"), symbols="binance:BTCUSDT,ETHUSDT")
    assert len(view(out.with_name("spot"))["BTCUSDT", "close"]) == 3


def test_bars_of_two_origins_are_those_made_here_unless_another_is_named(root: Path, out: Path) -> None:
    put(root, "bar", bars("BTCUSDT", minutes(0, 3), origin="kline", close=1.0))
    write(root, out)
    assert view(out) == expected(root, origin="trades")
    with pytest.raises(ConfigError, match="the root has BTCUSDT of trades"):
        write(root, out, origin="kline", symbols="BTCUSDT")
    write(root, out.with_name("klines"), origin="kline", symbols="BTCUSDT")
    assert set(view(out.with_name("klines"))["BTCUSDT", "close"].values()) == {1.0}
    put(root, "bar", bars("SOLUSDT", minutes(0, 3), origin="kline"))
    put(root, "bar", bars("SOLUSDT", minutes(0, 3), origin="yahoo"))
    with pytest.raises(ConfigError, match="SOLUSDT has bars of kline and yahoo: say --origin"):
        write(root, out)


def test_another_frequency_goes_into_another_root(root: Path, out: Path) -> None:
    write(root, out)
    put(root, "bar", bars("BTCUSDT", [MONDAY], timeframe="5m"))
    with pytest.raises(ConfigError, match=r"is a root of 1min; .* name another folder for 5min"):
        write(root, out, timeframe="5m")


def test_a_folder_of_others_is_left_alone(root: Path, out: Path) -> None:
    (out / "features").mkdir(parents=True)
    (out / "features/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds features, which is not of an export"):
        write(root, out)
    (out.with_name("file")).write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write(root, out.with_name("file"))
    assert (out / "features/mine.txt").read_text() == "mine"


def test_more_slots_than_a_float_can_count_are_refused(root: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qlib, "MOST_SLOTS", 20)
    write(root, out)
    before = files(out)
    put(root, "bar", bars("BTCUSDT", minutes(1450, 1451)))
    with pytest.raises(ConfigError, match="more than 20 slots"):
        write(root, out)
    assert files(out) == before


# The check


def cut(path: Path, end: int) -> None:
    path.write_bytes(path.read_bytes()[:end])


def change(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def overwrite(path: Path, at: int, value: float) -> None:
    content = bytearray(path.read_bytes())
    content[4 * at : 4 * at + 4] = struct.pack("<f", value)
    path.write_bytes(content)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "unsorted": (
        lambda out: change(out / "calendars/1min.txt", "00:02:00\n2024-01-15 00:03", "00:03:00\n2024-01-15 00:02"),
        "does not come after",
    ),
    "twice": (lambda out: change(out / "calendars/1min.txt", "00:02:00", "00:01:00"), "does not come after"),
    "form": (lambda out: change(out / "calendars/1min.txt", "00:02:00", "00:02"), "is no time"),
    "columns": (lambda out: change(out / "instruments/all.txt", "\t", " "), "is not SYMBOL, first and last"),
    "case": (lambda out: change(out / "instruments/all.txt", "BTC", "btc"), "is not upper case"),
    "outside": (lambda out: change(out / "instruments/all.txt", "2024-01-15", "2024-01-14"), "not inside the calendar"),
    "span": (lambda out: change(out / "instruments/all.txt", "00:00:00", "00:01:00"), "its files are of"),
    "no folder": (lambda out: shutil.rmtree(out / "features/ethusdt"), "ethusdt: is missing"),
    "no field": (lambda out: [path.unlink() for path in out.glob("features/ethusdt/*")], "has no field of 1min"),
    "a field less": (lambda out: (out / "features/ethusdt/count.1min.bin").unlink(), "has no file of the field count"),
    "odd length": (lambda out: cut(out / "features/btcusdt/close.1min.bin", -1), "bytes: not an index and values"),
    "too short": (lambda out: cut(out / "features/btcusdt/close.1min.bin", 4), "bytes: not an index and values"),
    "a value less": (lambda out: cut(out / "features/btcusdt/close.1min.bin", -4), "fields have not the same slots"),
    "negative": (lambda out: overwrite(out / "features/btcusdt/close.1min.bin", 0, -1), "which is no index"),
    "fraction": (lambda out: overwrite(out / "features/btcusdt/close.1min.bin", 0, 0.5), "which is no index"),
    "nan": (lambda out: overwrite(out / "features/btcusdt/close.1min.bin", 0, float("nan")), "which is no index"),
    "beyond": (lambda out: overwrite(out / "features/btcusdt/close.1min.bin", 0, 1), "the calendar has 20"),
    "one ulp": (
        lambda out: overwrite(
            out / "features/btcusdt/close.1min.bin", 3, np.nextafter(VALUE, np.float32(np.inf))
        ),
        "1 values are not those of table bar, first at 2024-01-15 00:02:00",
    ),
    "a value for none": (lambda out: overwrite(out / "features/ethusdt/close.1min.bin", 4, 1.0), "not nan"),
    "none for a value": (lambda out: overwrite(out / "features/ethusdt/close.1min.bin", 1, float("nan")), ": nan, not"),
}  # fmt: skip
VALUE = np.float32(bars("BTCUSDT", minutes(2, 3))["close"][0])


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_finds(fault: str, root: Path, out: Path) -> None:
    write(root, out)
    assert findings(root, out) == []
    spoil, words = FAULTS[fault]
    spoil(out)
    found = findings(root, out)
    assert any(words in each for each in found), found


def test_the_check_finds_a_slot_that_no_bar_has_and_a_bar_that_has_none(root: Path, out: Path) -> None:
    write(root, out)
    put(root, "bar", bars("BTCUSDT", minutes(10, 12)), gone=bars("BTCUSDT", minutes(1, 2)))
    (found,) = findings(root, out)
    assert "has 1 slots without a bar and lacks those of 2 bars" in found


def test_bars_that_came_behind_the_end_are_no_finding(root: Path, out: Path) -> None:
    write(root, out)
    put(root, "bar", bars("BTCUSDT", minutes(1450, 1460)))
    put(root, "bar", bars("ETHUSDT", minutes(1446, 1460)))
    assert findings(root, out) == []


def test_a_root_of_somebody_else_can_be_checked(root: Path, out: Path) -> None:
    write(root, out)
    (out / qlib.MANIFEST).unlink()
    assert findings(root, out) == []
    overwrite(out / "features/btcusdt/close.1min.bin", 1, 1.0)
    assert len(findings(root, out)) == 1


def test_where_no_calendar_is_there_is_nothing_to_check(root: Path, out: Path) -> None:
    with pytest.raises(ConfigError, match="there is no calendar: not a Qlib root"):
        check_qlib(str(root), out)


# The command


async def call(home: Path, *words: str) -> tuple[int, str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LAKE_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "crypto_lake", "export", "qlib", *words),
        cwd=home,
        env=clean,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert b"Traceback" not in err
    return process.returncode or 0, out.decode(), err.decode()


async def test_the_command_exports_checks_and_says_what_is_wrong(root: Path, tmp_path: Path) -> None:
    put(root, "bar", bars("lower", minutes(0, 2)))
    status, said, warned = await call(tmp_path, "--out", "q", "--timeframe", "1m", "--fields", FEW, "--check")
    assert status == 0
    assert "q: 2 symbols, 3 fields, 20 slots of 1min: made anew" in said
    assert "as it should be" in said
    assert warned.strip() == "crypto-lake: skipped, since Qlib has no such names: lower"
    overwrite(tmp_path / "q/features/btcusdt/close.1min.bin", 5, 1.0)
    status, said, _ = await call(tmp_path, "--check", "--out", "q")
    assert status == 1
    assert "features/btcusdt/close.1min.bin: 1 values are not those of table bar" in said
    status, said, _ = await call(tmp_path, "--check", "--out", "q", "--json")
    assert status == 1
    assert len(json.loads(said)["findings"]) == 1
    status, _, warned = await call(tmp_path, "--out", "q", "--fields", "clse")
    assert status == 1
    assert warned.startswith("crypto-lake: --fields: no table (bar, indicator")


# Qlib itself


READER = """
import sys
import numpy as np
import qlib
from qlib.data import D

root, freq, *fields = sys.argv[1:]
qlib.init(provider_uri=root, expression_cache=None, dataset_cache=None, kernels=1, logging_level=40)
names = D.list_instruments(D.instruments("all"), freq=freq, as_list=True)
frame = D.features(sorted(names), [f"${field}" for field in fields], freq=freq)
for (symbol, time), row in frame.iterrows():
    print(symbol, time.isoformat(), *(np.float32(value).view(np.uint32) for value in row), sep=",")
"""


@pytest.mark.slow
@pytest.mark.parametrize("timeframe", ["1m", "5m", "1h", "4h", "1d"])
def test_qlib_reads_every_float_as_it_is_in_the_tables(timeframe: str, tmp_path: Path, out: Path) -> None:
    if find_spec("qlib") is None:
        pytest.skip("pyqlib is not installed")
    step = timedelta(microseconds=TIMEFRAMES_US[timeframe])
    times = [MONDAY + number * step for number in range(30)]
    put(tmp_path, "bar", bars("BTCUSDT", times[:20], timeframe=timeframe))
    put(tmp_path, "bar", bars("CON", times[3:6] + times[9:12], timeframe=timeframe))
    write(tmp_path, out, timeframe=timeframe)
    put(tmp_path, "bar", bars("BTCUSDT", times[20:], timeframe=timeframe))
    put(tmp_path, "bar", bars("CON", times[25:28], timeframe=timeframe))
    done = write(tmp_path, out, timeframe=timeframe)
    assert not done.is_anew
    fields = FEW.split(",")
    read_back = subprocess.run(
        [sys.executable, "-c", READER, str(out), done.frequency, *fields], capture_output=True, text=True, check=True
    )
    seen = {tuple(line.split(",")[:2]): line.split(",")[2:] for line in read_back.stdout.splitlines()}
    rows = read("bar", root=str(tmp_path)).collect()
    wanted = {
        (symbol, f"{time:%Y-%m-%dT%H:%M:%S}"): [str(np.float32(value).view(np.uint32)) for value in values]
        for symbol, time, *values in rows.select("symbol", "time", *fields).rows()
    }
    nan = [str(np.float32("nan").view(np.uint32))] * len(fields)
    assert {key: value for key, value in seen.items() if value != nan} == wanted
    between = [key for key, value in seen.items() if value == nan]
    assert len(between) == 3 + 13
    assert {symbol for symbol, _ in between} == {"CON"}
