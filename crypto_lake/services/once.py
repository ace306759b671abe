"""One shot: a single snapshot, by the same road through journal and drain as everything else."""

import time

from crypto_lake.config import Settings, collector_id
from crypto_lake.connections.rest import Rest
from crypto_lake.journal import Journal
from crypto_lake.models.prices import PRICES
from crypto_lake.services.drain import Drain, Drained
from crypto_lake.services.markets import Wanted, parse, resolve
from crypto_lake.services.poll import polled, snapshot
from crypto_lake.services.worker import check, sink_of


async def price_once(settings: Settings, *, every: bool) -> Drained:
    """Asks for the prices of every symbol (or of `settings.symbols`) and commits them; returns what was written.

    It has a journal of its own, so that it may run beside a daemon.
    Raises `ConfigError`, `SourceError`, `CommitFailed`.
    """
    sink = sink_of(settings.sink, settings.root)
    check(sink, [PRICES])
    folder = settings.journals / "once" / PRICES.name
    journal = Journal(folder)
    try:
        async with Rest(settings.rest_address, api_key=settings.api_key) as rest:
            named = parse(settings.symbols)
            wanted = {venue: Wanted(venue, (), every=True) for venue in named} if every else await resolve(named, rest)
            for dataset, market in polled([PRICES], wanted):
                await snapshot(dataset, market, rest, journal)
    finally:
        journal.close()
    drain = Drain(PRICES, folder, sink, collector=f"{collector_id(settings)}-once")
    done = drain.run_dry()
    journal.forget(done.position, older_than_us=time.time_ns() // 1000)
    return done
