"""The parts of `python -m benchmarks.update`, each measured by a `measure()`."""
