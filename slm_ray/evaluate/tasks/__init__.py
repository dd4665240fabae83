"""Benchmarks of lm-eval: which tasks, on which data, run through lm-eval's own API, kept as records."""
