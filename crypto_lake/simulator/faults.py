"""Faults on request: a scenario at work on an exchange, and the list of what it did."""

import asyncio
from collections.abc import Sequence

from crypto_lake.simulator.course import Course, Done
from crypto_lake.simulator.faulty_answers import FaultyAnswers
from crypto_lake.simulator.faulty_connections import FaultyConnections
from crypto_lake.simulator.faulty_files import FaultyFiles
from crypto_lake.simulator.faulty_frames import FaultyFrames
from crypto_lake.simulator.hub import Hub
from crypto_lake.simulator.market import Market
from crypto_lake.simulator.scenario import Scenario


class Faults:
    """The scenario's faults by what they concern: `frames`, `connections`, `answers`, and a bucket's files."""

    def __init__(self, scenario: Scenario, market: Market, files: FaultyFiles | None = None) -> None:
        self.scenario = scenario
        self._course = Course(scenario)
        self.frames = FaultyFrames(self._course)
        self.connections = FaultyConnections(self._course, self.frames, market)
        self.answers = FaultyAnswers(self._course, self.frames.skew, market)
        if files is not None:
            files.join(self._course)

    @property
    def done(self) -> Sequence[Done]:
        """What was done so far, oldest first; at least the newest `KEPT_DONE` of it."""
        return self._course.done

    def begin(self) -> None:
        """The scenario's seconds count from the first call."""
        self._course.begin()

    async def run(self, hub: Hub) -> None:
        """What happens by the clock."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.connections.run(hub))
            tasks.create_task(self.answers.keep_books())
