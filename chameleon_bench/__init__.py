"""Benchmarks: our way against what a user would otherwise run, on this machine, each row behind a gate."""
