"""The drain: from a journal into tables exactly once, into whichever sink, whatever fails in between."""

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from crypto_lake.config import ConfigError
from crypto_lake.journal import FRAME, RESPONSE, Journal, segments
from crypto_lake.models import DATASETS, Dataset
from crypto_lake.models.frame import LAPSE, Lapse
from crypto_lake.models.gap import GAP
from crypto_lake.models.quality import QUALITY
from crypto_lake.models.rejected import REJECTED
from crypto_lake.query import read
from crypto_lake.services.drain import Drain
from crypto_lake.services.worker import check, sink_of
from crypto_lake.writers import CommitFailed, Sink

AGG_TRADE = DATASETS["agg_trade"]
NOON_MS = 1_790_164_800_000
SINKS = ["delta", "parquet", "jsonl"]
BAD = b'{"stream":"x","data":{"e":"surprise"}}'


def trade(number: int, *, symbol: str = "BTCUSDT", time_ms: int | None = None) -> bytes:
    data = {
        "e": "aggTrade", "E": NOON_MS, "s": symbol, "a": number, "p": "1.5", "q": "2", "f": number, "l": number,
        "T": NOON_MS + number if time_ms is None else time_ms, "m": True, "st": 1,
    }  # fmt: skip
    return json.dumps({"stream": f"{symbol.lower()}@aggTrade", "data": data}).encode()


def received_us(at_s: float) -> int:
    return NOON_MS * 1000 + int(at_s * 1e6)


class Bench:
    """A journal, a sink, and drains between them."""

    def __init__(self, home: Path, form: str, dataset: Dataset = AGG_TRADE) -> None:
        self.root, self.folder, self.form, self.dataset = home / "tables", home / "journal", form, dataset
        self.journal = Journal(self.folder)

    def write(self, *payloads: bytes, at_s: float = 0) -> None:
        for payload in payloads:
            self.journal.append(FRAME, b"binance-futures x", payload, received_us(at_s))
        self.journal.flush()

    def write_page(self, *ids: int) -> None:
        """An answer to a request for trades from an id on."""
        rows = [json.loads(trade(each))["data"] for each in ids]
        body = json.dumps([{name: row[name] for name in "apqflTm"} for row in rows]).encode()
        origin = f"binance-futures /fapi/v1/aggTrades?symbol=BTCUSDT&fromId={ids[0]}&limit=1000"
        self.journal.append(RESPONSE, origin.encode(), body, received_us(0))
        self.journal.flush()

    def gaps(self) -> list[tuple[int | None, int | None, str, str]]:
        """First id, last id, reason and state of the newest row of each hole, by id."""
        if not any((self.root / GAP.name).glob("date=*")):
            return []
        newest = self.rows(GAP).sort("state_time").unique(GAP.key, keep="last", maintain_order=True)
        return newest.sort("first_id").select("first_id", "last_id", "reason", "state").rows()

    def sink(self) -> Sink:
        sink = sink_of(self.form, str(self.root))  # type: ignore[arg-type]
        check(sink, [self.dataset])
        return sink

    def drain(
        self,
        sink: Sink | None = None,
        *,
        batch_messages: int = 1000,
        app: str = "me",
        clock: Callable[[], float] = lambda: 3600.0,
    ) -> Drain:
        """By its clock it is an hour past noon: nothing is waited for."""
        return Drain(
            self.dataset,
            self.folder,
            sink or self.sink(),
            collector=app,
            batch_messages=batch_messages,
            clock_us=lambda: received_us(clock()),
        )

    def rows(self, dataset: Dataset | None = None) -> pl.DataFrame:
        return read((dataset or self.dataset).name, root=str(self.root)).collect()

    def ids(self) -> list[int]:
        return sorted(self.rows()["agg_trade_id"])


@pytest.fixture(params=SINKS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, request.param)
    yield made
    made.journal.close()


@pytest.fixture
def delta(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, "delta")
    yield made
    made.journal.close()


