"""Benchmarks: each prints a table and writes JSON with machine, versions, seed and intervals."""
