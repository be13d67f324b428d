"""Parts of `benchmarks.update`: pushing model versions to the fleet."""
