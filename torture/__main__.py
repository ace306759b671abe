"""`python -m torture`: thirty trials or those of some seeds, side by side, and a table of what came of them."""

import argparse
import asyncio
import faulthandler
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from torture import resync, silence
from torture.run import Outcome, run
from torture.trial import trial

TRIALS: Final = 30
AT_ONCE: Final = 3
# Far above what a trial takes: one that hangs must not hang all.
PATIENCE_S: Final = 240.0
PROJECT: Final = Path(__file__).parents[1]


def main() -> int:
    """Exit status 0 when every trial passed."""
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--seeds", help="trials to run, such as 7 or 0-29 or 3,5,8", default=f"0-{TRIALS - 1}")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="trials side by side")
    parser.add_argument("--keep", action="store_true", help="leave the tables and logs of trials that failed")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--silence", action="store_true", help="ten minutes of uneven symbols, then one that dies")
    parser.add_argument("--resync", action="store_true", help="300 symbols that need their books at once (minutes)")
    arguments = parser.parse_args()
    if arguments.one is not None:
        faulthandler.dump_traceback_later(PATIENCE_S - 10, exit=True)  # one that hangs says where
        sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(run(trial(arguments.one), arguments.home))))
        return 0
    if arguments.resync:
        return asyncio.run(resync.run())
    if arguments.silence:
        return asyncio.run(silence.run())
    home = Path(tempfile.mkdtemp(prefix="crypto-lake-torture-"))
    outcomes = asyncio.run(run_all(_seeds(arguments.seeds), home, arguments.at_once, keep=arguments.keep))
    show(outcomes)
    if any(home.iterdir()):
        print(f"what was kept is in {home}")
    else:
        home.rmdir()
    return 1 if any(outcome.wrong for outcome in outcomes) else 0


def _seeds(text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


async def run_all(seeds: list[int], home: Path, at_once: int, *, keep: bool) -> list[Outcome]:
    """The trials of the seeds, so many side by side, each in a folder of its own under `home`."""
    room = asyncio.Semaphore(at_once)
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("trials", total=len(seeds))

        async def one(seed: int) -> Outcome:
            async with room:
                outcome = await _one(seed, home / str(seed))
            progress.advance(bar)
            if outcome.wrong:
                progress.console.print(f"seed {seed}: {outcome.wrong}", markup=False)
            if not (outcome.wrong and keep):
                shutil.rmtree(home / str(seed), ignore_errors=True)
            return outcome

        return await asyncio.gather(*(one(seed) for seed in seeds))


async def _one(seed: int, home: Path) -> Outcome:
    """In a process of its own: exchanges side by side in one would starve each other."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "torture", "--one", str(seed), "--home", str(home)),
        stdout=asyncio.subprocess.PIPE,
        cwd=PROJECT,
    )
    began_s = time.monotonic()
    try:
        output, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        return msgspec.json.decode(output, type=Outcome)
    except (TimeoutError, msgspec.DecodeError):
        if process.returncode is None:
            process.kill()
            await process.wait()
        plan = trial(seed)
        wrong = [f"no outcome after {time.monotonic() - began_s:.0f} s (status {process.returncode})"]
        return Outcome(seed, plan.redundancy, plan.faults, len(plan.kills), 0, 0, 0, 0, 0, None, wrong)


def show(outcomes: list[Outcome]) -> None:
    """The table, and how to repeat what failed."""
    table = Table(title="what was lost, what of it is known, what was repaired; seeds repeat a trial")
    for name in ("seed", "x", "faults", "kills", "sent", "lost", "known", "repaired", "for ever", "whole after", ""):
        table.add_column(name, justify="left" if name in ("faults", "") else "right")
    for each in outcomes:
        after = "never" if each.repair_s is None else f"{each.repair_s:.1f} s"
        table.add_row(
            *(str(each.seed), str(each.redundancy), each.faults, str(each.kills), f"{each.sent:,}", f"{each.lost:,}"),
            *(f"{each.known:,}", f"{each.repaired:,}", f"{each.unfillable:,}", after),
            "[red]" + "; ".join(each.wrong) if each.wrong else "ok",
        )
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    failed = [each.seed for each in outcomes if each.wrong]
    lost, known = sum(each.lost for each in outcomes), sum(each.known for each in outcomes)
    console.print(
        f"{len(outcomes)} trials, {sum(each.sent for each in outcomes):,} messages, {lost:,} rows lost on the way, "
        f"{known:,} known, {sum(each.repaired for each in outcomes):,} repaired"
    )
    if failed:
        console.print(f"failed: make torture ARGS='--seeds {','.join(map(str, failed))} --keep'")


if __name__ == "__main__":
    sys.exit(main())
