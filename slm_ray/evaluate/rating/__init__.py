"""Blinded side-by-side ratings by people: the page, and the table made of what they said."""
