"""An exchange on loopback: a market, generated or replayed, behind the venue's own WebSocket and REST protocols."""

from crypto_lake.simulator.course import Done
from crypto_lake.simulator.dumps import Dumps, Request
from crypto_lake.simulator.generated import GeneratedMarket, made_up_symbols
from crypto_lake.simulator.hub import Connection, Served
from crypto_lake.simulator.market import Frame, Market
from crypto_lake.simulator.quotes import Listed, Quotes, TrueBar
from crypto_lake.simulator.replayed import ReplayedMarket
from crypto_lake.simulator.scenario import Fault, Scenario, read_scenario
from crypto_lake.simulator.server import Simulator

__all__ = [
    "Connection",
    "Done",
    "Dumps",
    "Fault",
    "Frame",
    "GeneratedMarket",
    "Listed",
    "Market",
    "Quotes",
    "ReplayedMarket",
    "Request",
    "Scenario",
    "Served",
    "Simulator",
    "TrueBar",
    "made_up_symbols",
    "read_scenario",
]
