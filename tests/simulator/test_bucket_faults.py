"""What can go wrong with official files, as clients see it."""

import hashlib
import io
import time
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import date
from typing import Any

import aiohttp
import pytest

from crypto_lake.config import ConfigError
from crypto_lake.simulator import Dumps, Fault, GeneratedMarket, Scenario, Simulator

NEW_YEAR_MS = 1_735_689_600_000
FEBRUARY_MS = NEW_YEAR_MS + 31 * 86_400_000
FOLDER = "data/futures/um/daily/aggTrades/BTCUSDT"
FIRST, SECOND = (f"{FOLDER}/BTCUSDT-aggTrades-2025-01-{day}.zip" for day in ("30", "31"))
MONTH = "data/futures/um/monthly/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2025-01.zip"
LIQUIDATIONS = "data/futures/cm/daily/liquidationSnapshot/BTCUSD_PERP/BTCUSD_PERP-liquidationSnapshot-2025-01-31.zip"
SUM = ".CHECKSUM"
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def market() -> GeneratedMarket:
    """The last two days of a January, a trade every two minutes or so; all over."""
    made = GeneratedMarket(
        ("BTCUSDT",),
        (),
        rate=1 / 60,
        start_ms=FEBRUARY_MS - 2 * 86_400_000 + 60_000,
        mix={"aggTrade": 0.9, "forceOrder": 0.1},
        with_others=False,
        total=2 * 1440 + 60,
        dumps=True,
    )
    for _ in made.frames(10_000):
        pass
    return made


class Client:
    """Asks and reads to the end."""

    def __init__(self, exchange: Simulator, session: aiohttp.ClientSession) -> None:
        self.dumps, self.done, self._session = exchange.dumps, exchange.faults, session
        self._url = exchange.rest_url

    async def asked(self, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, Mapping[str, str]]:
        """Status, body, headers."""
        async with self._session.request(method, f"{self._url}/{path}", headers=headers) as answer:
            return answer.status, await answer.read(), answer.headers

    async def cut(self, path: str, **headers: str) -> bytes:
        """What came before the connection was gone."""
        got = bytearray()
        try:
            async with self._session.get(f"{self._url}/{path}", headers=headers) as answer:
                async for piece in answer.content.iter_any():
                    got += piece
        except aiohttp.ClientPayloadError:
            return bytes(got)
        raise AssertionError("it came to its end")

    async def archive(self, path: str) -> bytes:
        """The file."""
        status, body, _ = await self.asked(path)
        assert status == 200
        return body

    async def summed(self, path: str) -> str:
        """The sum that is told of a file."""
        return (await self.asked(path + SUM))[1].decode().split()[0]

    async def rows(self, path: str) -> list[str]:
        """Lines of the CSV at the root."""
        with zipfile.ZipFile(io.BytesIO(await self.archive(path))) as opened:
            name = path.rpartition("/")[2].replace(".zip", ".csv")
            return opened.read(name).decode().splitlines()


@asynccontextmanager
async def an_exchange(market: GeneratedMarket, *faults: Fault, **settings: Any) -> AsyncIterator[Client]:
    scenario = Scenario(faults=faults)
    async with (
        Simulator(market, faults=scenario, dumps=Dumps(**settings)) as exchange,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE_S)) as session,
    ):
        yield Client(exchange, session)


@pytest.fixture
async def client(market: GeneratedMarket) -> AsyncIterator[Client]:
    async with an_exchange(market) as made:
        yield made


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


async def test_a_wrong_sum_is_right_again_when_it_has_been_asked_for_so_often(client: Client) -> None:
    client.dumps.fail("wrong_checksum", f"{FOLDER}/*-01-31.zip", times=2)
    right = sha256(await client.archive(SECOND))
    await client.asked(SECOND + SUM, "HEAD")
    sums = [await client.summed(SECOND) for _ in range(3)]
    assert [each == right for each in sums] == [False, False, True]
    assert await client.summed(FIRST) == sha256(await client.archive(FIRST))
    assert [(each.kind, each.what) for each in client.done.done] == [("wrong_checksum", SECOND + SUM)] * 2


async def test_a_wrong_sum_may_stay_until_it_is_mended(client: Client) -> None:
    fault = client.dumps.fail("wrong_checksum")
    right = sha256(await client.archive(SECOND))
    assert right not in {await client.summed(SECOND) for _ in range(5)}
    client.dumps.mend(fault)
    assert await client.summed(SECOND) == right


