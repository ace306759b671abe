"""What this machine does with crypto_lake, as ratios."""
