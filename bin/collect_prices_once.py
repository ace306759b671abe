#!/usr/bin/env python3
"""Take one snapshot of all prices. Settings come from .env; more words go to `crypto-lake price-once`."""

import sys

from crypto_lake.cli import main

main(["price-once", *sys.argv[1:]])
