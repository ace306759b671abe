"""The daemon as a process: how it starts, what it refuses, how it stops, and what it says of itself."""

import asyncio
import json
import re
import resource
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from aiohttp import web

from crypto_lake.journal import FRAME, end_of, read_all
from crypto_lake.query import read
from crypto_lake.simulator import GeneratedMarket, Simulator

ONE = {"LAKE_SYMBOLS": "BTCUSDT", "LAKE_DATASETS": "agg_trade"}
MakeRecorder = Callable[..., Any]
Wait = Callable[..., Any]


def page(port: int, name: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}") as answer:
        content: bytes = answer.read()
        return content


async def test_sigterm_drains_everything_and_exits_with_0_within_seconds(
    recorder: MakeRecorder, wait_for: Wait
) -> None:
    async with Simulator(GeneratedMarket(rate=500)) as exchange:
        daemon = recorder({**exchange.environment, "LAKE_COMMIT_EVERY_S": "600"})
        await daemon.start()
        await wait_for(lambda: daemon.journal_bytes > 100_000)
        began_s = time.monotonic()
        assert await daemon.stop() == 0
        assert time.monotonic() - began_s < 10
    assert daemon.events("stopped")[0]["journal_bytes_for_the_next_start"] == 0
    assert read("agg_trade", root=str(daemon.root)).collect().height > 0
    assert not (daemon.state / "daemon.json").exists()


async def test_a_second_signal_ends_it_at_once(recorder: MakeRecorder, wait_for: Wait) -> None:
    async with Simulator(GeneratedMarket(rate=100)) as exchange:
        daemon = recorder({**exchange.environment, **ONE})
        await daemon.start()
        await wait_for(lambda: daemon.port)
        worker = psutil.Process(daemon.process.pid).children()[0]
        worker.suspend()  # a worker that does not come to an end
        daemon.process.send_signal(signal.SIGINT)
        await wait_for(lambda: daemon.events("stopping"))
        daemon.process.send_signal(signal.SIGINT)
        assert await daemon.wait() == 130
        await wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("deaf", ["/fapi/v1/exchangeInfo", "/fapi/v1/ticker/24hr"])
async def test_a_venue_that_does_not_answer_does_not_hold_up_the_stop(
    recorder: MakeRecorder, wait_for: Wait, deaf: str
) -> None:
    asked = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        if request.path == deaf:
            asked.set()
            await asyncio.sleep(600)
        return web.json_response({"symbols": [{"symbol": "BTCUSDT", "status": "TRADING"}]})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        daemon = recorder({**ONE, "LAKE_DATASETS": "prices", "LAKE_BINANCE_FUTURES_REST": address})
        await daemon.start()
        await asyncio.wait_for(asked.wait(), 60)
        began_s = time.monotonic()
        assert await daemon.stop() == 0
        assert time.monotonic() - began_s < 10
    finally:
        await runner.cleanup()


async def test_it_runs_for_as_long_as_it_is_told(recorder: MakeRecorder) -> None:
    async with Simulator(GeneratedMarket(rate=200)) as exchange:
        daemon = recorder({**exchange.environment, **ONE})
        await daemon.start("--for", "1s")
        assert await daemon.wait() == 0
    assert read("agg_trade", root=str(daemon.root)).collect().height > 0


@pytest.mark.parametrize("sink", ["parquet", "jsonl"])
async def test_other_sinks_hold_every_journalled_row_once(recorder: MakeRecorder, wait_for: Wait, sink: str) -> None:
    async with Simulator(GeneratedMarket(rate=400)) as exchange:
        daemon = recorder({**exchange.environment, **ONE})
        for size in (50_000, 100_000):
            await daemon.start("--sink", sink)
            await wait_for(lambda size=size: daemon.journal_bytes > size and daemon.port)
            assert await daemon.stop() == 0
    rows = read("agg_trade", root=str(daemon.root)).collect()
    sent = {json.loads(each.payload)["data"]["a"] for each in read_all(daemon.journal("agg_trade"))
            if each.kind == FRAME}  # fmt: skip
    held = rows["agg_trade_id"].to_list()
    assert len(held) == len(set(held))
    assert sent <= set(held)  # and what was missing between the two runs was asked for
    assert len(list((daemon.root / "agg_trade").glob(f"date=*/*.{sink}"))) >= 2
    assert not list(daemon.root.glob("*/*/*.tmp"))