def test_every_message_becomes_a_row_and_every_misfit_a_rejected_one(bench: Bench) -> None:
    bench.write(trade(1), BAD, trade(2), b"")
    bench.drain().run_dry()
    assert bench.ids() == [1, 2]
    assert bench.rows(REJECTED)["payload"].to_list() == [BAD.decode(), ""]


def test_a_new_drain_goes_on_where_the_last_one_committed(bench: Bench) -> None:
    bench.write(*map(trade, range(10)))
    bench.drain(batch_messages=4).step()
    assert bench.ids() == [0, 1, 2, 3]
    bench.drain(batch_messages=3).run_dry()
    bench.drain().run_dry()
    assert bench.ids() == list(range(10))


def test_midnight_by_the_venues_clock_divides_the_partitions(bench: Bench) -> None:
    midnight = NOON_MS + 12 * 3_600_000
    bench.write(trade(1, time_ms=midnight - 1), trade(2, time_ms=midnight))
    bench.drain().run_dry()
    dates = dict(bench.rows().select("agg_trade_id", "date").iter_rows())
    assert str(dates[1]) == "2026-09-23"
    assert str(dates[2]) == "2026-09-24"
    assert len(list((bench.root / "agg_trade").glob("date=*"))) == 2


def test_repeated_messages_are_one_row(bench: Bench) -> None:
    bench.write(trade(1), trade(2), trade(2), trade(1))
    drain = bench.drain()
    assert drain.step().duplicates == 2
    bench.write(trade(2), trade(3))  # in a later batch
    assert drain.step().duplicates == 1
    bench.write(trade(1), trade(4))  # after a restart
    assert bench.drain().step().duplicates == 1
    assert bench.ids() == [1, 2, 3, 4]


def test_a_late_row_is_a_row(bench: Bench) -> None:
    bench.write(trade(1), trade(5))
    drain = bench.drain()
    drain.step()
    bench.write(trade(3), trade(6))
    assert drain.step().duplicates == 0
    bench.write(trade(3), trade(4))
    assert drain.step().duplicates == 1
    assert bench.ids() == [1, 3, 4, 5, 6]


def test_symbols_do_not_stand_in_each_others_way(bench: Bench) -> None:
    bench.write(trade(100), trade(7, symbol="ETHUSDT"))
    drain = bench.drain()
    drain.step()
    bench.write(trade(8, symbol="ETHUSDT"), trade(101))
    assert drain.step().duplicates == 0


def test_rows_that_somebody_else_wrote_meanwhile_are_not_written_again(bench: Bench) -> None:
    bench.write(trade(1))
    live = bench.drain()
    live.step()
    other = Bench(bench.root.parent / "other", bench.form)
    other.root = bench.root
    other.write(trade(2), trade(3))
    other.drain(app="other").run_dry()
    other.journal.close()
    bench.write(trade(2), trade(3), trade(4))
    assert live.step().duplicates == 2
    assert bench.ids() == [1, 2, 3, 4]


def test_rows_that_somebody_else_commits_between_our_look_and_our_commit_are_not_written_again(delta: Bench) -> None:
    delta.write(trade(1))
    sink = delta.sink()
    live = delta.drain(sink)
    live.step()
    other = Bench(delta.root.parent / "other", "delta")
    other.root = delta.root
    other.write(trade(2), trade(3))
    append, others = sink.append, [other.drain(app="other")]

    def late(*args: Any, **kwargs: Any) -> None:
        if others:
            others.pop().run_dry()
        append(*args, **kwargs)

    sink.append = late  # type: ignore[method-assign]
    delta.write(trade(2), trade(3), trade(4))
    assert live.step().duplicates == 2
    assert delta.ids() == [1, 2, 3, 4]
    other.journal.close()


