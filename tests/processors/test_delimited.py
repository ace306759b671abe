"""Lines of official files become rows: real samples, what may stand in a line, and that all ways agree."""

import csv
import re
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_lake.config import COIN_M, FUTURES, SPOT
from crypto_lake.models import DATASETS
from crypto_lake.models.agg_trade import AGG_TRADE
from crypto_lake.models.dataset import TIME, Archive, Dataset, FlatKind
from crypto_lake.models.mark_price import INDEX
from crypto_lake.models.open_interest import OPEN_INTEREST
from crypto_lake.processors.delimited import REFUSED_AT_MOST, Layout, Misfit, Parsed

WAYS = {"plain": None, "compiled": 0}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HEADER = b"agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker\n"
LINE = b"7,64999.9,0.009,11,12,1704067200365,false\n"
SAMPLES = {
    "cm_BTCUSD_PERP-liquidationSnapshot-2023-06-25.head3.csv": ("liquidation", COIN_M),
    "cm_BTCUSD_PERP-liquidationSnapshot-2024-10-01.rows.csv": ("liquidation", COIN_M),
    "cm_BTCUSD_PERP-metrics-2023-06-25.head3.csv": ("open_interest", COIN_M),
    "spot_BTCUSDT-1h-2023-03.with-hole.csv": ("bar", SPOT),
    "spot_BTCUSDT-1s-2026-09-05.head5.csv": ("bar", SPOT),
    "spot_BTCUSDT-aggTrades-2019-06-01.head5.csv": ("agg_trade", SPOT),
    "spot_BTCUSDT-aggTrades-2026-09-05.head5.csv": ("agg_trade", SPOT),
}
# A dataset, and of what venue the archives are, or in which folder the flat files.
KINDS = [(name, venue) for name, each in DATASETS.items() if each.dump for venue in each.dump.archives]
KINDS += [(name, folder) for name, each in DATASETS.items() for folder in each.flat]


def archive(dataset: Dataset, venue: str) -> Archive | FlatKind:
    if venue in dataset.flat:
        return dataset.flat[venue]
    assert dataset.dump is not None
    return dataset.dump.archives[venue]


def read(
    *pieces: bytes,
    dataset: Dataset = AGG_TRADE,
    venue: str = FUTURES,
    way: str = "plain",
    kind: Archive | FlatKind | None = None,
) -> Parsed:
    """The rows and the refused lines of a file that comes in these pieces."""
    kind = kind or archive(dataset, venue)
    layout = Layout.of(dataset, kind, pieces[0])
    layout.compiled_from_bytes = WAYS[way]
    if way == "compiled":
        pytest.importorskip("llvmlite")
    parsed = [layout.parse(piece) for piece in pieces]
    return Parsed(pl.concat(each.frame for each in parsed), [line for each in parsed for line in each.refused])


def lines(*rows: Iterable[str]) -> bytes:
    return "".join(",".join(row) + "\n" for row in rows).encode()


def prices(parsed: Parsed) -> list[float]:
    return parsed.frame["price"].to_list()


# Real samples.


def meant(text: str, dtype: pl.DataType) -> Any:
    """What a field of a real file means, by Python alone."""
    if dtype == TIME and " " in text:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    if dtype == TIME:
        return EPOCH + timedelta(microseconds=int(text) * {13: 1000, 16: 1}[len(text)])
    words = {pl.Int64(): int, pl.Float64(): float, pl.String(): str, pl.Boolean(): lambda word: word == "True"}
    return words[dtype](text) if text else None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SAMPLES)
