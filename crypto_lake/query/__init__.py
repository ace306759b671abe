"""The only code that reads tables."""

from crypto_lake.query.read import read
from crypto_lake.query.tables import tables

__all__ = ["read", "tables"]
