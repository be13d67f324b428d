"""A fleet to try things on: light agents that speak the real protocol, with faults.

`plan`, `quality` and `tally` are pure; `agent` joins the real loops of an edge agent
with a pretended device; `host` is one process full of them; `stage` is the broker, the
pool and the fleet's daemon that they meet.
"""
