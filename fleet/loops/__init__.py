"""Endless tasks of the daemon."""
