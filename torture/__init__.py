"""Torture: a recorder under random faults and kills, held against everything that the exchange has sent."""
