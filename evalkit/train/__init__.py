"""How the compared checkpoints are made."""
