"""When to ask the cloud: scores, thresholds and curves. Pure numpy, no I/O.

A leaf: imports no other package of the project, and is usable alone.
"""
