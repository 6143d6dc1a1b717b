"""What was answered: the run folder."""
