"""Decisions of a worker. No I/O, no clock, no randomness."""
