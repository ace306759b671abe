"""The journal: what was appended comes back, whatever happened to the file meanwhile."""

import itertools
import os
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_lake.config import ConfigError
from crypto_lake.journal import (
    ALIVE,
    CLOSED,
    DOUBT,
    FRAME,
    LAPSE,
    OPENED,
    RESPONSE,
    Journal,
    backlog,
    end_of,
    read,
    read_all,
    segments,
)
from crypto_lake.journal.record import MARK_BYTES, pack, scan
from crypto_lake.models.frame import Records

ORIGIN = b"binance-futures public"


def fill(journal: Journal, payloads: list[bytes]) -> None:
    for number, payload in enumerate(payloads):
        journal.append(FRAME, ORIGIN, payload, 1_700_000_000_000_000 + number)
    journal.flush()


def payloads_of(directory: Path) -> list[bytes]:
    return [record.payload for record in read_all(directory)]


@given(st.lists(st.tuples(st.integers(1, 4), st.binary(max_size=40), st.binary(max_size=200)), max_size=20))
def test_what_is_packed_is_scanned(items: list[tuple[int, bytes, bytes]]) -> None:
    buffer = b"".join(pack(kind, origin, payload, n) for n, (kind, origin, payload) in enumerate(items))
    found = Records(end=0)
    assert scan(buffer, found, start=0, at_most=100) == len(buffer)
    assert list(zip(found.kinds, found.origins, found.payloads, strict=True)) == items
    assert found.received_us == list(range(len(items)))


