"""Teachers, families, unit importance, extraction, and students whose layers differ in size."""
