"""Ours beside the queues and servers that a user would pick instead, in one run.

`apps/` holds what a peer's own documentation recommends, and runs in an environment of
its own; everything else drives it from outside and runs in this project's.
"""
