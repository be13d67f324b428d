"""The agent's decisions: no I/O, no clock, no randomness."""
