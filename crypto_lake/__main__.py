"""`python -m crypto_lake` is `crypto-lake`."""

from crypto_lake.cli import main

main()