@pytest.mark.parametrize("fail_at", [1, 2])
def test_a_commit_that_fails_half_way_is_made_whole(bench: Bench, fail_at: int) -> None:
    bench.write(trade(1), BAD, trade(2))
    sink = bench.sink()
    appends, append = [], sink.append

    def failing(*args: Any, **kwargs: Any) -> None:
        appends.append(args)
        if len(appends) == fail_at:
            raise CommitFailed("the store is away")
        append(*args, **kwargs)

    sink.append = failing  # type: ignore[method-assign]
    drain = bench.drain(sink)
    with pytest.raises(CommitFailed):
        drain.step()
    bench.write(trade(3), BAD)  # the journal goes on; the batch must not take this in
    for again in (drain, bench.drain()):
        again.run_dry()
    assert bench.ids() == [1, 2, 3]
    assert bench.rows(REJECTED).height == 2


def test_a_crash_between_two_files_of_one_commit_is_made_whole(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "parquet")
    days = [trade(n, time_ms=NOON_MS + n * 86_400_000) for n in range(3)]
    bench.write(*days)
    bench.drain().run_dry()
    folder = bench.root / "agg_trade"
    files = sorted(folder.glob("date=*/*.parquet"))
    position = folder / ".positions" / "me.agg_trade.json"
    end = json.loads(position.read_bytes())["position"]
    position.write_text(json.dumps({"position": 0, "pending": end}))
    files[1].unlink()  # as if the crash had come between the renames
    bench.write(trade(3))
    bench.drain().run_dry()
    assert bench.ids() == [0, 1, 2, 3]
    assert set(files) < set(folder.glob("date=*/*.parquet"))
    bench.journal.close()


def test_records_that_a_power_cut_took_after_their_commit_do_not_hold_up_the_rest(delta: Bench) -> None:
    delta.write(trade(1))
    delta.drain().step()
    delta.write(BAD)  # becomes a row of `rejected` only, and is not synced when the power goes
    delta.drain().step()
    assert delta.rows(REJECTED).height == 1
    delta.journal.close()
    path = segments(delta.folder)[-1].path
    os.truncate(path, path.stat().st_size - 10)
    delta.journal = Journal(delta.folder)
    delta.write(trade(2), BAD)
    delta.drain().run_dry()
    assert delta.ids() == [1, 2]
    assert delta.rows(REJECTED).height == 2


def test_damage_in_the_journal_is_a_rejected_row(delta: Bench) -> None:
    delta.write(trade(1), trade(2), trade(3))
    delta.journal.sync()
    path = segments(delta.folder)[-1].path
    content = bytearray(path.read_bytes())
    content[content.index(b'"a": 2')] ^= 1
    path.write_bytes(content)
    delta.drain().run_dry()
    assert delta.ids() == [1, 3]
    rejected = delta.rows(REJECTED)
    assert "the journal is damaged" in rejected["reason"][0]
    assert rejected["received_time"][0].year > 2020
    assert '"s": "BTCUSDT"' in rejected["payload"][0]


def test_a_frame_of_five_megabytes_that_fits_nothing_is_kept_whole(delta: Bench) -> None:
    huge = b'{"stream":"x","data":"' + b"a" * 5_000_000 + b'"}'
    delta.write(huge, trade(1))
    delta.drain().run_dry()
    assert delta.rows(REJECTED)["payload"][0].encode() == huge
    assert delta.ids() == [1]


def test_dead_symbols_that_are_polled_again_and_again_are_written_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "delta", DATASETS["prices"])
    ticker = {
        "symbol": "DEADUSDT", "priceChange": "0", "priceChangePercent": "0", "weightedAvgPrice": "1", "lastPrice": "1",
        "lastQty": "1", "openPrice": "1", "highPrice": "1", "lowPrice": "1", "volume": "0", "quoteVolume": "0",
        "openTime": NOON_MS - 86_400_000, "closeTime": NOON_MS, "firstId": -1, "lastId": -1, "count": 0,
    }  # fmt: skip
    for _ in range(3):
        drain = bench.drain()
        for moment in range(2):
            body = json.dumps([ticker, {**ticker, "symbol": "LIVEUSDT", "closeTime": NOON_MS + moment}]).encode()
            bench.journal.append(RESPONSE, b"binance-futures /fapi/v1/ticker/24hr", body, NOON_MS * 1000)
            bench.journal.flush()
            drain.step()
    assert sorted(bench.rows()["symbol"]) == ["DEADUSDT", "LIVEUSDT", "LIVEUSDT"]
    bench.journal.close()


