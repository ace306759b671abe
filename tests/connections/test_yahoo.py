"""Yahoo: asked at a pace, left alone for longer each time that it does not answer, and heard when it says no."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from crypto_lake.config import US_INDICES
from crypto_lake.connections import SourceError
from crypto_lake.connections.yahoo import MOST_BYTES, MOST_PAUSE_S, NoChart, Yahoo
from crypto_lake.models.chart import ChartQuestion

QUESTION = ChartQuestion(US_INDICES, "^GSPC", "1m", 1_700_000_000, 1_700_003_600)
CHART = '{"chart":{"result":[{"meta":{"symbol":"^GSPC"}}],"error":null}}'
UNKNOWN = '{"chart":{"result":null,"error":{"code":"Not Found","description":"No data found,\\n delisted"}}}'
CRUMB = '{"finance":{"result":null,"error":{"code":"Unauthorized","description":"Invalid Crumb"}}}'
FIRST_S = 60.0


@dataclass
class Venue:
    """Answers as it is told, and notes what it was asked; its clock moves by sleeping alone."""

    address: str = ""
    answer: Callable[[], web.Response] = lambda: web.Response(text=CHART)
    asked: list[web.Request] = field(default_factory=list)
    departures: list[float] = field(default_factory=list)
    now_s: float = 1000.0

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, length_s: float) -> None:
        self.now_s += length_s

    async def heard(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        self.departures.append(self.now_s)
        return self.answer()

    def says(self, text: str = "", status: int = 200, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answer = lambda: web.Response(text=text, status=status, headers=named)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
async def venue() -> AsyncIterator[Venue]:
    made = Venue()
    app = web.Application()
    app.router.add_get("/{path:.*}", made.heard)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def yahoo(venue: Venue) -> AsyncIterator[Yahoo]:
    made = Yahoo(venue.address, every_s=2.0, first_pause_s=FIRST_S, clock=venue.clock, sleep=venue.sleep)
    async with made:
        yield made


async def refused(asking: Awaitable[object]) -> SourceError:
    with pytest.raises(SourceError) as error:
        await asking
    return error.value


async def test_a_question_is_asked_as_a_browser_asks_and_in_yahoos_words(venue: Venue, yahoo: Yahoo) -> None:
    answer = await yahoo.ask(QUESTION)
    (asked,) = venue.asked
    assert (answer.status, answer.body) == (200, CHART.encode())
    assert asked.raw_path.partition("?")[0] == "/v8/finance/chart/%5EGSPC"
    assert dict(asked.query) == {
        "interval": "1m",
        "period1": "1700000000",
        "period2": "1700003600",
        "includePrePost": "false",
    }
    assert asked.headers["User-Agent"].startswith("Mozilla/5.0 ")
    assert "X-MBX-APIKEY" not in asked.headers


async def test_questions_leave_one_after_the_other_at_their_pace(venue: Venue, yahoo: Yahoo) -> None:
    for _ in range(4):
        await yahoo.ask(QUESTION)
    venue.now_s += 100
    await yahoo.ask(QUESTION)  # who comes late does not wait
    assert venue.departures == [1000, 1002, 1004, 1006, 1106]


PAGES = {
    "too many": ("Too Many Requests", 429),
    "too often": ("", 999),
    "down": ("<html><body>Will be right back...</body></html>", 200),
    "broken": ("<html>Bad Gateway</html>", 502),
    "crumb": (CRUMB, 401),
    "a chart that is none": (CHART, 500),
    "other json": ("[]", 200),
}


@pytest.mark.parametrize("page", PAGES)
async def test_what_is_no_answer_leaves_yahoo_alone_for_longer_each_time(venue: Venue, yahoo: Yahoo, page: str) -> None:
    text, status = PAGES[page]
    venue.says(text, status)
    pauses = []
    for number in range(9):
        error = await refused(yahoo.ask(QUESTION))
        assert f"HTTP {status} instead of a chart" in str(error)
        assert len(venue.asked) == number + 1
        pauses.append(error.retry_after_s)
        early = await refused(yahoo.ask(QUESTION))
        assert "is left alone" in str(early)
        assert len(venue.asked) == number + 1
        assert early.retry_after_s == pytest.approx(pauses[-1])
        venue.now_s += pauses[-1] or 0
    assert pauses == [min(MOST_PAUSE_S, FIRST_S * 2**number) for number in range(9)]
    venue.says(CHART)
    await yahoo.ask(QUESTION)
    venue.says(text, status)
    assert (await refused(yahoo.ask(QUESTION))).retry_after_s == FIRST_S


async def test_a_page_that_asks_for_consent_is_not_followed(venue: Venue, yahoo: Yahoo) -> None:
    venue.says(status=302, Location=f"{venue.address}/consent")
    error = await refused(yahoo.ask(QUESTION))
    assert "HTTP 302" in str(error)
    assert [each.path for each in venue.asked] == ["/v8/finance/chart/^GSPC"]


async def test_what_yahoo_asks_for_counts_when_it_is_more(venue: Venue, yahoo: Yahoo) -> None:
    venue.says("Too Many Requests", 429, Retry_After="300")
    assert (await refused(yahoo.ask(QUESTION))).retry_after_s == 300
    venue.now_s += 300
    venue.says("Too Many Requests", 429, Retry_After="5")
    assert (await refused(yahoo.ask(QUESTION))).retry_after_s == 600
    venue.now_s += 600
    venue.says("Too Many Requests", 429, Retry_After="90000")
    assert (await refused(yahoo.ask(QUESTION))).retry_after_s == 90_000


@pytest.mark.parametrize("status", [200, 400, 404, 422])
async def test_an_unknown_symbol_is_no_reason_to_stop(venue: Venue, yahoo: Yahoo, status: int) -> None:
    venue.says(UNKNOWN, status)
    for _ in range(3):
        error = await refused(yahoo.ask(QUESTION))
        assert isinstance(error, NoChart)
        assert str(error) == "us-indices:^GSPC: Yahoo says Not Found: No data found, delisted"
    assert len(venue.asked) == 3
    venue.says(CHART)
    await yahoo.ask(QUESTION)


async def test_nobody_there_is_a_sentence_and_a_pause(venue: Venue) -> None:
    async with Yahoo("http://127.0.0.1:9", every_s=0, clock=venue.clock, sleep=venue.sleep) as yahoo:
        error = await refused(yahoo.ask(QUESTION))
    assert str(error) == "cannot reach http://127.0.0.1:9: Connection refused"
    assert (error.status, error.retry_after_s) == (None, FIRST_S)


async def test_an_answer_without_end_is_none(venue: Venue, yahoo: Yahoo) -> None:
    venue.says(CHART + " " * MOST_BYTES)
    error = await refused(yahoo.ask(QUESTION))
    assert "more than 16,000,000 bytes" in str(error)
    assert error.retry_after_s == FIRST_S
    venue.says(CHART)
    venue.now_s += FIRST_S
    assert (await yahoo.ask(QUESTION)).status == 200
