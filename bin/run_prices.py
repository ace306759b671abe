#!/usr/bin/env python3
"""Record prices. Settings come from .env; more words go to `crypto-lake run`."""

import sys

from crypto_lake.cli import main

main(["run", "--datasets", "prices", *sys.argv[1:]])