def test_liquidations_of_the_same_moment_are_told_apart_by_their_whole_key(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "delta", DATASETS["liquidation"])
    case = (Path(__file__).parents[1] / "wire" / "messages.jsonl").read_text().splitlines()
    one = next(json.loads(line) for line in case if '"a liquidation"' in line)["payload"]
    drain = bench.drain()
    for payload in (one, one.replace('"0.014"', '"0.015"'), one):
        bench.write(payload.encode())
        drain.step()
    assert sorted(bench.rows()["quantity"]) == [0.014, 0.015]
    bench.journal.close()


@pytest.mark.parametrize("form", SINKS)
def test_a_root_that_cannot_be_written_is_one_sentence(tmp_path: Path, form: str) -> None:
    (tmp_path / "tables").touch()
    with pytest.raises(ConfigError, match=r"LAKE_ROOT=.*tables"):
        Bench(tmp_path, form).sink()


def test_a_table_of_another_schema_is_one_sentence(tmp_path: Path) -> None:
    pl.DataFrame({"symbol": ["a"], "price": ["1"]}).write_delta(str(tmp_path / "tables" / "agg_trade"))
    with pytest.raises(ConfigError, match="table agg_trade has another schema: column venue is missing"):
        Bench(tmp_path, "delta").sink()


def test_files_do_not_go_to_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"LAKE_ROOT=.*writes to a local path only"):
        sink_of("parquet", "s3://bucket/lake").check(AGG_TRADE)
    assert not list(tmp_path.iterdir())


def test_what_another_writer_has_not_finished_is_left_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "parquet")
    bench.write(trade(1))
    bench.drain().run_dry()
    (day,) = (bench.root / "agg_trade").glob("date=*")
    names = {app: day / f".{app}.agg_trade.1-2.parquet.tmp" for app in ("me", "other")}
    for path in names.values():
        path.touch()
    bench.drain().open()
    assert [app for app, path in names.items() if path.exists()] == ["other"]
    bench.journal.close()


def test_files_do_not_go_where_a_delta_table_is(tmp_path: Path) -> None:
    Bench(tmp_path, "delta").sink()
    with pytest.raises(ConfigError, match="is a Delta table already"):
        sink_of("parquet", str(tmp_path / "tables")).check(AGG_TRADE)


def test_missing_ids_are_a_row_of_gap_in_every_sink(bench: Bench) -> None:
    bench.write(trade(1), trade(2), trade(6))
    done = bench.drain().step()
    assert bench.gaps() == [(3, 5, "sequence", "open")]
    assert [hole.ids for hole in done.revealed] == [(3, 5)]
    bench.write(trade(7))
    bench.drain().run_dry()  # a restart says nothing twice
    assert bench.rows(GAP).height == 1


def test_what_is_fetched_fills_the_gap_and_what_the_venue_lacks_is_unfillable(bench: Bench) -> None:
    bench.write(trade(1), trade(9))
    drain = bench.drain()
    drain.step()
    assert [hole.ids for hole in drain.open_holes] == [(2, 8)]
    bench.write_page(1, 2, 3, 6)
    drain = bench.drain()  # after a restart: the table remembers what is open
    drain.step()
    assert bench.gaps() == [
        (2, 3, "sequence", "filled"), (4, 5, "venue", "unfillable"), (6, 6, "sequence", "filled"),
        (7, 8, "sequence", "open"),
    ]  # fmt: skip
    assert bench.ids() == [1, 2, 3, 6, 9]
    rows = bench.rows().sort("agg_trade_id")
    assert rows["source"].to_list() == ["live", "rest", "rest", "rest", "live"]
    assert [hole.ids for hole in drain.open_holes] == [(7, 8)]


