"""What was sent against what is held: read with json and Polars, and with nothing of the recorder's own."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl

from crypto_lake.simulator import Frame

Group = tuple[str, str]  # venue and symbol

KEYS: Final = {
    "agg_trade": ["venue", "symbol", "agg_trade_id"],
    "trade": ["venue", "symbol", "trade_id"],
    "depth": ["venue", "symbol", "is_snapshot", "final_update_id"],
    "liquidation": ["venue", "symbol", "time", "side", "price", "quantity"],
    "prices": ["venue", "symbol", "time"],
}
STREAMS: Final = {"agg_trade": "aggTrade", "trade": "trade", "depth": "depth", "liquidation": "forceOrder"}
IDS: Final = {"agg_trade": ("a", "agg_trade_id"), "trade": ("t", "trade_id")}
# Between the exchange's clock of a message and ours of its receipt, and between a stop and its effect.
SLACK_S: Final = 0.5
# What was sent so shortly before the end may be on its way; silence is noticed only after a while.
TAIL_S: Final = 9.0


@dataclass(slots=True)
class Verdict:
    """What a trial showed; it passes when `wrong` is empty."""

    wrong: list[str] = field(default_factory=list)
    lost: int = 0
    known: int = 0
    repaired: int = 0
    unfillable: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """Missing ids (both inclusive), or without ids a time; seconds since 1970, no end while it lasts."""

    first_id: int | None
    last_id: int | None
    start_s: float
    end_s: float
    state: str


def table(root: Path, name: str) -> pl.DataFrame:
    """A table of the lake; empty if there is none."""
    return pl.read_delta(str(root / name)) if (root / name / "_delta_log").exists() else pl.DataFrame()


def check(root: Path, ledger: Sequence[Frame], *, since_s: float, until_s: float, skewed: bool) -> Verdict:
    """Holds every table against the ledger of what happened between two moments (seconds since 1970)."""
    verdict = Verdict()
    gaps = _gaps(root)
    for name, key in KEYS.items():
        held = table(root, name)
        if held.is_empty():
            verdict.wrong.append(f"{name}: the table is empty")
            continue
        twice = held.group_by(key).len().filter(pl.col("len") > 1)
        if twice.height:
            verdict.wrong.append(f"{name}: {twice.height} keys more than once, such as {twice.row(0)}")
        _check_dark(root, name, gaps.get(name, {}), verdict)
    for name in IDS:
        _check_ids(name, root, ledger, gaps.get(name, {}), verdict, until_s)
    _check_depth(root, ledger, gaps.get("depth", {}), verdict, until_s)
    if not skewed:  # its times say when the others happened, and a venue's wrong clock would excuse everything
        _check_liquidations(root, ledger, gaps.get("liquidation", {}), verdict, since_s, until_s)
    return verdict


def _gaps(root: Path) -> dict[str, dict[Group, list[Span]]]:
    """The newest state of every hole that is still one, by dataset and symbol."""
    rows = table(root, "gap")
    found: dict[str, dict[Group, list[Span]]] = {}
    if rows.is_empty():
        return found
    key = ["venue", "dataset", "symbol", "first_id", "start_time"]
    assert rows.group_by([*key, "state_time"]).len()["len"].max() == 1, "two states of one hole at one time"
    newest = rows.sort("state_time").unique(key, keep="last", maintain_order=True)
    for row in newest.filter(pl.col("state") != "filled").iter_rows(named=True):
        end_s = float("inf") if row["end_time"] is None else row["end_time"].timestamp()
        span = Span(row["first_id"], row["last_id"], row["start_time"].timestamp(), end_s, row["state"])
        found.setdefault(row["dataset"], {}).setdefault((row["venue"], row["symbol"]), []).append(span)
    return found


def _sent(ledger: Iterable[Frame], kind: str) -> Iterator[tuple[Group, float, dict[str, Any]]]:
    """The events of a kind: whose, when (seconds), what; those of COIN-M, which only all-market streams tell, not."""
    ending = f"@{kind}"
    for frame in ledger:
        if frame.stream.endswith(ending) and not frame.stream.startswith("!"):
            symbol = frame.stream[: -len(ending)].upper()
            yield (frame.venue, symbol), frame.time_ms / 1000, json.loads(frame.payload)


def _check_ids(
    name: str, root: Path, ledger: Sequence[Frame], gaps: dict[Group, list[Span]], verdict: Verdict, until_s: float
) -> None:
    wire, column = IDS[name]
    sent: dict[Group, dict[int, tuple[float, float, float]]] = {}
    for group, at_s, event in _sent(ledger, STREAMS[name]):
        sent.setdefault(group, {})[event[wire]] = (at_s, float(event["p"]), float(event["q"]))
    rows = table(root, name)
    _check_presence(name, sent, rows, verdict)
    for group, part in rows.group_by(["venue", "symbol"]):
        whose: Group = (group[0], group[1])
        held = dict(zip(part[column], zip(part["price"], part["quantity"], strict=True), strict=True))
        events, spans = sent.get(whose, {}), gaps.get(whose, [])
        invented = [id_ for id_, values in held.items() if id_ not in events or events[id_][1:] != values]
        if invented:
            verdict.wrong.append(f"{name} {whose[1]}: {len(invented)} rows that nobody sent, such as {invented[0]}")
        missing = {id_ for id_ in events if min(held) < id_ < max(held)} - set(held)
        told = {id_ for span in spans if span.first_id is not None for id_ in range(span.first_id, span.last_id + 1)}
        _compare(f"{name} {whose[1]}", missing, told, verdict)
        _check_tail(f"{name} {whose[1]}", [e[0] for i, e in events.items() if i > max(held)], spans, verdict, until_s)
        repaired = part.filter(pl.col("source") == "rest").height
        verdict.lost += len(missing) + repaired
        verdict.known += len(told) + repaired
        verdict.repaired += repaired
        verdict.unfillable += sum(
            span.last_id - span.first_id + 1 for span in spans if span.first_id is not None and span.state != "open"
        )


def _check_presence(name: str, sent: Iterable[Group], rows: pl.DataFrame, verdict: Verdict) -> None:
    """Whoever was told of by the exchange has rows."""
    absent = set(sent) - set(rows.select("venue", "symbol").unique().iter_rows())
    if absent:
        verdict.wrong.append(f"{name}: nothing at all of {sorted(absent)}")


def _check_dark(root: Path, name: str, gaps: dict[Group, list[Span]], verdict: Verdict) -> None:
    """In a time without delivery nothing was received of the symbol."""
    live = table(root, name).filter(pl.col("source") != "rest") if name != "prices" else table(root, name)
    received: dict[Group, list[float]] = {}
    for venue, symbol, moment in live.select("venue", "symbol", "received_time").iter_rows():
        received.setdefault((venue, symbol), []).append(moment.timestamp())
    for group, spans in gaps.items():
        for span in spans:
            if span.first_id is None:
                inside = [s for s in received.get(group, []) if span.start_s + SLACK_S < s < span.end_s - SLACK_S]
                if inside:
                    verdict.wrong.append(
                        f"{name} {group[1]}: {len(inside)} rows came in a gap of {span.end_s - span.start_s:.1f} s"
                    )


def _compare(what: str, missing: set[int], told: set[int], verdict: Verdict) -> None:
    """Every missing id is in a gap, and no gap has an id that is not missing."""
    if missing - told:
        verdict.wrong.append(f"{what}: {len(missing - told)} ids are missing in no gap, such as {min(missing - told)}")
    if told - missing:
        verdict.wrong.append(
            f"{what}: {len(told - missing)} ids in gaps are not missing, such as {min(told - missing)}"
        )


def _check_tail(what: str, times_s: list[float], spans: list[Span], verdict: Verdict, until_s: float) -> None:
    """What was sent behind the last row held: just on its way, or within a time that is known to be dark."""
    dark = [span for span in spans if span.first_id is None]
    unknown = [
        at_s
        for at_s in times_s
        if at_s < until_s - TAIL_S and not any(s.start_s - SLACK_S <= at_s <= s.end_s + SLACK_S for s in dark)
    ]
    if unknown:
        verdict.wrong.append(f"{what}: {len(unknown)} rows missing at the end, and nobody says so")


def _check_depth(
    root: Path, ledger: Sequence[Frame], gaps: dict[Group, list[Span]], verdict: Verdict, until_s: float
) -> None:
    sent: dict[Group, list[tuple[int, int, float]]] = {}
    for group, at_s, event in _sent(ledger, "depth"):
        sent.setdefault(group, []).append((event.get("pu", event["U"] - 1), event["u"], at_s))
    rows = table(root, "depth")
    _check_presence("depth", sent, rows, verdict)
    for key, part in rows.filter(~pl.col("is_snapshot")).group_by(["venue", "symbol"]):
        group = (key[0], key[1])
        held = set(part["final_update_id"])
        events, what = sorted(sent.get(group, [])), f"depth {group[1]}"
        spans = gaps.get(group, [])
        # Neighbouring events that are missing are one hole: from behind the event before to the last of them.
        holes: list[list[int]] = []
        for follows, last, _ in events:
            if min(held) < last < max(held) and last not in held:
                if holes and holes[-1][1] == follows:
                    holes[-1][1] = last
                else:
                    holes.append([follows, last])
        missing = {(follows + 1, last) for follows, last in holes}
        told = _joined(sorted((s.first_id, s.last_id or 0) for s in spans if s.first_id is not None))
        if missing - told:
            verdict.wrong.append(f"{what}: {len(missing - told)} holes in no gap, such as {min(missing - told)}")
        if told - missing:
            verdict.wrong.append(f"{what}: {len(told - missing)} gaps that are no holes, such as {min(told - missing)}")
        tail = [at_s for _, last, at_s in events if last > max(held)]
        _check_tail(what, tail, spans, verdict, until_s)
        snapshots = table(root, "depth").filter(
            pl.col("is_snapshot"), pl.col("venue") == group[0], pl.col("symbol") == group[1]
        )["final_update_id"]
        last_hole = max((last for _, last in missing), default=0)
        if snapshots.is_empty() or int(snapshots.max()) < last_hole:  # type: ignore[arg-type]
            verdict.wrong.append(f"{what}: no snapshot behind the hole that ends with {last_hole}")
        count = sum(min(held) < last < max(held) and last not in held for _, last, _ in events)
        verdict.lost += count
        verdict.known += count if missing == told else 0
        verdict.unfillable += count


def _joined(spans: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """Neighbouring gaps as one: a hole may have been found in two parts."""
    joined: list[tuple[int, int]] = []
    for first, last in spans:
        if joined and joined[-1][1] == first - 1:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return set(joined)


def _check_liquidations(
    root: Path,
    ledger: Sequence[Frame],
    gaps: dict[Group, list[Span]],
    verdict: Verdict,
    since_s: float,
    until_s: float,
) -> None:
    rows = table(root, "liquidation").with_columns(pl.col("time").dt.epoch("ms").alias("ms"))
    held = set(rows.select("symbol", "ms", "side", "price", "quantity").iter_rows())
    unknown = 0
    for (venue, symbol), at_s, event in _sent(ledger, "forceOrder"):
        order = event["o"]
        row = (symbol, order["T"], order["S"], float(order["p"]), float(order["q"]))
        if row in held or not since_s + SLACK_S < at_s < until_s - SLACK_S:
            continue
        verdict.lost += 1
        spans = gaps.get((venue, symbol), [])
        if any(span.start_s - SLACK_S <= at_s <= span.end_s + SLACK_S for span in spans):
            verdict.known += 1
            verdict.unfillable += 1
        elif at_s < until_s - TAIL_S:
            unknown += 1
    if unknown:
        verdict.wrong.append(f"liquidation: {unknown} missing at a time that no gap covers")
