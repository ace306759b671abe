"""Silence: a stream that stops is found within seconds if it was busy; slow and bursty ones are left in peace."""

import heapq
import itertools
import random
from collections.abc import Callable, Iterator

import pytest

from crypto_lake.models import DATASETS
from crypto_lake.services.silence import Alarm, Silence

S = 1_000_000
START_US = 1_700_000_000 * S
Pauses = Callable[[random.Random], Iterator[float]]


def steady(rate: float) -> Pauses:
    """Messages at random, so many a second."""

    def pauses(rng: random.Random) -> Iterator[float]:
        while True:
            yield rng.expovariate(rate)

    return pauses


def bursty(bursts_a_second: float, most: int) -> Pauses:
    """Bursts at random, each of up to `most` messages within a moment."""

    def pauses(rng: random.Random) -> Iterator[float]:
        while True:
            yield rng.expovariate(bursts_a_second)
            for _ in range(rng.randrange(most)):
                yield rng.expovariate(50.0)

    return pauses


def uneven(rng: random.Random) -> Iterator[float]:
    """A rate that wanders by a factor of ten within minutes, as markets do."""
    rate = 2.0
    while True:
        rate = min(5.0, max(0.5, rate * rng.choice((0.97, 1.03))))
        yield rng.expovariate(rate)


MARKET: dict[str, Pauses] = {
    "one a minute": steady(1 / 60),
    "one in ten seconds": steady(0.1),
    "one a second": steady(1.0),
    "ten a second": steady(10.0),
    "a hundred a second": steady(100.0),
    "rare bursts": bursty(1 / 30, 200),
    "bursts": bursty(0.2, 50),
    "many bursts": bursty(1.0, 20),
    "uneven": uneven,
}


class Run:
    """A feed in virtual time: streams speak until they die, and somebody looks once a second."""

    def __init__(self, market: dict[str, Pauses], seed: int, *, first_word_s: float = 600.0) -> None:
        self.silence = Silence(market, first_word_s=first_word_s)
        self.alarms: list[tuple[float, Alarm]] = []
        self._due: list[tuple[float, str]] = []
        self._pauses = {name: pauses(random.Random(f"{seed} {name}")) for name, pauses in market.items()}
        self.dead: dict[str, float] = {}
        for name, pauses in self._pauses.items():
            heapq.heappush(self._due, (next(pauses), name))

    def until(self, from_s: int, to_s: int, *, is_heard: bool = True) -> None:
        for second in range(from_s, to_s):
            while self._due[0][0] <= second:
                at_s, name = heapq.heappop(self._due)
                if is_heard and at_s < self.dead.get(name, 1e18):
                    self._hear(name, at_s)
                heapq.heappush(self._due, (at_s + next(self._pauses[name]), name))
            now_us = START_US + second * S
            self.alarms += [(second, alarm) for alarm in self.silence.look(now_us, is_heard=is_heard)]

    def _hear(self, name: str, at_s: float) -> None:
        voice = self.silence.voices[name.encode()]
        voice.count += 1
        voice.heard_us = START_US + int(at_s * S)
        if voice.silent_us:
            self.silence.spoke(voice, voice.heard_us)


@pytest.mark.parametrize("seed", range(40, 60))
def test_ten_minutes_of_uneven_streams_raise_no_alarm(seed: int) -> None:
    run = Run(MARKET, seed)
    run.until(0, 600)
    assert run.alarms == []


@pytest.mark.slow
def test_hours_of_slow_and_bursty_streams_raise_hardly_any() -> None:
    slow = {name: pauses for name, pauses in MARKET.items() if name not in ("ten a second", "a hundred a second")}
    run = Run(slow, 1)
    run.until(0, 6 * 3600)
    assert len(run.alarms) <= 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["a hundred a second", "ten a second"])
def test_a_busy_symbol_that_dies_is_found_within_ten_seconds_while_the_others_live(seed: int, name: str) -> None:
    run = Run(MARKET, seed)
    run.dead[name] = 100.5
    run.until(0, 300)
    ((second, alarm),) = run.alarms
    assert second <= 110.5
    assert alarm.stream == name
    assert 100 * S < alarm.from_us - START_US < 100.5 * S
    assert run.silence.silent == (name,)


def test_a_slow_symbol_that_dies_is_found_after_many_of_its_pauses() -> None:
    run = Run({"one a second": MARKET["one a second"]}, 3)
    run.dead["one a second"] = 300
    run.until(0, 600)
    assert 310 < run.alarms[0][0] < 340


