"""Runs the benchmarks side by side with their peers; see measure.py for how a figure is made."""