def test_a_jump_waits_for_what_may_only_be_out_of_order(bench: Bench) -> None:
    now_s = 10.0
    drain = bench.drain(clock=lambda: now_s)
    bench.write(trade(1), trade(2), trade(5), trade(6), at_s=10)
    assert drain.step().rows == 2, "what comes before the jump need not wait"
    assert drain.step().rows == 0
    bench.write(trade(3), trade(4), at_s=11)
    assert drain.step().rows == 4
    assert bench.gaps() == []
    bench.write(trade(9), at_s=11)
    assert drain.step().rows == 0
    now_s = 15.0
    assert drain.step().rows == 1
    assert bench.gaps() == [(7, 8, "sequence", "open")]
    bench.write(trade(8), at_s=15)
    drain.step()
    assert bench.gaps() == [(7, 7, "sequence", "open"), (8, 8, "sequence", "filled")]


def test_a_batch_that_ends_between_two_rows_out_of_order_shows_no_gap(delta: Bench) -> None:
    delta.write(trade(1), trade(3))
    delta.write(trade(2), trade(4), at_s=1)
    delta.drain(batch_messages=2).run_dry()
    assert delta.gaps() == []
    assert delta.ids() == [1, 2, 3, 4]


def test_a_restart_is_a_gap_from_the_last_row_to_the_first_new_one(delta: Bench) -> None:
    delta.write(trade(1))
    delta.drain().run_dry()
    lapse = Lapse(["BTCUSDT"], "restart", received_us(1), received_us(50))
    delta.journal.append(LAPSE, b"binance-futures x", json.dumps(
        {"symbols": lapse.symbols, "reason": lapse.reason, "from_us": lapse.from_us, "to_us": lapse.to_us}
    ).encode(), received_us(50))  # fmt: skip
    delta.write(trade(4), at_s=50)
    delta.drain().run_dry()
    assert delta.gaps() == [(None, None, "restart", "filled"), (2, 3, "restart", "open")]


def test_after_a_restart_the_venue_is_asked_for_what_a_symbol_that_is_mute_since_then_may_have_lost(
    delta: Bench,
) -> None:
    delta.write(trade(1), trade(2))
    delta.drain().run_dry()
    lapse = {"symbols": ["BTCUSDT"], "reason": "restart", "from_us": received_us(1), "to_us": received_us(50)}
    delta.journal.append(LAPSE, b"binance-futures x", json.dumps(lapse).encode(), received_us(50))
    delta.journal.flush()
    for _ in range(2):  # and again after one more restart
        drain = delta.drain()
        drain.step()
        assert [hole.ids[0] for hole in drain.open_holes] == [3]


@pytest.mark.parametrize("batch_messages", [1, 2, 10])
def test_prints_that_are_no_trades_use_an_id_that_is_no_hole(tmp_path: Path, batch_messages: int) -> None:
    bench = Bench(tmp_path, "delta", DATASETS["trade"])
    for number, fill in ((1, "MARKET"), (2, "NA"), (3, "MARKET")):
        data = {
            "e": "trade", "E": NOON_MS, "T": NOON_MS, "s": "BTCUSDT", "t": number, "p": "1", "q": "1", "X": fill,
            "m": True,
        }  # fmt: skip
        bench.write(json.dumps({"stream": "btcusdt@trade", "data": data}).encode())
    bench.drain(batch_messages=batch_messages).run_dry()
    assert bench.gaps() == [(2, 2, "venue", "unfillable")]
    assert bench.rows(REJECTED).height == 1
    bench.journal.close()


def test_a_row_out_of_order_that_will_be_refused_fills_nothing(delta: Bench) -> None:
    delta.write(trade(1), trade(3))
    delta.write(trade(2).replace(b'"p": "1.5"', b'"p": "-1.5"'), trade(4), at_s=1)
    delta.drain(batch_messages=2).run_dry()
    assert delta.ids() == [1, 3, 4]
    assert [gap[:2] for gap in delta.gaps()] == [(2, 2)]


