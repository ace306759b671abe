"""How a running collector is watched: numbers, health, log, and the word to systemd."""
