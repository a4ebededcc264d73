"""Benchmarks, each a command that prints a table and stores JSON with its device and versions."""
