"""One run, and what else is done with checkpoints and run folders."""
