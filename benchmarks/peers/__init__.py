"""The search against other ways to make a small model out of a large one: same teacher, text, budget and machine."""
