"""bAbI questions hidden in long background text."""