async def test_health_metrics_and_status_tell_what_goes_on(recorder: MakeRecorder, wait_for: Wait) -> None:
    async with Simulator(GeneratedMarket(rate=300)) as exchange:
        daemon = recorder({**exchange.environment, **ONE})
        await daemon.start()
        await wait_for(lambda: daemon.port)

        await wait_for(lambda: list((daemon.root / "agg_trade").glob("date=*")))
        health = json.loads(await asyncio.to_thread(page, daemon.port, "health"))
        assert health["status"] == "ok"
        names = ("frames_total", "repeats_total", "lapses_total", "rows_committed_total", "committed_position",
                 "connections_open", "streams_silent")  # fmt: skip
        metrics = ""
        async with asyncio.timeout(30):
            while not all(f"crypto_lake_{name}{{" in metrics for name in names):
                metrics = (await asyncio.to_thread(page, daemon.port, "metrics")).decode()
        status = await command(daemon, "status", "--json")
        assert json.loads(status[1])["details"]["rows"]["agg_trade"] > 0
        await wait_for(lambda: len(exchange.connections) == 2)
        status = await command(daemon, "status")
        assert re.search(r"agg_trade binance-futures 0 .*\D2 of 2\D", status[1])
        assert "load level 0" in status[1]
        await daemon.stop()
        assert (await command(daemon, "status"))[0] == 1


async def command(daemon: Any, *args: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "crypto_lake", *args),
        env=daemon.environment,
        cwd=daemon.home,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_a_full_disk_rests_the_sockets_and_loses_nothing(recorder: MakeRecorder, wait_for: Wait) -> None:
    market = GeneratedMarket(rate=1000, record=True)
    async with Simulator(market) as exchange:
        daemon = recorder({**exchange.environment, **ONE, "LAKE_SILENCE_S": "1"})
        await daemon.start()
        await wait_for(lambda: daemon.journal_bytes > 20_000 and daemon.port)
        folder = daemon.journal("agg_trade")
        size = max(path.stat().st_size for path in folder.glob("*.journal"))
        unlimited = resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (size + 20_000, unlimited[1]))
        await wait_for(lambda: daemon.events("journal_disk_full"))
        metrics = (await asyncio.to_thread(page, daemon.port, "metrics")).decode()
        assert "crypto_lake_journal_full 1.0" in metrics
        assert (await command(daemon, "status"))[0] == 1
        written = end_of(folder)
        made = market.made
        await wait_for(lambda: market.made > made + 500)
        assert end_of(folder) == written
        until_s = time.monotonic() + 2
        await wait_for(lambda: time.monotonic() > until_s)  # twice the silence: resting is not being dead
        assert not daemon.events("disconnected")
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, unlimited)
        await wait_for(lambda: daemon.events("journal_disk_writes_again"))
        await wait_for(lambda: end_of(folder) > written)
        assert await daemon.stop() == 0
    ids = read("agg_trade", symbols="BTCUSDT", root=str(daemon.root)).collect()["agg_trade_id"].sort()
    assert ids.to_list() == list(range(ids[0], ids[-1] + 1))


async def test_a_disk_that_stays_full_at_the_stop_is_said(recorder: MakeRecorder, wait_for: Wait) -> None:
    async with Simulator(GeneratedMarket(rate=1000)) as exchange:
        daemon = recorder({**exchange.environment, **ONE})
        await daemon.start()
        await wait_for(lambda: daemon.journal_bytes > 20_000 and daemon.port)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        await wait_for(lambda: daemon.events("journal_disk_full"))
        assert await daemon.stop() == 1
    said = daemon.log.read_text()
    assert "bytes are lost, File too large; make room before the next start" in said
    assert "Traceback" not in said
    assert read("agg_trade", root=str(daemon.root)).collect().height > 0


async def test_a_worker_that_dies_is_started_again(recorder: MakeRecorder, wait_for: Wait) -> None:
    async with Simulator(GeneratedMarket(rate=200)) as exchange:
        daemon = recorder({**exchange.environment, **ONE})
        await daemon.start()
        await wait_for(lambda: daemon.port)
        first = psutil.Process(daemon.process.pid).children()[0]
        first.kill()
        await wait_for(lambda: daemon.events("drain_died"))
        await wait_for(lambda: any(each.pid != first.pid for each in psutil.Process(daemon.process.pid).children()))
        assert await daemon.stop() == 0
    ids = read("agg_trade", symbols="BTCUSDT", root=str(daemon.root)).collect()["agg_trade_id"].sort()
    assert ids.to_list() == list(range(ids[0], ids[-1] + 1))


