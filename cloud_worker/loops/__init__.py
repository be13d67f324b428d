"""The endless tasks of a worker; each acts on what the core decides."""
