"""Sweeps: a file that names a base run and what varies over it becomes many runs and one table."""