def test_a_real_sample_is_read_as_python_reads_it(name: str, way: str, data: Path) -> None:
    dataset, kind = DATASETS[SAMPLES[name][0]], archive(DATASETS[SAMPLES[name][0]], SAMPLES[name][1])
    text = (data / "dumps" / name).read_bytes()
    rows = list(csv.reader(text.decode().splitlines()))
    rows = rows if rows[0][0].isdigit() else rows[1:]
    parsed = read(text, dataset=dataset, kind=kind, way=way)
    assert parsed.refused == []
    assert parsed.frame.schema == {name: dataset.schema[name] for name in parsed.frame.columns}
    assert set(parsed.frame.columns) == set(filter(None, kind.columns.values()))
    for place, column in enumerate(kind.columns.values()):
        if column:
            expected = [meant(row[place], dataset.schema[column]) for row in rows]
            assert parsed.frame[column].to_list() == expected, column


# Columns.


def test_a_header_is_mapped_by_name_whatever_the_order_and_what_else_there_is() -> None:
    text = (
        b"price,new,transact_time,is_buyer_maker,agg_trade_id,last_trade_id,first_trade_id,quantity\n"
        b"1.5,what,1704067200365,True,7,12,11,2\n"
    )
    row = read(text).frame.row(0, named=True)
    assert row == {
        "time": EPOCH + timedelta(milliseconds=1704067200365),
        "agg_trade_id": 7, "price": 1.5, "quantity": 2.0, "first_trade_id": 11, "last_trade_id": 12,
        "is_buyer_maker": True,
    }  # fmt: skip


def test_without_a_header_it_goes_by_place_and_the_first_line_is_a_row() -> None:
    assert read(LINE).frame.equals(read(HEADER + LINE).frame)


def test_a_header_that_lacks_columns_says_which() -> None:
    with pytest.raises(Misfit, match="the header lacks price, transact_time; it has 'agg_trade_id, quantity"):
        read(lines(["agg_trade_id", "quantity", "first_trade_id", "last_trade_id", "is_buyer_maker"]))


def test_a_header_may_lack_what_is_left_out() -> None:
    text = lines(["calc_time", "close", "close_time"], ["x", "2.5", "1704067259999"])
    parsed = read(text, dataset=DATASETS["mark_price"], kind=Archive("indexPriceKlines", INDEX))
    assert parsed.frame["index_price"].to_list() == [2.5]


def test_a_header_with_a_name_twice_is_a_misfit() -> None:
    with pytest.raises(Misfit, match="price more than once"):
        read(HEADER.replace(b"quantity", b"quantity,price"))


def test_without_a_header_the_number_of_fields_must_fit() -> None:
    with pytest.raises(
        Misfit, match="the first line has 6 fields, no header, and there should be 7: agg_trade_id, pri"
    ):
        read(LINE.replace(b",false", b""))


def test_something_that_is_no_csv_is_a_misfit() -> None:
    for text in (b"", b"\n\n", b"<html>\n", b"\xff\xfe\n", b'"agg\n'):
        with pytest.raises(Misfit):
            read(text)


def test_a_file_with_a_header_only_has_no_rows() -> None:
    parsed = read(HEADER)
    assert parsed.frame.is_empty()
    assert parsed.frame.schema["time"] == TIME
    assert parsed.refused == []


