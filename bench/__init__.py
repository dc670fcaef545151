"""Benchmarks against real peers and against the limit. `python -m bench --help`; `pytest bench`."""
