"""How a database of an earlier schema becomes one of the newest; run by `schema`."""