# Times.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("written", "microseconds"),
    [
        ("1704067200", 1704067200_000000),
        ("1704067200365", 1704067200_365000),
        ("1704067200365123", 1704067200_365123),
        ("1704067200365123999", 1704067200_365123),
    ],
)
def test_the_unit_of_time_is_told_by_its_digits(written: str, microseconds: int, way: str) -> None:
    text = LINE.replace(b"1704067200365", written.encode())
    assert read(text, way=way).frame["time"].to_list() == [EPOCH + timedelta(microseconds=microseconds)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pieces", [1, 2])
def test_times_of_two_units_are_a_misfit(pieces: int, way: str) -> None:
    both = [LINE * 3, LINE.replace(b"1704067200365", b"1704067200365123")]
    with pytest.raises(Misfit, match=r"there is '1704067200365123' \(us\), and before it ms"):
        read(*both if pieces == 2 else [b"".join(both)], way=way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("time", ["0", "170406720036", "-1704067200365", "99999999999999999999", "soon"])
def test_a_number_that_is_no_time_is_refused(time: str, way: str) -> None:
    odd = LINE.replace(b"1704067200365", time.encode())
    assert read(LINE + odd, way=way).refused == [(odd[:-1], f"time: '{time}' is no time")]


def test_times_may_be_texts() -> None:
    kind, rest = archive(OPEN_INTEREST, FUTURES), ["BTCUSDT", "7.5", "", "", "", "", ""]
    odd = ["2023-02-30 00:00:00", "2023-06-25 00:05:60", "2023-06-25T00:05:00", "2023-06-25"]
    text = lines(kind.columns, ["2023-06-25 00:05:01", *rest], *([time, *rest] for time in odd))
    parsed = read(text, dataset=OPEN_INTEREST)
    assert parsed.frame["time"].to_list() == [datetime(2023, 6, 25, 0, 5, 1, tzinfo=UTC)]
    assert [why for _, why in parsed.refused] == [f"time: '{time}' is no time" for time in odd]
    with pytest.raises(Misfit, match=r"'1687651200000' \(ms\), and before it text"):
        read(text + lines(["1687651200000", *rest]), dataset=OPEN_INTEREST)


# What may stand in a line.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("word", [b"true", b"True", b"TRUE", b"tRuE", b"false", b"False", b"FALSE"])
def test_booleans_have_any_case(word: bytes, way: str) -> None:
    parsed = read(LINE.replace(b"false", word), way=way)
    assert parsed.frame["is_buyer_maker"].to_list() == [word.lower() == b"true"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "written",
    [
        "0E-8",
        "1e3",
        "+1.5",
        "-1.5",
        "-0.0",
        ".5",
        "5.",
        "5000.",
        "50000000.",
        "-5.",
        "0012.50",
        '"1.5"',
        "9007199254740993.5",
        "1" * 40,
    ],
)
def test_a_number_may_be_written_in_many_ways(written: str, way: str) -> None:
    parsed = read(LINE + LINE.replace(b"64999.9", written.encode()) + LINE, way=way)
    assert prices(parsed) == [64999.9, float(written.strip('"')), 64999.9]
    assert parsed.refused == []


@pytest.mark.parametrize("way", WAYS)
def test_line_ends_empty_lines_a_bom_and_a_missing_end_change_nothing(way: str) -> None:
    text = HEADER + LINE + LINE
    expected = read(text, way=way).frame
    for other in (
        b"\xef\xbb\xbf" + text, b"\xef\xbb\xbf" + text.removeprefix(HEADER), text[:-1], b"\n\n" + text + b"\n\n",
        text.replace(b"\n", b"\r\n"), text.replace(b"\n", b"\r\n")[:-2], text.replace(b"\n", b"\n\r\n"),
        text.replace(b",", b'","').replace(b"\n", b'"\n"')[:-1].join([b'"', b""]),
    ):  # fmt: skip
        assert read(other, way=way).frame.equals(expected), other


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("field", "instead", "reason"),
    [
        (b"64999.9", b"nan", "price: 'nan' is no finite number"),
        (b"64999.9", b"-inf", "price: '-inf' is no finite number"),
        (b"64999.9", b"1e999", "price: '1e999' is no finite number"),
        (b"64999.9", b"", "price: there is nothing"),
        (b"64999.9", b'""', "price: there is nothing"),
        (b"64999.9", b" 1", "price: ' 1' is no finite number"),
        (b"64999.9", b"1 ", "price: '1 ' is no finite number"),
        (b"64999.9", b"1_0", "price: '1_0' is no finite number"),
        (b"64999.9", b"0x1", "price: '0x1' is no finite number"),
        *(
            (b"64999.9", odd, f"price: '{odd.decode()}' is no finite number")
            for odd in (b".", b"-", b"-.", b"e5", b"1.5e")
        ),
        (b"7,", b"7.0,", "agg_trade_id: '7.0' is no whole number"),
        (b"7,", b"9223372036854775808,", "agg_trade_id: '9223372036854775808' is no whole number"),
        (b"7,", b"18446744073709551621,", "agg_trade_id: '18446744073709551621' is no whole number"),
        (b"false", b"0", "is_buyer_maker: '0' is not true or false"),
        (b"false", b"maybe", "is_buyer_maker: 'maybe' is not true or false"),
        (b"1704067200365", b"170406720a365", "time: '170406720a365' is no time"),
        (b"false", b"falsely", "is_buyer_maker: 'falsely' is not true or false"),
        (b",false", b"", "6 fields instead of 7"),
        (b"false", b"false,", "8 fields instead of 7"),
        (b"0.009", b'0.0"09', "price: "),
        (b"0.009", b'"0.009', "quotes that do not fit"),
        (b"0.009", b"\xff", "'utf-8' codec can't decode"),
    ],
)
def test_a_bad_line_is_refused_with_its_bytes_and_the_others_are_rows(
    field: bytes, instead: bytes, reason: str, way: str
) -> None:
    bad = LINE.replace(field, instead, 1)
    good = [LINE.replace(b"64999.9", b"%d.5" % number) for number in range(5)]
    parsed = read(b"".join([*good[:3], bad, *good[3:]]), way=way)
    assert prices(parsed) == [0.5, 1.5, 2.5, 3.5, 4.5]
    ((line, why),) = parsed.refused
    assert line == bad[:-1]
    assert why.startswith(reason) or reason == "price: "


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_line_takes_no_others_along_however_large_the_piece(way: str) -> None:
    good = b"".join(LINE.replace(b"64999.9", b"%d.5" % number) for number in range(20_000))
    parsed = read(HEADER + good + b"so,what\n" + good, way=way)
    assert parsed.refused == [(b"so,what", "2 fields instead of 7")]
    assert prices(parsed) == [number + 0.5 for number in range(20_000)] * 2


def test_bad_lines_are_told_in_their_order() -> None:
    bad = [LINE.replace(b"64999.9", b"x"), b"so,what\n", LINE.replace(b"false", b"x"), b"\xff\n", b"7\n"]
    parsed = read(LINE + b"".join(bad) + LINE)
    assert [line + b"\n" for line, _ in parsed.refused] == bad
    assert parsed.frame.height == 2


def test_the_first_thing_that_is_wrong_with_a_line_is_told() -> None:
    bad = LINE.replace(b"7,64999.9", b"x,y")
    assert read(LINE + bad).refused == [(bad[:-1], "agg_trade_id: 'x' is no whole number")]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("last", [b"", b",Tr\xffe", b',"True', b",True,"])
def test_a_line_must_be_whole_to_its_end_even_where_nothing_is_kept(last: bytes, way: str) -> None:
    bad = LINE[:-1] + last + b"\n"
    parsed = read(LINE[:-1] + b",True\n" + bad, venue=SPOT, way=way)
    assert [line for line, _ in parsed.refused] == [bad[:-1]]
    assert parsed.frame.height == 1


def test_texts_may_be_quoted() -> None:
    kind = archive(DATASETS["liquidation"], COIN_M)
    row = ["1687656471926", '"BUY"', '"LI,MIT"', '"I ""O"" C"', "7", "1", "1", "FILLED", "6", "7"]
    frame = read(lines(kind.columns, row), dataset=DATASETS["liquidation"], venue=COIN_M).frame
    assert frame.select("side", "order_type", "time_in_force", "status").row(0) == (
        "BUY",
        "LI,MIT",
        'I "O" C',
        "FILLED",
    )


@pytest.mark.parametrize("way", WAYS)
def test_nothing_in_a_column_that_may_be_null_is_null(way: str) -> None:
    dataset = DATASETS["book_ticker"]
    kind = archive(dataset, FUTURES)
    rows = [["1", "2.5", "3", "4.5", "5", "1704067200365", time] for time in ("1704067200366", "", "1704067200368")]
    parsed = read(lines(kind.columns, *rows), dataset=dataset, way=way)
    times = [each and each.microsecond for each in parsed.frame["event_time"].to_list()]
    assert times == [366_000, None, 368_000]
    assert parsed.refused == []


def test_what_is_left_out_is_not_looked_at() -> None:
    kind = archive(DATASETS["trade"], FUTURES)
    text = lines(kind.columns, ["1", "2.5", "3", "a word", "1704067200365", "true"])
    assert read(text, dataset=DATASETS["trade"]).frame.height == 1


# Files of another kind.


def test_a_file_of_which_no_line_fits_is_a_misfit() -> None:
    with pytest.raises(Misfit, match=r"no line fits; the first of them is '7,x,.*': price: 'x' is no finite number"):
        read(HEADER + LINE.replace(b"64999.9", b"x") * 3)


def test_a_last_piece_of_which_no_line_fits_is_none() -> None:
    assert read(LINE, b"7,x\n").refused == [(b"7,x", "2 fields instead of 7")]


def test_too_many_bad_lines_are_a_misfit() -> None:
    assert len(read(LINE, b"x\n" * REFUSED_AT_MOST).refused) == REFUSED_AT_MOST
    with pytest.raises(
        Misfit, match=f"more than {REFUSED_AT_MOST} lines do not fit; the first of them is 'x': 1 field"
    ):
        read(LINE, b"x\n" * REFUSED_AT_MOST, b"x\n")


# All ways agree.

NUMBERS = st.one_of(
    st.decimals(-10, 10**12, places=8).map(str),
    st.decimals(0, 10**6, places=1).map(str),
    st.integers(0, 10**20).map(str),
    st.floats(allow_nan=False).map(repr),
    st.sampled_from(
        ["", "0", "0.0", "-0", "+1", "1.", ".5", "1e5", "0E-8", "nan", "x", ".", "-", " 1", '"1"', "1,2", "\r", "1.5.5"]
    ),
)
WHOLES = st.one_of(
    st.integers(0, 2**64).map(str), st.integers(10**9, 10**10).map(str), st.sampled_from(["-1", "+5", "007", "", "1.0"])
)
TIMES = st.one_of(
    st.integers(1_500_000_000_000, 1_900_000_000_000).map(str), st.sampled_from(["1704067200365", "0", "170406720036"])
)
FLAGS = st.sampled_from(["true", "false", "True", "False", "TRUE", "t", "truex", "", "falsE"])
ODD_TEXTS = [
    "ünïcode",
    "é",
    '"',
    "a" * 90,
    "a\x00b",
    "-",
    "12345678.5",
    '"12,37"',
    '""',
    '"a""b"',
    'a"b',
    '"x"y',
    " A ",
]
TEXTS = st.sampled_from(["BUY", "SELL", "", "0", "True", "NULL", "nan", "O:AAPL260618C00100000", *ODD_TEXTS])
BY_TYPE = {pl.Int64(): WHOLES, pl.Float64(): NUMBERS, TIME: TIMES, pl.Boolean(): FLAGS, pl.String(): TEXTS}
PLAIN = {
    pl.Int64(): st.integers(0, 2**63 - 1).map(str),
    pl.Float64(): st.one_of(
        st.decimals(0, 10**6, places=8).map(str), st.decimals(-10, 10**6, places=2).map(str),
        st.integers(0, 10**6).map(str),
    ),
    TIME: st.integers(1_500_000_000_000, 1_900_000_000_000).map(str),
    pl.Boolean(): st.sampled_from(["true", "False"]),
    pl.String(): st.sampled_from(["BUY", "0", "True", "1704067200365", "A", "O:A260618C00100000", "O:A260618P001"]),
}  # fmt: skip


@st.composite
def files(draw: st.DrawFn) -> tuple[str, str, list[bytes]]:
    """A file of any kind in pieces, some fields of it odd."""
    name, venue = draw(st.sampled_from(KINDS))
    dataset = DATASETS[name]
    columns = archive(dataset, venue).columns
    types = [dataset.schema[column] if column else pl.String() for column in columns.values()]
    is_odd = draw(st.sampled_from([False, False, True]))
    texts = []
    for _ in range(draw(st.integers(1, 3))):
        rows = draw(st.lists(st.tuples(*(PLAIN[dtype] for dtype in types)).map(list), min_size=1, max_size=12))
        for row in rows if is_odd else []:
            if draw(st.integers(0, 3)) == 0:
                place = draw(st.integers(0, len(row) - 1))
                row[place] = draw(BY_TYPE[types[place]])
        texts.append(lines(*rows))
    end = draw(st.sampled_from(["\n", "\r\n", "1,2\n", "x"])).encode() if is_odd else b""
    texts[0] = lines(columns) + texts[0] if draw(st.booleans()) else texts[0]
    return name, venue, [*texts, end] if end else texts


def outcome(pieces: Sequence[bytes], **how: Any) -> Any:
    try:
        return read(*pieces, **how)
    except Misfit as misfit:
        return str(misfit)


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, str) or isinstance(other, str):
        assert one == other
        return
    assert one.refused == other.refused
    assert one.frame.schema == other.frame.schema
    # Not `equals`, for which -0.0 is 0.0.
    bits = [each.frame.with_columns(pl.selectors.float().reinterpret(signed=True)) for each in (one, other)]
    assert bits[0].equals(bits[1])