def test_many_answers_in_one_batch_are_no_burden(delta: Bench) -> None:
    delta.write(trade(1), trade(5000))
    for number in range(1500):
        delta.write_page(2 * number + 1, 2 * number + 3)
    delta.drain(batch_messages=100_000).run_dry()
    assert delta.ids() == [*range(1, 3002, 2), 5000]
    assert delta.gaps()[-1] == (3002, 4999, "sequence", "open")


def test_an_answer_about_an_older_hole_proves_nothing_about_a_later_time(delta: Bench) -> None:
    delta.write(trade(1), trade(4), trade(6))
    delta.drain().run_dry()
    lapse = {"symbols": ["BTCUSDT"], "reason": "restart", "from_us": received_us(1), "to_us": received_us(5)}
    delta.journal.append(LAPSE, b"binance-futures x", json.dumps(lapse).encode(), received_us(5))
    body = json.dumps([{name: json.loads(trade(id_))["data"][name] for name in "apqflTm"} for id_ in (1, 2, 3, 4)])
    origin = b"binance-futures /fapi/v1/aggTrades?symbol=BTCUSDT&fromId=1&limit=5"
    delta.journal.append(RESPONSE, origin, body.encode(), received_us(9))
    delta.journal.flush()
    delta.drain().run_dry()
    assert (None, None, "restart", "open") in delta.gaps()


def test_a_row_that_fails_a_check_is_rejected_found_and_asked_for(delta: Bench) -> None:
    bad = trade(2).replace(b'"p": "1.5"', b'"p": "-1.5"')
    delta.write(trade(1), bad, trade(3))
    drain = delta.drain()
    assert drain.step().rejected == 1
    assert delta.ids() == [1, 3]
    assert delta.rows(REJECTED)["payload"].to_list() == [bad.decode()]
    assert delta.rows(QUALITY).filter(pl.col("check") == "price_nonpositive")["first_id"].to_list() == [2]
    assert [hole.ids for hole in drain.open_holes] == [(2, 2)]
    delta.write_page(1, 2, 3)
    drain.step()
    assert delta.gaps() == [(2, 2, "venue", "filled")]
    assert delta.ids() == [1, 2, 3]


def test_a_price_that_is_no_number_is_a_null_field(delta: Bench) -> None:
    delta.write(trade(1), trade(2).replace(b'"p": "1.5"', b'"p": "one"'))
    delta.drain().run_dry()
    assert delta.rows(REJECTED).height == 1
    assert delta.rows(QUALITY).select("check", "symbol", "severity").rows() == [("null_field", "BTCUSDT", "error")]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_lost_and_wherever_a_commit_fails_the_gaps_name_what_is_missing(delta: Bench, seed: int) -> None:
    rng = random.Random(seed)
    sink, sent = delta.sink(), iter(range(1, 10_000))
    append = sink.append

    def failing(*args: Any, **kwargs: Any) -> None:
        if rng.random() < 0.2:
            raise CommitFailed("the store is away")
        append(*args, **kwargs)
        if rng.random() < 0.1:
            raise CommitFailed("the process died behind its commit")

    sink.append = failing  # type: ignore[method-assign]
    drain = delta.drain(sink, batch_messages=7)
    for moment in range(40):
        ids = [next(sent) for _ in range(rng.randrange(1, 9))]
        kept = [each for each in ids if each == 1 or rng.random() > 0.2]
        rng.shuffle(kept)
        delta.write(*map(trade, kept), at_s=moment * 5)
        if rng.random() < 0.3 and drain.open_holes:
            first, last = drain.open_holes[0].ids
            delta.write_page(*range(max(1, first - 1), last + 2))
        try:
            drain.step()
        except CommitFailed:
            drain = delta.drain(sink, batch_messages=rng.randrange(3, 30))
    sink.append = append  # type: ignore[method-assign]
    delta.drain(sink).run_dry()
    held = delta.ids()
    assert len(held) == len(set(held))
    missing = {id_ for first, last, _, state in delta.gaps() if state != "filled" for id_ in range(first, last + 1)}
    assert missing == set(range(1, max(held) + 1)) - set(held)
