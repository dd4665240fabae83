"""The search against other ways to make a small model out of a large one: same teacher, text, budget and machine.

``python -m benchmarks.peers --out FOLDER`` makes every peer's model, measures it, trains each with the same help of the
teacher and prints one table. What each peer does is written from its paper; the module of each says what was changed.
"""
