"""The bucket as clients see it: files, ranges, sums, and the listing in pages."""

import asyncio
import hashlib
import io
import os
import re
import sys
import zipfile
from collections.abc import AsyncIterator, Mapping
from typing import Any
from xml.etree import ElementTree as ET

import aiohttp
import pytest

from crypto_lake.config import Settings
from crypto_lake.simulator import Dumps, GeneratedMarket, ReplayedMarket, Simulator

NEW_YEAR_MS = 1_735_689_600_000
UM, SPOT = "data/futures/um/daily/aggTrades", "data/spot/daily/aggTrades"
PATH = f"{UM}/BTCUSDT/BTCUSDT-aggTrades-2024-12-31.zip"
S3 = "{http://s3.amazonaws.com/doc/2006-03-01/}"


def a_market(**settings: Any) -> GeneratedMarket:
    """Some minutes around New Year, all over."""
    market = GeneratedMarket(
        **{
            "futures": ("BTCUSDT", "A&B<币>USDT"),
            "rate": 5,
            "others_every_ms": 10_000,
            "start_ms": NEW_YEAR_MS - 360_000,
            "total": 2_400,
            "dumps": True,
            **settings,
        }
    )
    for _ in market.frames(1_000_000):
        pass
    return market


class Client:
    """Asks and reads to the end."""

    def __init__(self, exchange: Simulator, session: aiohttp.ClientSession) -> None:
        self.exchange, self._session = exchange, session

    async def asked(self, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, Mapping[str, str]]:
        """Status, body, headers; `if_range="x"` is `If-Range: x`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._session.request(method, f"{self.exchange.rest_url}/{path}", headers=named) as answer:
            return answer.status, await answer.read(), answer.headers

    async def body(self, path: str) -> bytes:
        status, body, _ = await self.asked(path)
        assert status == 200
        return body

    async def listed(self, **query: str) -> ET.Element:
        """The answer of the listing."""
        async with self._session.get(
            self.exchange.rest_url, params={k.replace("_", "-"): v for k, v in query.items()}
        ) as answer:
            assert (answer.status, answer.content_type) == (200, "application/xml")
            return ET.fromstring(await answer.text())


@pytest.fixture(scope="module")
def market() -> GeneratedMarket:
    return a_market()


@pytest.fixture
async def client(market: GeneratedMarket) -> AsyncIterator[Client]:
    async with Simulator(market, dumps=True) as exchange, aiohttp.ClientSession() as session:
        yield Client(exchange, session)


def texts(page: ET.Element, path: str) -> list[str]:
    return [each.text or "" for each in page.findall("/".join(S3 + name for name in path.split("/")))]


async def test_every_file_is_one_csv_of_its_name_with_a_sum_beside_it(client: Client) -> None:
    paths = client.exchange.dumps.paths()
    assert len(paths) > 50
    endings = set()
    for path in paths:
        archive, line = await client.body(path), (await client.body(f"{path}.CHECKSUM")).decode()
        name = path.rpartition("/")[2]
        assert line.rstrip("\n") == f"{hashlib.sha256(archive).hexdigest()}  {name}"
        endings.add(line[-1])
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            assert opened.namelist() == [name.replace(".zip", ".csv")]
            assert opened.read(opened.namelist()[0]) == client.exchange.dumps.csv(path)
    assert endings == {"p", "\n"}


async def test_what_is_not_published_is_404_in_the_words_of_s3(client: Client) -> None:
    for path in (
        f"{UM}/BTCUSDT/BTCUSDT-aggTrades-2025-01-01.zip",
        f"{UM}/BTCUSDT/BTCUSDT-aggTrades-2025-01-01.zip.CHECKSUM",
        f"{UM}/BTCUSDT/BTCUSDT-aggTrades-2024-12-30.zip",
        f"{UM}/NOSUCH/NOSUCH-aggTrades-2024-12-31.zip",
        f"{UM}/BTCUSDT/ETHUSDT-aggTrades-2024-12-31.zip",
        "data/nothing",
    ):
        for method in ("GET", "HEAD"):
            status, body, _ = await client.asked(path, method)
            assert status == 404
            assert (b"<Code>NoSuchKey</Code>" in body) == (method == "GET")
    assert (await client.asked("fapi/v1/nothing"))[1].startswith(b"404")


async def test_head_says_what_get_would(client: Client) -> None:
    status, body, headers = await client.asked(PATH, "HEAD")
    _, whole, same = await client.asked(PATH)
    assert (status, body, int(headers["Content-Length"])) == (200, b"", len(whole))
    for name in ("ETag", "Last-Modified", "Accept-Ranges", "Content-Length"):
        assert headers[name] == same[name]
    assert headers["ETag"] == f'"{hashlib.md5(whole).hexdigest()}"'
    assert headers["Last-Modified"] == "Wed, 01 Jan 2025 00:00:00 GMT"


async def test_ranges_are_parts_of_the_whole(client: Client) -> None:
    whole = await client.body(PATH)
    size = len(whole)
    for asked, first, stop in (
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        (f"bytes={size - 5}-", size - 5, size),
        (f"bytes=100-{size + 100}", 100, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=-{size + 7}", 0, size),
    ):
        status, body, headers = await client.asked(PATH, Range=asked)
        assert (status, body) == (206, whole[first:stop])
        assert headers["Content-Range"] == f"bytes {first}-{stop - 1}/{size}"
    for beyond in (f"bytes={size}-", "bytes=-0"):
        status, body, headers = await client.asked(PATH, Range=beyond)
        assert (status, headers["Content-Range"]) == (416, f"bytes */{size}")
    for nonsense in ("bytes=9-3", "bytes=-", "bytes=0-1,4-5", "rows=0-1"):
        assert (await client.asked(PATH, Range=nonsense))[:2] == (200, whole)
    assert [each.range for each in client.exchange.dumps.served][1:3] == ["bytes=0-0", "bytes=10-19"]
    assert [each.status for each in client.exchange.dumps.served] == [200] + [206] * 6 + [416] * 2 + [200] * 4


async def test_a_range_of_another_file_is_the_whole_of_this_one(client: Client) -> None:
    _, whole, headers = await client.asked(PATH)
    for same in (headers["ETag"], headers["Last-Modified"]):
        assert (await client.asked(PATH, Range="bytes=5-", If_Range=same))[:2] == (206, whole[5:])
    for other in ('"0123"', "Wed, 01 Jan 2020 00:00:00 GMT"):
        assert (await client.asked(PATH, Range="bytes=5-", If_Range=other))[:2] == (200, whole)
    assert (await client.asked(PATH, If_None_Match=headers["ETag"]))[:2] == (304, b"")
    assert (await client.asked(PATH, If_None_Match='"0123"'))[0] == 200
    assert (await client.asked(PATH, If_Match=headers["ETag"]))[0] == 200
    assert (await client.asked(PATH, If_Match='"0123"'))[0] == 412


async def test_the_listing_says_of_each_key_what_head_says(client: Client) -> None:
    page = await client.listed(prefix="data/futures/cm/")
    keys = texts(page, "Contents/Key")
    of_coin_m = [path for path in client.exchange.dumps.paths() if path.startswith("data/futures/cm/")]
    assert keys == [key for path in of_coin_m for key in (path, f"{path}.CHECKSUM")]
    sizes, etags = texts(page, "Contents/Size"), texts(page, "Contents/ETag")
    for key, size, etag in zip(keys, sizes, etags, strict=True):
        _, _, headers = await client.asked(key, "HEAD")
        assert (headers["Content-Length"], headers["ETag"]) == (size, etag)
    assert set(texts(page, "Contents/LastModified")) == {"2025-01-01T00:00:00.000Z"}
    assert (texts(page, "IsTruncated"), texts(page, "Prefix")) == (["false"], ["data/futures/cm/"])


async def test_pages_without_a_delimiter_go_on_from_their_last_key(client: Client, talk: Any) -> None:
    keys, marker, pages = [], "", 0
    for _ in talk.tries():
        page = await client.listed(prefix="data/", max_keys="13", marker=marker)
        keys += texts(page, "Contents/Key")
        pages += 1
        assert not texts(page, "NextMarker")
        if texts(page, "IsTruncated") == ["false"]:
            break
        marker = keys[-1]
    assert keys == [key for path in client.exchange.dumps.paths() for key in (path, f"{path}.CHECKSUM")]
    assert pages == -(-len(keys) // 13)


@pytest.mark.parametrize("most", ["1", "2", "1000"])
async def test_pages_with_a_delimiter_name_folders_once_and_say_where_to_go_on(
    client: Client, talk: Any, most: str
) -> None:
    folders, marker = [], ""
    for _ in talk.tries():
        page = await client.listed(prefix="data/futures/um/daily/", delimiter="/", max_keys=most, marker=marker)
        folders += texts(page, "CommonPrefixes/Prefix")
        assert not texts(page, "Contents/Key")
        if texts(page, "IsTruncated") == ["false"]:
            break
        (marker,) = texts(page, "NextMarker")
    assert not texts(page, "NextMarker")
    names = ("aggTrades", "bookTicker", "indexPriceKlines", "klines", "markPriceKlines", "metrics", "trades")
    assert folders == [f"data/futures/um/daily/{name}/" for name in names]


async def test_names_that_xml_or_addresses_would_not_take_are_escaped(client: Client) -> None:
    page = await client.listed(prefix=f"{UM}/", delimiter="/")
    assert texts(page, "CommonPrefixes/Prefix") == [f"{UM}/A&B<币>USDT/", f"{UM}/BTCUSDT/"]
    page = await client.listed(prefix=f"{UM}/A&B<币>USDT/", delimiter="/")
    path, its_sum = texts(page, "Contents/Key")
    assert path == f"{UM}/A&B<币>USDT/A&B<币>USDT-aggTrades-2024-12-31.zip"
    assert (await client.body(its_sum)).decode().rstrip().endswith("  A&B<币>USDT-aggTrades-2024-12-31.zip")


async def test_a_page_has_a_thousand_keys_at_the_most() -> None:
    dumps = Dumps()
    for number in range(600):
        dumps.add(f"{SPOT}/X/X-aggTrades-{number}.zip", "1,2\n")
    async with Simulator(a_market(total=1), dumps=dumps) as exchange, aiohttp.ClientSession() as session:
        client = Client(exchange, session)
        page = await client.listed(prefix=SPOT, max_keys="5000")
        assert (len(texts(page, "Contents/Key")), texts(page, "IsTruncated")) == (1000, ["true"])
        page = await client.listed(prefix=SPOT, marker=texts(page, "Contents/Key")[-1])
        assert (len(texts(page, "Contents/Key")), texts(page, "IsTruncated")) == (200, ["false"])
        page = await client.listed(prefix=SPOT, max_keys="0")
        assert (len(texts(page, "Contents/Key")), texts(page, "IsTruncated")) == (0, ["false"])
        status, body, _ = await client.asked("?max-keys=many")
        assert (status, b"<Code>InvalidArgument</Code>" in body) == (400, True)
        assert exchange.dumps.served[-1][:3] == ("GET", "?max-keys=many", 400)


async def test_files_of_one_s_own_are_served_beside_those_of_the_market(market: GeneratedMarket) -> None:
    dumps = Dumps()
    async with Simulator(market, dumps=dumps) as exchange, aiohttp.ClientSession() as session:
        client = Client(exchange, session)
        path = f"{SPOT}/X/X-aggTrades-2019-06-01.zip"
        dumps.add(path, "1,5.0\n2,6.0\n", header="id,price")
        assert dumps.rows(path) == ["1,5.0", "2,6.0"]
        assert dumps.csv(path) == b"id,price\n1,5.0\n2,6.0\n"
        _, first, before = await client.asked(path)
        dumps.add(PATH, first)
        assert await client.body(PATH) == first
        dumps.add(path, b"3,7.0\n")
        _, second, after = await client.asked(path)
        assert second != first
        assert before["ETag"] != after["ETag"]
        assert before["Last-Modified"] != after["Last-Modified"]
        assert path in texts(await client.listed(prefix=SPOT), "Contents/Key")


async def test_a_running_day_grows_and_says_so(talk: Any) -> None:
    market = GeneratedMarket(("BTCUSDT",), (), rate=2_000, start_ms=NEW_YEAR_MS, mix={"aggTrade": 1}, dumps=True)
    for _ in market.frames(100):
        pass
    path = f"{UM}/BTCUSDT/BTCUSDT-aggTrades-2025-01-01.zip"
    async with Simulator(market, dumps=Dumps(publish="all")) as exchange, aiohttp.ClientSession() as session:
        client = Client(exchange, session)
        tags, rows = set(), [0]
        for _ in talk.tries():
            _, body, headers = await client.asked(path)
            tags.add((headers["ETag"], headers["Last-Modified"]))
            with zipfile.ZipFile(io.BytesIO(body)) as opened:
                rows.append(opened.read("BTCUSDT-aggTrades-2025-01-01.csv").count(b"\n"))
            if len(tags) == 3:
                break
        assert rows == sorted(rows)
        assert rows[1] > 1
        assert len({etag for etag, _ in tags}) == 3


async def test_the_same_files_are_there_when_the_exchange_is_back(market: GeneratedMarket) -> None:
    dumps, seen = Dumps(), []
    for _ in range(2):
        async with Simulator(market, dumps=dumps) as exchange, aiohttp.ClientSession() as session:
            seen.append((await Client(exchange, session).asked(PATH))[2]["ETag"])
    assert seen[0] == seen[1]


async def test_a_recording_has_the_files_that_are_given(tmp_path: Any) -> None:
    capture = tmp_path / "capture.jsonl"
    capture.write_text('1790000000000000000 {"stream":"btcusdt@trade","data":{"e":"trade","p":"1.0"}}\n')
    dumps = Dumps()
    dumps.add(PATH, "1,2.0\n")
    async with Simulator(ReplayedMarket(capture), dumps=dumps) as exchange, aiohttp.ClientSession() as session:
        assert await Client(exchange, session).body(PATH)
        assert exchange.dumps.paths() == [PATH]


async def test_the_program_serves_the_files_of_a_day_that_ends(talk: Any) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "crypto_lake", "simulate", "--port", "0", "--start", "2024-12-31T23:59:59"),
        env={name: value for name, value in os.environ.items() if not name.startswith("LAKE_")},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        text = ""
        while not (found := re.search(r"LAKE_BINANCE_DUMPS=(\S+)\n", text)):
            text += (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        async with aiohttp.ClientSession() as session:
            for _ in talk.tries():
                async with session.get(f"{found[1]}/{PATH}.CHECKSUM") as answer:
                    line = await answer.text()
                if answer.status == 200:
                    break
        assert line.split()[1] == PATH.rpartition("/")[2]
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


async def test_a_recording_begins_when_it_began() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "crypto_lake", "simulate", "--market", "x.jsonl", "--start", "2024-12-31"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode == 1
    assert said.startswith(b"crypto-lake: --start 2024-12-31: a recording begins when it began")


def test_one_setting_is_enough_for_files_and_listing(market: GeneratedMarket) -> None:
    exchange = Simulator(market, port=8787, dumps=True)
    settings = Settings(dumps=exchange.environment["LAKE_BINANCE_DUMPS"])
    assert settings.dumps == settings.listing_address == "http://127.0.0.1:8787"
