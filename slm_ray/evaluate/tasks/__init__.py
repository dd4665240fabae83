"""Benchmarks of lm-eval, run through its own ``TaskManager`` and ``evaluate``."""
