"""Pure sums over rows: bars, imbalance bars, books, indicators, features. No clock, no file, no table."""
