"""The only code that reads tables."""

from crypto_lake.query.book import BookAt, book_at
from crypto_lake.query.coverage import coverage
from crypto_lake.query.gaps import gaps
from crypto_lake.query.read import read
from crypto_lake.query.tables import layers, tables
from crypto_lake.query.validate import Report, validate

__all__ = ["BookAt", "Report", "book_at", "coverage", "gaps", "layers", "read", "tables", "validate"]