@settings(deadline=None, max_examples=300)
@given(files())
def test_the_compiled_way_and_the_plain_way_agree(file: tuple[str, str, list[bytes]]) -> None:
    dataset, (venue, pieces) = DATASETS[file[0]], file[1:]
    assert_same(
        outcome(pieces, dataset=dataset, venue=venue, way="compiled"),
        outcome(pieces, dataset=dataset, venue=venue, way="plain"),
    )


@settings(deadline=None, max_examples=200)
@given(files())
def test_a_line_is_the_same_row_alone_and_among_others(file: tuple[str, str, list[bytes]]) -> None:
    dataset, (venue, pieces) = DATASETS[file[0]], file[1:]
    together = outcome([b"".join(pieces)], dataset=dataset, venue=venue)
    alone = outcome(re.findall(rb"[^\n]*\n|[^\n]+$", b"".join(pieces)), dataset=dataset, venue=venue)
    # A file that begins with a line that does not fit is a misfit unless one that fits comes with it.
    if not (isinstance(alone, str) and "no line fits" in alone):
        assert_same(together, alone)


def test_lines_with_nothing_unusual_go_the_compiled_way() -> None:
    digits = pytest.importorskip("crypto_lake.processors.digits")
    text = b"1.5,12,ignored,true,1704067200365\n-23.00000042,1234567890123456789,,False,1704067200366\n"
    unit = {"least": 10**12, "most": 10**13 - 1, "scale": 1000}
    numbers, wholes, flags, times = digits.read_columns(text, ("number", "whole", "skip", "flag", "time"), **unit)
    assert numbers.tolist() == [1.5, -23.00000042]
    assert wholes.tolist() == [12, 1234567890123456789]
    assert flags.tolist() == [0b01]
    assert times.tolist() == [1704067200365000, 1704067200366000]


