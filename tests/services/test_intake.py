"""What counts of what a feed's connections bring, while the streams that are wanted come and go."""

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from crypto_lake.config import FUTURES, Settings
from crypto_lake.journal import FRAME, LAPSE, Journal, read_all
from crypto_lake.services.collect import Feed, plan, replan
from crypto_lake.services.intake import Intake, part
from crypto_lake.services.load import Load
from crypto_lake.services.markets import Wanted, chosen

SETTINGS = Settings(_env_file=None)
SECOND_US = 1_000_000
KINDS = {"mark_price": "markPrice@1s", "agg_trade": "aggTrade", "liquidation": "forceOrder"}


class Run:
    """A recorder of one dataset on USD-M from its start on, with one connection; `now_s` is the time."""

    def __init__(self, journal: Journal, dataset: str, *symbols: str, now_s: int, every: bool = False) -> None:
        self.journal, self.datasets = journal, chosen([dataset])
        (self.feed,) = self._plan(symbols, every=every)
        self.now_us = now_s * SECOND_US
        part(journal, {FUTURES: set(symbols)}, self.now_us)
        self.started: list[bytes] = []
        self.intake = Intake(
            self.feed,
            journal,
            now_us=self.now_us,
            load=Load(),
            shares=False,
            on_stream=lambda _, payload: self.started.append(payload),
        )
        self.line = self.intake.opened(self.feed.carries, self.now_us)

    def _plan(self, symbols: tuple[str, ...], *, every: bool = False, removed: tuple[str, ...] = ()) -> list[Feed]:
        return plan(self.datasets, self._markets(symbols, every=every, removed=removed), SETTINGS)

    @staticmethod
    def _markets(symbols: tuple[str, ...], *, every: bool, removed: tuple[str, ...]) -> Mapping[str, Wanted]:
        return {FUTURES: Wanted(FUTURES, symbols, every=every, removed=removed)}

    def hear(self, symbol: str, now_s: int) -> None:
        """A message comes."""
        self.line.last_us = self.now_us = now_s * SECOND_US
        self.line.frames += 1
        if self.line.is_joined:
            self.intake.delivery.proven_us = self.now_us
        else:
            self.intake.join(self.line)
        stream = f"{symbol.lower()}@{KINDS[self.feed.dataset.name]}"
        self.intake.take(json.dumps({"stream": stream, "data": now_s}, separators=(",", ":")).encode(), self.now_us)

    def want(self, *symbols: str, now_s: int, **more: Any) -> None:
        """Other symbols are wanted."""
        markets = self._markets(symbols, every=more.get("every", False), removed=more.get("removed", ()))
        assert replan([self.feed], self.datasets, markets, SETTINGS) == []
        self.intake.turn(self.feed.carries, now_s * SECOND_US)

    def settle(self, now_s: int) -> None:
        """All connections carry them."""
        self.intake.settle(now_s * SECOND_US)

    def end(self) -> None:
        self.intake.end(self.now_us)

    @property
    def frames(self) -> list[tuple[str, int]]:
        """Symbol and time (s) of what was written."""
        self.journal.flush()
        bodies = [json.loads(each.payload) for each in read_all(self.journal.directory) if each.kind == FRAME]
        return [(body["stream"].partition("@")[0], body["data"]) for body in bodies]

    @property
    def lapses(self) -> list[tuple[tuple[str, ...], str, float | None, float | None]]:
        """Symbols, reason, begin and end (s)."""
        self.journal.flush()
        found = [json.loads(each.payload) for each in read_all(self.journal.directory) if each.kind == LAPSE]
        return [(tuple(each["symbols"]), each["reason"], _s(each["from_us"]), _s(each["to_us"])) for each in found]


def _s(time_us: int | None) -> float | None:
    return None if time_us is None else time_us / SECOND_US


