"""What tests of the receiving side share: a journal, and the gate that a full disk would close."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crypto_lake.journal import Journal


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    made = Journal(tmp_path / "journal")
    yield made
    made.close()


@pytest.fixture
def gate() -> asyncio.Event:
    made = asyncio.Event()
    made.set()
    return made
