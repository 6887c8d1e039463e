"""A steady mixed load for an hour, and whether anything grows: `python -m benchmarks.soak`."""
