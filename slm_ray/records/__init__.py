"""The records every stage writes and reads, and the files they lie in."""
