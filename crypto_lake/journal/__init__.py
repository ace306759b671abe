"""The queue on disk: whatever arrives is appended here, raw, before anything else happens to it."""

from crypto_lake.journal.lock import take
from crypto_lake.journal.reader import Record, Segment, backlog, end_of, read, read_all, segments
from crypto_lake.journal.writer import Journal, sync_directory
from crypto_lake.models.frame import ALIVE, CARRIES, CLOSED, DOUBT, FRAME, LAPSE, OPENED, RESPONSE, Records

__all__ = [
    "ALIVE",
    "CARRIES",
    "CLOSED",
    "DOUBT",
    "FRAME",
    "LAPSE",
    "OPENED",
    "RESPONSE",
    "Journal",
    "Record",
    "Records",
    "Segment",
    "backlog",
    "end_of",
    "read",
    "read_all",
    "segments",
    "sync_directory",
    "take",
]
