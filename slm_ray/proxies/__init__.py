"""Cheap measurements of a sub-network that stand in for its quality after training."""
