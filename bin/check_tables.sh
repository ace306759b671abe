#!/usr/bin/env bash
# What is in the tables: rows, time spans, gaps, duplicates. More words go to `crypto-lake tables`.
program="$(dirname "$0")/../.venv/bin/crypto-lake"
[ -x "$program" ] || program=crypto-lake
exec "$program" tables "$@"
