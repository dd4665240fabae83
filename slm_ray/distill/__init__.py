"""The teacher's help: its signal at every token, the losses against it, and the store that keeps it."""
