"""Decisions about rollouts and devices: no I/O, no clock."""
