"""Reports of runs, made from their records alone: pages, pictures, tables, summaries, model cards. Needs no torch."""
