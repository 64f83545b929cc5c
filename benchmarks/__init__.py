"""Measurements, each run as `python -m benchmarks.NAME`: they print, and judge nothing."""
