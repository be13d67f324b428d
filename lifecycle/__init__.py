"""How a process lives: signals, task groups, drain, clock and logs.

Imports none of the leaves' I/O; every program stands on it.
"""
