"""Benchmarks: each prints a table and writes JSON with machine, versions, seed and intervals."""

import os

# As in the `mms` command: threads that wait for work sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
