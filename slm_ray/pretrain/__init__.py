"""Training students: the loop on Ray Train and DeepSpeed, its optimisers, checkpoints and accounts."""