async def test_systemd_is_told_that_it_is_ready_that_it_lives_and_that_it_stops(
    recorder: MakeRecorder, wait_for: Wait, tmp_path: Path
) -> None:
    words: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        asyncio.get_running_loop().add_reader(systemd, lambda: words.append(systemd.recv(4096).decode()))
        async with Simulator(GeneratedMarket(rate=100)) as exchange:
            notify = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
            daemon = recorder({**exchange.environment, **ONE, **notify})
            await daemon.start()
            await wait_for(lambda: words.count("WATCHDOG=1") >= 3)
            assert words[0] == "READY=1\nSTATUS=recording 2 connections"
            assert await daemon.stop() == 0
        asyncio.get_running_loop().remove_reader(systemd)
    assert "STOPPING=1" in words


async def test_many_commits_are_merged_while_it_records(recorder: MakeRecorder, wait_for: Wait) -> None:
    async with Simulator(GeneratedMarket(rate=300)) as exchange:
        daemon = recorder({**exchange.environment, **ONE, "LAKE_OPTIMIZE_EVERY_S": "2", "LAKE_COMMIT_EVERY_S": "0.1"})
        await daemon.start()
        await wait_for(lambda: list((daemon.root / "agg_trade").glob("date=*/merged-*")))
        rejected = daemon.root / "rejected" / "_delta_log"  # it is looked after too, as the last one
        await wait_for(lambda: any("vacuum/full" in path.read_text() for path in rejected.glob("*.json")))
        assert await daemon.stop() == 0
    assert not daemon.events("maintenance_failed")
    ids = read("agg_trade", root=str(daemon.root)).collect()["agg_trade_id"].sort()
    assert ids.to_list() == list(range(ids[0], ids[-1] + 1))


async def refused(recorder: MakeRecorder, environment: dict[str, str], *args: str) -> str:
    """What a daemon says that cannot begin: one line, exit status 1 or 2, no traceback."""
    daemon = recorder(environment)
    await daemon.start(*args)
    assert await daemon.wait() in (1, 2)
    said: str = daemon.log.read_text()
    assert "Traceback" not in said
    return said


async def test_what_a_user_can_get_wrong_is_said_in_one_sentence(recorder: MakeRecorder, tmp_path: Path) -> None:
    async with Simulator(GeneratedMarket(rate=10)) as exchange:
        good = {**exchange.environment, **ONE}
        bad = {
            "no dataset 'agg_trades'; did you mean 'agg_trade'?": {"LAKE_DATASETS": "agg_trades"},
            "binance-futures has no symbol 'BTCUSD'; did you mean 'BTCUSDT'?": {"LAKE_SYMBOLS": "BTCUSD"},
            "no venue 'kraken'": {"LAKE_SYMBOLS": "kraken:BTCUSDT"},
            "LAKE_BINANCE_FUTURES_WS='http://x': must begin with ws://": {"LAKE_BINANCE_FUTURES_WS": "http://x"},
            "LAKE_COMMIT_EVERY_S='soon'": {"LAKE_COMMIT_EVERY_S": "soon"},
            "LAKE_DEPTH_SPEED='1s'": {"LAKE_DEPTH_SPEED": "1s"},
            "cannot reach http://127.0.0.1:9": {"LAKE_BINANCE_FUTURES_REST": "http://127.0.0.1:9"},
            "cannot connect to ws://127.0.0.1:9": {"LAKE_BINANCE_FUTURES_WS": "ws://127.0.0.1:9"},
            "LAKE_ROOT=/proc/nowhere": {"LAKE_ROOT": "/proc/nowhere"},
            "LAKE_STATE": {"LAKE_STATE": "/proc/nowhere"},
        }
        said = await asyncio.gather(*(refused(recorder, {**good, **change}) for change in bad.values()))
        for sentence, answer in zip(bad, said, strict=True):
            assert sentence in answer
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            answer = await refused(recorder, {**good, "LAKE_METRICS_PORT": port})
            assert f"LAKE_METRICS_PORT={port}: port is in use" in answer
        assert "say a duration" in await refused(recorder, good, "--for", "soon")
        other = recorder(good)
        pl.DataFrame({"symbol": ["a"]}).write_delta(str(other.root / "agg_trade"), delta_write_options={})
        await other.start()
        assert await other.wait() == 1
        assert "table agg_trade has another schema" in other.log.read_text()


