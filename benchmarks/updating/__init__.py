"""What pushing a model costs: bytes, memory, time, and what devices notice of it."""