def test_texts_go_the_compiled_way_with_their_neighbours_and_what_is_not_there_has_its_own_sign() -> None:
    digits = pytest.importorskip("crypto_lake.processors.digits")
    text = b'AAPL,1.5,\nAAPL,,7\n"12,37",2,8\n,3,9\nO:AAPL260618C00100000,4,1\nO:AAPL260618C00100001,5,2\n' * 2
    texts, numbers, wholes = digits.read_columns(
        text, ("text", "maybe number", "maybe whole"), least=0, most=0, scale=1
    )
    found = [texts.distinct[place].as_py() for place in texts.places.tolist()]
    assert found == ["AAPL", "AAPL", "12,37", "", "O:AAPL260618C00100000", "O:AAPL260618C00100001"] * 2
    assert len(texts.distinct) == 10  # neighbours that are equal share one
    assert [number != number for number in numbers.tolist()[:3]] == [False, True, False]
    assert wholes.tolist()[:3] == [digits.NO_WHOLE, 7, 8]


@settings(deadline=None, max_examples=1000)
@given(st.one_of(st.integers(0, 10**21), st.integers(2**53 - 9, 2**54)), st.integers(0, 21))
def test_the_compiled_way_finds_the_nearest_double_or_leaves_it(digits_: int, places: int) -> None:
    digits = pytest.importorskip("crypto_lake.processors.digits")
    text = str(digits_).rjust(places + 1, "0")
    text = f"{text[:-places]}.{text[-places:]}" if places else text
    try:
        (found,) = digits.read_columns(f"{text}\n".encode(), ("number",), least=0, most=0, scale=0)
    except digits.Unusual:
        stripped = text.rstrip("0") if places else text
        assert int(stripped.replace(".", "")) > 2**53 or len(text.replace(".", "")) > 19
    else:
        assert struct.pack("d", found[0]) == struct.pack("d", float(text))