@pytest.mark.parametrize(("form", "fits"), [("summed", True), ("unsummed", False)])
async def test_a_truncated_archive_is_no_zip_whatever_its_sum_says(client: Client, form: str, fits: bool) -> None:
    whole = await client.archive(SECOND)
    client.dumps.fail("truncated_zip", SECOND, form=form, times=1)
    told, body = await client.summed(SECOND), await client.archive(SECOND)
    assert body == whole[: len(whole) * 2 // 3]
    assert (told == sha256(body)) == fits
    assert (told == sha256(whole)) != fits
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(io.BytesIO(body))
    assert await client.archive(SECOND) == whole
    assert await client.summed(SECOND) == sha256(whole)


async def test_a_copy_of_the_csv_stands_before_it(client: Client) -> None:
    client.dumps.fail("duplicate_csv", "*/monthly/*")
    body = await client.archive(MONTH)
    with zipfile.ZipFile(io.BytesIO(body)) as opened:
        copy, root = opened.namelist()
        assert (copy, root) == (f"fsx-data/collector_data/{root}", "BTCUSDT-aggTrades-2025-01.csv")
        assert opened.read(copy) == opened.read(root) == client.dumps.csv(MONTH)
    assert await client.summed(MONTH) == sha256(body)


@pytest.mark.parametrize(("form", "less", "more"), [("row_changed", 1, 1), ("row_less", 1, 0)])
async def test_a_replaced_file_has_other_bytes_another_sum_tag_and_date(
    client: Client, form: str, less: int, more: int
) -> None:
    before, rows, was = await client.asked(SECOND), await client.rows(SECOND), await client.summed(SECOND)
    fault = client.dumps.fail("replaced_file", SECOND, form=form)
    after, others, now = await client.asked(SECOND), await client.rows(SECOND), await client.summed(SECOND)
    assert now == sha256(after[1]) != was
    assert before[2]["ETag"] != after[2]["ETag"]
    assert before[2]["Last-Modified"] < after[2]["Last-Modified"]
    gone, come = Counter(rows) - Counter(others), Counter(others) - Counter(rows)
    assert (gone.total(), come.total()) == (less, more)
    for old, new in zip(gone, come, strict=False):
        assert sum(a != b for a, b in zip(old.split(","), new.split(","), strict=True)) == 1
    assert (await client.asked(SECOND, **{"Range": "bytes=5-", "If-Range": before[2]["ETag"]}))[:2] == (200, after[1])
    assert client.dumps.rows(SECOND) == rows[1:]
    client.dumps.mend(fault)
    healed = await client.asked(SECOND)
    assert (healed[1], healed[2]["ETag"]) == (before[1], before[2]["ETag"])
    assert healed[2]["Last-Modified"] > after[2]["Last-Modified"]


async def test_a_row_that_is_there_twice_is_replaced_twice(client: Client) -> None:
    rows = await client.rows(LIQUIDATIONS)
    for form in ("row_less", "row_changed"):
        fault = client.dumps.fail("replaced_file", LIQUIDATIONS, form=form)
        gone = Counter(rows) - Counter(await client.rows(LIQUIDATIONS))
        assert list(gone.values()) == [2]
        client.dumps.mend(fault)


async def test_a_day_is_missing_in_its_month_and_has_its_own_file(client: Client) -> None:
    client.dumps.fail("missing_day", days=(date(2025, 1, 30),))
    months, first, second = await client.rows(MONTH), await client.rows(FIRST), await client.rows(SECOND)
    assert months == second
    assert len(first) > 100
    assert await client.summed(MONTH) == sha256(await client.archive(MONTH))
    assert {each.what for each in client.done.done} == {MONTH}


async def test_which_day_is_missing_is_drawn_when_none_is_named(client: Client) -> None:
    client.dumps.fail("missing_day")
    drawn = [await client.rows(MONTH) for _ in range(3)]
    assert drawn[0] in (await client.rows(FIRST), await client.rows(SECOND))
    assert drawn[1:] == drawn[:1] * 2


async def test_a_cut_download_is_taken_up_where_it_ended(client: Client) -> None:
    client.dumps.fail("cut_download", "*.zip", after_bytes=1_000, times=2)
    first = await client.cut(SECOND)
    second = await client.cut(SECOND, Range=f"bytes={len(first)}-")
    status, rest, _ = await client.asked(SECOND, Range=f"bytes={len(first) + len(second)}-")
    assert (len(first), len(second), status) == (1_000, 1_000, 206)
    assert sha256(first + second + rest) == await client.summed(SECOND)
    assert [each.status for each in client.dumps.served] == [200, 206, 206, 200]


async def test_nobody_is_served_while_it_is_unavailable(client: Client) -> None:
    client.dumps.fail("unavailable", f"{FOLDER}/*", times=1, retry_after_s=1.5)
    status, body, headers = await client.asked(SECOND)
    assert (status, headers["Retry-After"], b"<Code>SlowDown</Code>" in body) == (503, "2", True)
    assert (await client.asked(SECOND))[0] == 200
    assert (await client.asked(SECOND + SUM))[0] == 503
    assert (await client.asked(MONTH))[0] == 200


async def test_a_slow_download_takes_its_time(client: Client) -> None:
    whole = await client.archive(SECOND)
    client.dumps.fail("slow_download", SECOND, bytes_per_s=2 * len(whole))
    began = time.monotonic()
    assert await client.archive(SECOND) == whole
    assert time.monotonic() - began >= 0.45


async def test_files_of_one_s_own_go_wrong_too(market: GeneratedMarket) -> None:
    async with an_exchange(market) as client:
        path = "data/spot/monthly/aggTrades/X/X-aggTrades-2019-06.zip"
        client.dumps.add(path, "1,5.10\n2,6.10\n3,7.10\n")
        client.dumps.fail("replaced_file", path)
        client.dumps.fail("duplicate_csv", path)
        client.dumps.fail("wrong_checksum", path)
        client.dumps.fail("missing_day")
        assert await client.rows(path) == ["1,5.10", "2,6.11", "3,7.10"]
        assert await client.summed(path) != sha256(await client.archive(path))


async def test_a_scenario_has_faults_of_files_and_its_seconds_count(market: GeneratedMarket, talk: Any) -> None:
    faults = (
        Fault(kind="unavailable", for_s=0.5, paths=("*.CHECKSUM",)),
        Fault(kind="replaced_file", at_s=1.0, paths=("*-31.zip",), form="row_less"),
        Fault(kind="wrong_checksum", venue="binance", at_s=0),
    )
    async with an_exchange(market, *faults) as client:
        statuses, before = [(await client.asked(SECOND + SUM))[0]], await client.rows(SECOND)
        for _ in talk.tries():
            statuses.append((await client.asked(SECOND + SUM))[0])
            if statuses[-1] == 200:
                break
        assert set(statuses[:-1]) == {503}
        for _ in talk.tries():
            if (now := await client.rows(SECOND)) != before:
                break
        assert len(now) == len(before) - 1
        assert await client.summed(SECOND) == sha256(await client.archive(SECOND))
        assert [each.fault for each in client.done.done] == [1] * statuses.count(503) + [2] * 2


async def test_a_share_of_the_files_is_the_same_for_every_seed(market: GeneratedMarket) -> None:
    drawn = []
    for _ in range(2):
        async with an_exchange(market, Fault(kind="wrong_checksum", share=0.5)) as client:
            wrong = [await client.summed(path) != sha256(await client.archive(path)) for path in client.dumps.paths()]
            drawn.append(wrong)
    assert drawn[0] == drawn[1]
    assert 2 < sum(drawn[0]) < len(drawn[0]) - 2


def test_a_fault_that_makes_no_sense_is_one_sentence() -> None:
    for words, sentence in (
        ({"kind": "cut_download"}, "after_bytes: cut_download needs it"),
        ({"kind": "truncated_zip", "form": "bytes"}, "form = 'bytes': truncated_zip has summed and unsummed"),
        ({"kind": "unavailable", "status": 200}, "status = 200: a refusal is 400 to 599"),
        ({"kind": "wrong_checksum", "times": 0.5}, "times = 0.5: must be from 1"),
        ({"kind": "wrong_sum"}, "there is no such kind"),
        ({"kind": "cut"}, "paths: cut takes no such thing"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            Dumps().fail(**words)
