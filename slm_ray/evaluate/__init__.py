"""Quality of models on held-out text."""
