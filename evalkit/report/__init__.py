"""What the records mean: statistics, tables, figures, one page."""