def test_a_stream_that_beats_like_a_clock_may_miss_some_beats() -> None:
    run = Run({"clock": lambda _: itertools.repeat(2.0)}, 0)
    run.dead["clock"] = 201
    run.until(0, 300)
    assert 214 <= run.alarms[0][0] <= 217


def test_a_symbol_that_spoke_a_few_times_only_is_found_in_the_end() -> None:
    run = Run({"one in ten seconds": MARKET["one in ten seconds"]}, 3, first_word_s=120)
    run.dead["one in ten seconds"] = 60
    run.until(0, 600)
    assert len(run.alarms) == 1


def test_a_stream_that_never_speaks_is_found_after_its_time_for_a_first_word() -> None:
    run = Run({"dead": steady(10.0)}, 0, first_word_s=30)
    run.dead["dead"] = 0
    run.until(5, 60)
    ((second, alarm),) = run.alarms
    assert second == 36
    assert alarm.from_us == START_US + 5 * S


def test_what_never_needs_to_speak_is_never_silent() -> None:
    silence = Silence(["btcusdt@forceOrder"], first_word_s=None)
    assert not any(silence.look(START_US + second * S, is_heard=True) for second in range(10_000))


def test_time_in_which_nobody_listened_is_nobodys_silence() -> None:
    run = Run(MARKET, 4)
    run.until(0, 200)
    run.until(200, 400, is_heard=False)
    run.until(400, 600)
    assert run.alarms == []


def test_a_look_that_comes_late_judges_nobody_before_the_sockets_are_read() -> None:
    run = Run({"ten a second": MARKET["ten a second"]}, 5)
    run.until(0, 100)
    assert run.silence.look(START_US + 130 * S, is_heard=True) == []  # the process stood still
    run.until(131, 200)
    assert run.alarms == []


def test_one_that_speaks_again_is_silent_no_more() -> None:
    run = Run({"ten a second": MARKET["ten a second"]}, 6)
    run.dead["ten a second"] = 100
    run.until(0, 130)
    run.dead.clear()
    run.until(130, 200)
    assert len(run.alarms) == 1
    assert run.silence.silent == ()


def test_a_silence_that_ended_by_itself_makes_patient() -> None:
    run = Run({"ten a second": MARKET["ten a second"]}, 6)
    run.until(0, 100)
    voice = run.silence.voices[b"ten a second"]
    before = voice.limit_s(600)
    run.dead["ten a second"] = 100
    run.until(100, 108)
    run.dead.clear()
    run.until(108, 110)
    assert len(run.alarms) == 1
    assert voice.limit_s(600) >= 2 * before


def test_a_clock_that_is_set_moves_what_is_remembered() -> None:
    run = Run({"ten a second": MARKET["ten a second"]}, 8)
    run.until(0, 100)
    voice = run.silence.voices[b"ten a second"]
    before, heard_us = voice.limit_s(600), voice.heard_us
    run.silence.shift(3600 * S)
    assert voice.heard_us == heard_us + 3600 * S
    assert run.silence.look(START_US + 3700 * S + S, is_heard=True) == []
    voice.count, voice.heard_us = 1, START_US + 3701 * S
    run.silence.look(START_US + 3702 * S, is_heard=True)
    assert voice.limit_s(600) <= before + 10, "no pause of an hour was learned"


def test_new_connections_are_tried_at_once_and_then_less_and_less() -> None:
    run = Run({"dead": steady(10.0), "alive": steady(10.0)}, 7, first_word_s=30)
    run.dead["dead"] = 0
    tries = []
    for second in range(1, 20_000):
        run.until(second, second + 1)
        if run.silence.wants_renewal(START_US + second * S):
            tries.append(second)
    pauses = [after - before for before, after in itertools.pairwise(tries)]
    assert tries[0] == 32
    assert pauses[:7] == [60, 120, 240, 480, 960, 1920, 3600]
    assert set(pauses[7:]) == {3600}


def test_every_dataset_says_how_long_a_first_word_may_take() -> None:
    first_words = {name: each.live.first_word_s for name, each in DATASETS.items() if each.live}
    assert first_words == {
        "liquidation": None,
        "depth": 30,
        "agg_trade": 600,
        "trade": 600,
        "book_ticker": 30,
        "mark_price": 30,
    }