def test_no_row_is_lost_when_lines_get_shorter() -> None:
    digits = pytest.importorskip("crypto_lake.processors.digits")
    long = b"".join(b"%d,64999.%09d,%s,true\n" % (number, number, b"left out" * 6) for number in range(2000))
    short = b"".join(b"%d,1.5,,false\n" % number for number in range(40_000))
    numbers, prices, flags = digits.read_columns(
        long + short, ("whole", "number", "skip", "flag"), least=0, most=0, scale=0
    )
    assert numbers.tolist() == [*range(2000), *range(40_000)]
    assert prices.tolist() == [float(f"64999.{number:09}") for number in range(2000)] + [1.5] * 40_000
    assert sum(map(int.bit_count, flags.tolist())) == 2000


@pytest.mark.parametrize("way", WAYS)
def test_the_frame_does_not_change_with_the_buffer_it_was_read_from(way: str) -> None:
    buffer = bytearray(HEADER + LINE * 1000)
    layout = Layout.of(AGG_TRADE, archive(AGG_TRADE, FUTURES), memoryview(buffer))
    layout.compiled_from_bytes = WAYS[way]
    frame = layout.parse(memoryview(buffer)).frame
    buffer[:] = b"9" * len(buffer)
    assert frame.equals(read(HEADER + LINE * 1000).frame)


