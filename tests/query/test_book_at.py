"""The book at an instant, out of the table: what is known, when it is not known, and how little is read for it."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest

from crypto_lake.config import ConfigError
from crypto_lake.models import DATASETS
from crypto_lake.processors.shape import shape
from crypto_lake.query import BookAt, book_at
from crypto_lake.query.depth import DepthRows
from crypto_lake.query.snapshot import snapshot as table_at
from crypto_lake.writers.delta import Lake
from tests.features.depth_market import (
    FUTURES_CAPTURES,
    SPOT_CAPTURES,
    Market,
    Row,
    captured,
    event,
    frame,
    snapshot,
)

DEPTH = DATASETS["depth"]
FUTURES, SPOT = "binance-futures", "binance"
SECOND = 1_000_000
DAY = 86_400 * SECOND
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MIDNIGHT = int(datetime(2024, 1, 15, tzinfo=UTC).timestamp()) * SECOND
BASE = snapshot(100, [(9.9, 1.0)], [(10.1, 1.0)], MIDNIGHT)


def put(root: Path, rows: Sequence[Row], *, venue: str = FUTURES, symbol: str = "BTCUSDT") -> None:
    lake = Lake(str(root))
    lake.check(DEPTH)
    source = pl.when("is_snapshot").then(pl.lit("rest")).otherwise(pl.lit("live"))
    event_time = pl.col("time") if venue == FUTURES else pl.when(~pl.col("is_snapshot")).then("time")
    columns = {"venue": pl.lit(venue), "symbol": pl.lit(symbol), "source": source, "event_time": event_time}
    lake.add(DEPTH, shape(DEPTH, frame(rows).with_columns(**columns)))


def instant(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)


def sides(found: BookAt | None) -> Any:
    return None if found is None else (found.update_id, found.bids.rows(), found.asks.rows())


def at(root: Path, us: int, **said: Any) -> Any:
    return sides(book_at("BTCUSDT", instant(us), root=str(root), **said))


@pytest.mark.parametrize("venue", [FUTURES, SPOT])
@pytest.mark.parametrize("seed", range(3))
def test_at_any_instant_it_is_the_market_as_it_was(tmp_path: Path, venue: str, seed: int) -> None:
    market = Market(Random(seed), Decimal("0.1"), venue == FUTURES, 12)
    market.at = MIDNIGHT - 30 * SECOND
    rows = list(market.rows(150))
    put(tmp_path, rows[::2], venue=venue)
    put(tmp_path, rows[1::2], venue=venue)
    events = [row for row in rows if not row["is_snapshot"]]
    known = 0
    for us in Random(seed).sample(range(events[4]["time"], events[-1]["time"] + SECOND), 40):
        found = book_at("BTCUSDT", instant(us), root=str(tmp_path))
        if found is None:
            continue  # at the end of what the snapshot knows
        known += 1
        last = max((row for row in events if row["time"] <= us), key=lambda row: row["final_update_id"])
        bids, asks = market.truth[last["final_update_id"]]
        assert (found.update_id, found.time) == (last["final_update_id"], instant(last["time"]))
        assert found.bids.rows() == bids[: found.bids.height]
        assert found.asks.rows() == asks[: found.asks.height]
    assert known > 20


def test_it_holds_all_that_is_known_or_the_best_levels(tmp_path: Path) -> None:
    put(tmp_path, [BASE, event(101, 105, 100, [(9.8, 2.0), (9.7, 3.0)], [(10.2, 4.0)], MIDNIGHT + SECOND)])
    whole = book_at("BTCUSDT", "2024-01-15T00:00:01", root=str(tmp_path))
    assert whole is not None
    assert (whole.venue, whole.symbol, whole.update_id) == (FUTURES, "BTCUSDT", 105)
    assert whole.time == instant(MIDNIGHT + SECOND)
    assert whole.bids.schema == whole.asks.schema == {"price": pl.Float64, "quantity": pl.Float64}
    assert at(tmp_path, MIDNIGHT + SECOND) == (105, [(9.9, 1.0), (9.8, 2.0), (9.7, 3.0)], [(10.1, 1.0), (10.2, 4.0)])
    assert at(tmp_path, MIDNIGHT + SECOND, levels=1) == (105, [(9.9, 1.0)], [(10.1, 1.0)])


def test_it_is_that_after_the_last_event_which_is_not_later(tmp_path: Path) -> None:
    events = [event(n, n, n - 1, [(9.0, float(n))], [], MIDNIGHT + (n - 100) * SECOND) for n in range(101, 104)]
    put(tmp_path, [BASE, *events])
    assert at(tmp_path, MIDNIGHT - 1) is None
    assert [at(tmp_path, MIDNIGHT + us)[0] for us in (0, SECOND - 1, SECOND, 2 * SECOND, DAY)] == [
        100,
        100,
        101,
        102,
        103,
    ]
    whole_day = book_at("BTCUSDT", date(2024, 1, 15), root=str(tmp_path))
    assert sides(whole_day)[0] == 100


def test_in_a_hole_there_is_no_book(tmp_path: Path) -> None:
    rows = [
        BASE, event(101, 101, 100, at=MIDNIGHT + SECOND), event(111, 111, 110, at=MIDNIGHT + 2 * SECOND),
        snapshot(115, [(9.5, 1.0)], [(10.5, 1.0)], MIDNIGHT + 3 * SECOND),
        event(112, 116, 111, [(9.4, 2.0)], at=MIDNIGHT + 4 * SECOND),
    ]  # fmt: skip
    put(tmp_path, rows)
    assert [at(tmp_path, MIDNIGHT + n * SECOND) is None for n in (1, 2, 3, 4)] == [False, True, False, False]
    assert at(tmp_path, MIDNIGHT + 4 * SECOND) == (116, [(9.5, 1.0), (9.4, 2.0)], [(10.5, 1.0)])


def test_a_snapshot_counts_by_its_place_in_the_chain_where_its_time_is_ours(tmp_path: Path) -> None:
    """Received behind midnight: what it shows was before."""
    events = [event(n, n, None, [(9.0, float(n))], [], MIDNIGHT - (105 - n) * SECOND) for n in range(101, 105)]
    put(tmp_path, [*events, snapshot(102, [(9.9, 1.0)], [(10.1, 1.0)], MIDNIGHT + SECOND)], venue=SPOT)
    assert at(tmp_path, MIDNIGHT - 4 * SECOND) is None
    assert at(tmp_path, MIDNIGHT - 2 * SECOND) == (103, [(9.9, 1.0), (9.0, 103.0)], [(10.1, 1.0)])


def test_a_book_that_begins_with_an_empty_snapshot(tmp_path: Path) -> None:
    rows = [
        event(1, 4, 0, [(9.8, 1.0)], at=MIDNIGHT), snapshot(-1, at=MIDNIGHT + 1),  # it came while events did
        event(5, 9, 4, [(9.9, 1.0)], [(10.1, 1.0)], MIDNIGHT + SECOND),
    ]  # fmt: skip
    put(tmp_path, rows[1:2])
    assert at(tmp_path, MIDNIGHT + 1) == (-1, [], [])
    put(tmp_path, rows[::2])
    assert at(tmp_path, MIDNIGHT) is None
    assert at(tmp_path, MIDNIGHT + 1) == (4, [(9.8, 1.0)], [])
    assert at(tmp_path, MIDNIGHT + SECOND) == (9, [(9.9, 1.0), (9.8, 1.0)], [(10.1, 1.0)])
    # Where there is a book it says nothing.
    put(
        tmp_path, [snapshot(12, [(9.5, 2.0)], [(10.5, 2.0)], MIDNIGHT + SECOND), snapshot(-1, at=MIDNIGHT + 2 * SECOND)]
    )
    assert at(tmp_path, MIDNIGHT + 3 * SECOND) == (12, [(9.5, 2.0)], [(10.5, 2.0)])


def test_many_events_are_played_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crypto_lake.query.depth.PIECE_EVENTS", 7)
    # Some have one time: they are never torn apart.
    events = [event(n, n, n - 1, [(9.0, float(n))], [], MIDNIGHT + n // 10 * SECOND) for n in range(101, 200)]
    put(tmp_path, [*events[::-1], BASE])
    of = table_at(str(tmp_path), DEPTH)
    assert of is not None
    rows = DepthRows(of, FUTURES, "BTCUSDT")
    day = date(2024, 1, 15)
    pieces = list(rows.play(rows.ids(day, day), rows.snapshots(day, day)))
    assert [piece.height for piece in pieces] == [10] * 10
    assert pl.concat(pieces)["final_update_id"].to_list() == list(range(100, 200))
    assert at(tmp_path, MIDNIGHT + DAY)[:2] == (199, [(9.9, 1.0), (9.0, 199.0)])


def test_only_days_since_the_last_snapshot_are_read(tmp_path: Path) -> None:
    for day in range(6):
        since = MIDNIGHT + day * DAY
        last = 100 + 10 * day
        rows = [event(last + 1, last + 10, last, [(9.0, day + 1.0)], [], since + SECOND)]
        put(tmp_path, [snapshot(last, [(9.9, 1.0)], [(10.1, 1.0)], since), *rows] if day in (0, 3) else rows)
    truth = at(tmp_path, MIDNIGHT + 4 * DAY + 2 * SECOND)
    assert truth[:2] == (150, [(9.9, 1.0), (9.0, 5.0)])
    for path in tmp_path.glob("depth/date=*/*.parquet"):
        # A snapshot of the 19th may have been received on the 20th.
        if not "2024-01-18" <= path.parent.name.removeprefix("date=") <= "2024-01-20":
            path.unlink()
    assert at(tmp_path, MIDNIGHT + 4 * DAY + 2 * SECOND) == truth


def test_which_venue_is_meant_must_be_clear(tmp_path: Path) -> None:
    row = event(101, 101, 100, at=MIDNIGHT + SECOND)
    put(tmp_path, [BASE, row])
    put(tmp_path, [BASE, row | {"previous_update_id": None}], venue=SPOT)
    with pytest.raises(ConfigError, match="depth has BTCUSDT of binance, binance-futures: say venue="):
        at(tmp_path, MIDNIGHT + SECOND)
    assert at(tmp_path, MIDNIGHT + SECOND, venue=SPOT)[0] == 101
    assert sides(book_at("binance-futures:BTCUSDT", instant(MIDNIGHT), root=str(tmp_path)))[0] == 100


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"symbol": "BTCUSD", "time": "2024-01-15"}, "did you mean 'BTCUSDT'"),
        ({"symbol": "BTCUSD", "time": "2024-01-15", "venue": FUTURES}, "no rows of binance-futures:BTCUSD"),
        ({"symbol": "BTCUSDT", "time": "noon"}, "time='noon' is no time"),
        ({"symbol": "BTCUSDT", "time": "2024-01-15", "levels": 0}, "levels=0"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(tmp_path: Path, said: dict[str, Any], why: str) -> None:
    put(tmp_path, [BASE])
    with pytest.raises(ConfigError, match=why):
        book_at(**said, root=str(tmp_path))
    with pytest.raises(ConfigError, match="no table depth"):
        book_at("BTCUSDT", "2024-01-15", root=str(tmp_path / "elsewhere"))


@pytest.mark.parametrize(
    ("names", "venue"), [(FUTURES_CAPTURES, FUTURES), (SPOT_CAPTURES, SPOT)], ids=["usd-m", "spot"]
)
def test_real_best_prices_are_those_that_the_venue_told(
    names: list[str], venue: str, data: Path, tmp_path: Path
) -> None:
    rows, tickers = captured([data / "captures" / name for name in names])
    put(tmp_path, [row | {"time": row["time"] or rows[0]["time"] or rows[20]["time"]} for row in rows], venue=venue)
    events = {row["final_update_id"]: row["time"] for row in rows if not row["is_snapshot"]}
    both = [(update_id, told) for update_id, told in tickers.items() if update_id in events]
    compared = 0
    for update_id, told in Random(1).sample(both, 12):
        found = book_at("BTCUSDT", instant(events[update_id]), venue=venue, levels=1, root=str(tmp_path))
        if found is not None and found.update_id == update_id:
            assert (*found.bids.row(0), *found.asks.row(0)) == told
            compared += 1
    assert compared >= 8
