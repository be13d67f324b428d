"""Open-loop load on the pool or on an agent, and what came of it.

`arrivals`, `mix`, `plan`, `histogram` and `account` are pure; `ways` send and hear.
"""