async def test_a_bad_env_file_is_said_in_one_sentence(recorder: MakeRecorder) -> None:
    daemon = recorder({})
    daemon.home.mkdir()
    (daemon.home / ".env").write_text("LAKE_REDUNDANT=1\nLAKE_PRICE_EVERY_S=-3\n")
    await daemon.start()
    assert await daemon.wait() == 1
    assert "LAKE_PRICE_EVERY_S='-3': input should be greater than 0" in daemon.log.read_text()


async def test_another_root_does_not_get_what_was_recorded_for_the_first(
    recorder: MakeRecorder, wait_for: Wait
) -> None:
    async with Simulator(GeneratedMarket(rate=300)) as exchange:
        daemon = recorder({**exchange.environment, **ONE})
        other = daemon.home / "other"
        await daemon.start("--for", "1s")
        assert await daemon.wait() == 0
        await daemon.start("--for", "1s", "--root", str(other))
        assert await daemon.wait() == 0
        await daemon.start("--for", "1s")
        assert await daemon.wait() == 0
    # What the first lake missed meanwhile it asks the venue for; what was journalled for the other is not carried over.
    rows = [read("agg_trade", root=str(root), source="live").collect() for root in (daemon.root, other)]
    ids = [set(each["agg_trade_id"]) for each in rows]
    assert all(ids)
    assert not ids[0] & ids[1]


async def test_two_recorders_do_not_share_a_journal(recorder: MakeRecorder, wait_for: Wait) -> None:
    async with Simulator(GeneratedMarket(rate=50)) as exchange:
        first = recorder({**exchange.environment, **ONE})
        await first.start()
        await wait_for(lambda: first.port)
        second = recorder({**exchange.environment, **ONE, "LAKE_STATE": str(first.state)})
        await second.start()
        assert await second.wait() == 1
        assert "another crypto-lake" in second.log.read_text()
        assert await first.stop() == 0


class Hostile:
    """A venue whose messages are what no documentation promises."""

    def __init__(self, *messages: str | bytes) -> None:
        self._messages = messages
        self.sent = asyncio.Event()

    async def stream(self, request: web.Request) -> web.WebSocketResponse:
        socket_ = web.WebSocketResponse()
        await socket_.prepare(request)
        for message in self._messages:
            await socket_.send_str(message if isinstance(message, str) else message.decode())
        self.sent.set()
        async for _ in socket_:
            pass
        return socket_

    async def exchange_info(self, request: web.Request) -> web.Response:
        return web.json_response({"symbols": [{"symbol": "BTCUSDT", "status": "TRADING"}]})


async def test_messages_that_fit_nothing_are_kept_and_the_others_recorded(
    recorder: MakeRecorder, wait_for: Wait
) -> None:
    case = (Path(__file__).parents[1] / "wire" / "messages.jsonl").read_text().splitlines()
    good = json.loads(case[0])["payload"]
    huge = '{"stream":"x","data":"' + "a" * 5_000_000 + '"}'
    bad = [good[:-9], good.replace('"64990.90"', "64990.90"), huge, good.replace("aggTrade", "surprise")]
    venue = Hostile(bad[0], bad[1], bad[2], bad[3], good)
    app = web.Application()
    app.router.add_get("/market/stream", venue.stream)
    app.router.add_get("/fapi/v1/exchangeInfo", venue.exchange_info)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        daemon = recorder(
            {**ONE, "LAKE_BINANCE_FUTURES_WS": f"ws://127.0.0.1:{port}",
             "LAKE_BINANCE_FUTURES_REST": f"http://127.0.0.1:{port}"}
        )  # fmt: skip
        await daemon.start()
        await asyncio.wait_for(venue.sent.wait(), 60)
        await wait_for(lambda: daemon.journal_bytes > 5_000_000)
        assert await daemon.stop() == 0
    finally:
        await runner.cleanup()
    assert read("agg_trade", root=str(daemon.root)).collect()["agg_trade_id"].to_list() == [7]
    assert sorted(read("rejected", root=str(daemon.root)).collect()["payload"]) == sorted(bad)
    assert daemon.events("messages_rejected")
