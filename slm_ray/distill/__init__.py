"""The teacher's help: what it says at every token, the losses against it, and the store its words are kept in."""