@given(st.binary(min_size=1, max_size=100), st.data())
def test_a_changed_bit_is_never_taken_for_a_record(payload: bytes, data: st.DataObject) -> None:
    good = bytearray(pack(FRAME, ORIGIN, payload, 1))
    bit = data.draw(st.integers(0, len(good) * 8 - 1))
    good[bit // 8] ^= 1 << bit % 8
    assert scan(bytes(good), Records(end=0), start=0, at_most=1) == 0


def test_records_come_back_in_order_with_time_kind_and_origin(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append(OPENED, ORIGIN, b"{}", 5)
    journal.append(FRAME, ORIGIN, "币安人生".encode(), 6)
    journal.close()
    assert [tuple(record) for record in read_all(tmp_path / "j")] == [
        (OPENED, ORIGIN.decode(), 5, b"{}"),
        (FRAME, ORIGIN.decode(), 6, "币安人生".encode()),
    ]


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    fill(journal, [b"%d" % n for n in range(10)])
    first = read(tmp_path, 0, at_most=4)
    second = read(tmp_path, first.end, at_most=100)
    assert first.payloads + second.payloads == [b"%d" % n for n in range(10)]
    assert read(tmp_path, second.end).end == second.end == journal.end
    journal.close()


def test_reading_stops_at_a_position_asked_for(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    fill(journal, [b"a", b"b", b"c"])
    middle = read(tmp_path, 0, at_most=2).end
    assert read(tmp_path, 0, until=middle).payloads == [b"a", b"b"]
    journal.close()


def test_files_rotate_and_positions_only_rise(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=100)
    for number in range(30):
        fill(journal, [b"%d" % number])
    files = segments(tmp_path)
    assert len(files) > 5
    assert all(before.end <= after.start for before, after in itertools.pairwise(files))
    assert payloads_of(tmp_path) == [b"%d" % n for n in range(30)]
    journal.close()


@pytest.mark.parametrize("cut", [1, 3, 19, 21, 30])
def test_a_torn_tail_is_cut_and_counted(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path)
    fill(journal, [b"first", b"second"])
    journal.close()
    path = segments(tmp_path)[-1].path
    size = path.stat().st_size
    os.truncate(path, size - cut)
    again = Journal(tmp_path)
    assert again.cut_bytes == len(pack(FRAME, ORIGIN, b"second", 1)) - cut
    fill(again, [b"third"])
    assert payloads_of(tmp_path) == [b"first", b"third"]
    again.close()


def test_no_position_is_used_twice_even_when_the_tail_was_lost(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    fill(journal, [b"committed, but not yet synced"])
    committed = journal.end
    journal.close()
    os.truncate(segments(tmp_path)[-1].path, 30)  # what a power cut leaves
    again = Journal(tmp_path)
    fill(again, [b"new"])
    assert read(tmp_path, committed).payloads == [b"new"]
    again.close()


def test_a_thrown_away_journal_starts_behind_the_old_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    fill(journal, [b"old"])
    journal.close()
    old = end_of(tmp_path)
    for segment in segments(tmp_path):
        segment.path.unlink()
    again = Journal(tmp_path)
    assert again.end > old
    again.close()


def test_damage_in_the_middle_is_set_aside_and_reading_goes_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    fill(journal, [b"first", b"second " + MARK_BYTES * 3, b"third"])
    journal.close()
    path = segments(tmp_path)[-1].path
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"second")] ^= 1
    path.write_bytes(damaged)
    first = read(tmp_path, 0)
    assert first.payloads == [b"first"] + [b"third"] * (len(first) - 1)
    rest = read(tmp_path, first.end)
    assert first.payloads + rest.payloads == [b"first", b"third"]
    assert b"econd" in (first.damaged + rest.damaged)[0][1]


def test_a_half_written_record_is_waited_for(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    fill(journal, [b"first"])
    whole = pack(FRAME, ORIGIN, b"second", 1)
    path = segments(tmp_path)[-1].path
    with path.open("ab") as file:
        file.write(whole[:25])
    got = read(tmp_path, 0)
    assert (got.payloads, got.damaged) == ([b"first"], [])
    with path.open("ab") as file:
        file.write(whole[25:])
    assert read(tmp_path, got.end).payloads == [b"second"]
    journal.close()


def test_a_record_larger_than_a_chunk_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crypto_lake.journal.reader.CHUNK_BYTES", 100)
    journal = Journal(tmp_path)
    sent = [b"a" * 30, b"b" * 5000, b"c" * 90, b"d"]
    fill(journal, sent)
    assert payloads_of(tmp_path) == sent
    journal.close()


def test_a_full_disk_keeps_everything_waiting(tmp_path: Path) -> None:
    import resource
    import signal

    journal = Journal(tmp_path)
    fill(journal, [b"before"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.end - segments(tmp_path)[0].start + 30, hard))
        journal.append(FRAME, ORIGIN, b"during", 1)
        with pytest.raises(OSError, match="large"):
            journal.flush()
        assert journal.waiting_bytes == len(pack(FRAME, ORIGIN, b"during", 1))
        assert payloads_of(tmp_path) == [b"before"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    journal.flush()
    assert payloads_of(tmp_path) == [b"before", b"during"]
    assert journal.waiting_bytes == 0
    journal.close()


def test_only_what_is_committed_and_old_is_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=100)
    for number in range(20):
        fill(journal, [b"%d" % number])
    committed = segments(tmp_path)[3].end
    assert journal.forget(committed, older_than_us=0) == 0
    assert journal.forget(committed, older_than_us=2**62) > 0
    assert segments(tmp_path)[0].start >= committed
    assert backlog(tmp_path, committed) == sum(s.end - s.start for s in segments(tmp_path))
    journal.forget(2**62, older_than_us=2**62)
    assert len(segments(tmp_path)) == 1
    journal.close()


def test_a_second_writer_is_told_so(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(ConfigError, match="another crypto-lake"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_a_journal_knows_when_each_origin_was_heard_last(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.heard_us(b"a") is None
    for kind, origin, time_us in ((FRAME, b"a", 10), (ALIVE, b"a", 20), (LAPSE, b"a", 30), (RESPONSE, b"b", 25)):
        journal.append(kind, origin, b"{}", time_us)
    journal.append(CLOSED, b"b", b"{}", 40)
    journal.close()
    journal = Journal(tmp_path)  # a run that hears nothing
    journal.append(OPENED, b"a", b"{}", 50)
    journal.close()
    again = Journal(tmp_path)
    assert [again.heard_us(origin) for origin in (b"a", b"b", b"c")] == [20, 25, None]
    again.close()


def test_a_torn_record_was_not_heard(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    fill(journal, [b"first", b"second"])
    journal.close()
    (segment,) = segments(tmp_path)
    os.truncate(segment.path, segment.path.stat().st_size - 1)
    again = Journal(tmp_path)
    assert again.cut_bytes > 0
    assert again.heard_us(ORIGIN) == 1_700_000_000_000_000
    again.close()


def test_an_origin_that_was_never_heard_is_taken_for_its_like(tmp_path: Path) -> None:
    with closing(Journal(tmp_path)) as journal:
        journal.append(FRAME, b"venue trades 0 aa", b"x", 20)
        journal.append(FRAME, b"venue trades 1 bb", b"x", 30)
        journal.append(FRAME, b"venue depth 0 cc", b"x", 40)
    with closing(Journal(tmp_path)) as again:
        assert again.heard_us(b"venue trades 0 dd", or_any=b"venue trades ") == 30
        assert again.heard_us(b"venue trades 0 aa", or_any=b"venue trades ") == 20
        assert again.heard_us(b"venue books 0 aa", or_any=b"venue books ") is None


def test_a_time_in_doubt_is_known_to_the_next_writer_unless_it_was_settled(tmp_path: Path) -> None:
    with closing(Journal(tmp_path)) as journal:
        journal.append(FRAME, ORIGIN, b"x", 20)
        journal.append(ALIVE, ORIGIN, DOUBT, 21)
        journal.append(FRAME, ORIGIN, b"x", 50)
        journal.append(FRAME, ORIGIN, b"x", 60)
    with closing(Journal(tmp_path)) as again:
        assert (again.heard_us(ORIGIN), again.doubt_us(ORIGIN)) == (60, (21, 50))
        again.append(ALIVE, ORIGIN, b"", 70)
    with closing(Journal(tmp_path)) as third:
        assert (third.heard_us(ORIGIN), third.doubt_us(ORIGIN)) == (70, None)


def test_what_is_collected_by_which_origin_outlives_files_and_runs(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, segment_bytes=100)) as journal:
        assert journal.carried is None
        journal.carry(b"venue trades 0 aa", ["BTC", "ETH"], 10)
        journal.carry(b"other trades 0 aa", ["BTC"], 10)
        fill(journal, [b"x" * 200])
        journal.flush()
        fill(journal, [b"in another file"])
        journal.flush()
        assert journal.waiting_bytes == 0
    segments(tmp_path)[0].path.unlink()  # in the tables, and forgotten
    with closing(Journal(tmp_path)) as again:
        assert again.carried == {b"venue trades 0 aa": ("BTC", "ETH"), b"other trades 0 aa": ("BTC",)}
        again.carry(b"venue trades 0 bb", ["BTC", "SOL"], 20)
        assert again.carried[b"venue trades 0 aa"] == ("ETH",)
        again.drop("venue", ["ETH"], 30)
    with closing(Journal(tmp_path)) as third:
        assert third.carried == {b"other trades 0 aa": ("BTC",), b"venue trades 0 bb": ("BTC", "SOL")}
        third.drop("venue", ["BTC", "SOL"], 40)
        third.drop("other", ["BTC"], 40)
    with closing(Journal(tmp_path)) as last:
        assert last.carried is not None  # nothing is collected, and that is known
        assert not any(last.carried.values())
