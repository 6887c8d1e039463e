"""The product's figures, each beside its limit in the same run: `python -m benchmarks`."""
