#!/usr/bin/env python3
"""Record liquidations and prices. Settings come from .env; more words go to `crypto-lake run`."""

import sys

from crypto_lake.cli import main

main(["run", "--datasets", "liquidation,prices", *sys.argv[1:]])