def test_what_is_fast_is_not_needed() -> None:
    code = (
        "import sys; sys.modules['llvmlite'] = sys.modules['isal'] = None\n"
        "from crypto_lake.processors.delimited import Layout\n"
        "from crypto_lake.models.agg_trade import AGG_TRADE\n"
        "from crypto_lake.backfill import unpack\n"
        f"text = {LINE!r} * 100_000\n"
        f"layout = Layout.of(AGG_TRADE, AGG_TRADE.dump.archives[{FUTURES!r}], text)\n"
        "assert layout.parse(text).frame.height == 100_000\n"
        "assert unpack.FASTEST.__module__ == 'gzip'\n"
        "assert 'crypto_lake.processors.digits' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("way", WAYS)
def test_a_text_at_the_end_of_a_line_is_without_the_lines_end(way: str) -> None:
    kind = DATASETS["bar"].flat["us_indices/day_aggs_v1"]
    header = "open,close,high,low,window_start,ticker\r\n"
    rows = "".join(f"1,2,3,0.5,1779422400000000000,{ticker}\r\n" for ticker in ("A", "A", "BB", "C.D"))
    parsed = read(f"{header}{rows}".encode(), dataset=DATASETS["bar"], kind=kind, way=way)
    assert parsed.frame["symbol"].to_list() == ["A", "A", "BB", "C.D"]
