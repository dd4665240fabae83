"""Searching a teacher for its best sub-networks: spaces, genomes, optimisers and the run itself."""