@pytest.fixture
def journals(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_a_new_stream_counts_when_every_connection_brings_it_and_an_old_one_until_it_is_not_wanted(
    journals: Path,
) -> None:
    with closing(Journal(journals)) as journal:
        run = Run(journal, "mark_price", "BTC", "ETH", now_s=10)
        run.hear("BTC", 11)
        run.hear("ETH", 12)
        run.want("BTC", "SOL", now_s=13)
        assert journal.carried == {run.feed.origin: ("BTC",)}
        for number, symbol in enumerate(("BTC", "ETH", "SOL")):
            run.hear(symbol, 14 + number)
        run.settle(17)
        for number, symbol in enumerate(("SOL", "BTC")):
            run.hear(symbol, 18 + number)
        assert run.frames == [("btc", 11), ("eth", 12), ("btc", 14), ("sol", 18), ("btc", 19)]
        assert journal.carried == {run.feed.origin: ("BTC", "SOL")}
        assert run.lapses == [(("BTC", "ETH"), "restart", None, 11), (("ETH",), "restart", 13, 13)]
        assert run.started[-1] == b'{"stream":"sol@markPrice@1s","data":18}'  # where there is a book, it is fetched
        run.intake.closed(run.line, "cut", 20 * SECOND_US, was_silent=False)
        run.intake.look(30 * SECOND_US, is_reading=True)
        assert run.lapses[-1] == (("BTC", "SOL"), "disconnect", 19, None)


def test_nothing_begins_while_nothing_is_heard(journals: Path) -> None:
    with closing(Journal(journals)) as journal:
        run = Run(journal, "mark_price", "BTC", now_s=10)
        run.want("BTC", "SOL", now_s=11)
        run.settle(12)
        assert not run.intake.is_settled
        run.hear("SOL", 13)
        run.settle(14)
        run.hear("SOL", 15)
        assert run.frames == [("sol", 15)]


def test_a_stream_that_was_given_up_is_not_silent_and_a_new_one_is_given_time(journals: Path) -> None:
    with closing(Journal(journals)) as journal:
        run = Run(journal, "mark_price", "BTC", "ETH", now_s=100)
        run.hear("BTC", 101)

        def look(now_s: int) -> tuple[str, ...]:
            run.hear("BTC", now_s)
            run.intake.look(now_s * SECOND_US, is_reading=True)
            return run.feed.silent

        assert look(102) == ()
        for now_s in range(103, 140):
            look(now_s)
        assert run.feed.silent == ("eth@markPrice@1s",)
        run.want("BTC", "SOL", now_s=140)
        run.settle(140)
        assert run.feed.silent == ()
        assert [look(now_s) for now_s in range(141, 169)] == [()] * 28
        assert [look(now_s) for now_s in range(169, 180)][-1] == ("sol@markPrice@1s",)
        # The silence ends where it stops being missed.
        assert run.lapses[1:3] == [(("ETH",), "silence", 102, None), (("ETH",), "restart", 140, 140)]


@pytest.mark.parametrize("dataset", ["mark_price", "agg_trade"])
def test_after_a_restart_each_symbol_is_missed_since_it_was_collected_last(journals: Path, dataset: str) -> None:
    with closing(Journal(journals)) as journal:
        run = Run(journal, dataset, "BTC", "ETH", now_s=10)
        run.hear("BTC", 11)
        run.want("BTC", "ETH", "SOL", now_s=12)
        run.settle(12)
        run.hear("SOL", 20)
        run.end()
    with closing(Journal(journals)) as journal:
        run = Run(journal, dataset, "SOL", "BTC", "XRP", now_s=30)  # hears nothing
        told = len(run.lapses)
        assert run.lapses[told - 1] == (("ETH",), "restart", 20, 20)
        run.end()
    with closing(Journal(journals)) as journal:
        run = Run(journal, dataset, "BTC", "XRP", "SOL", now_s=40)
        run.hear("BTC", 41)
        # Nobody had collected XRP: only the ids of a dataset can say that something of it is missing.
        new = [(("XRP",), "restart", None, 41.0)] if dataset == "agg_trade" else []
        assert run.lapses[told:] == [(("BTC", "SOL"), "restart", 20, 41), *new]
        assert journal.carried == {run.feed.origin: ("BTC", "XRP", "SOL")}


def test_what_comes_by_a_stream_of_all_is_left_out_when_it_was_removed(journals: Path) -> None:
    with closing(Journal(journals)) as journal:
        run = Run(journal, "liquidation", "BTC", "ETH", now_s=10, every=True)
        run.hear("BTC", 11)
        url = run.feed.url
        run.want("BTC", now_s=12, every=True, removed=("ETH",))
        assert run.feed.url == url
        for symbol in ("BTC", "ETH"):
            message = {"stream": "!forceOrder@arr", "data": {"e": "forceOrder", "o": {"s": symbol}}}
            run.intake.take(json.dumps(message, separators=(",", ":")).encode(), 13 * SECOND_US)
        journal.flush()
        written = [each.payload for each in read_all(journal.directory) if each.kind == FRAME]
        assert b'"s":"BTC"' in written[-1]
        assert not any(b'"s":"ETH"' in each for each in written)
        assert run.lapses[-1] == (("ETH",), "restart", 12, 12)
