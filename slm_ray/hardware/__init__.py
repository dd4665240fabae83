"""What machines can do, and what they use: peak speeds, memory, energy."""
