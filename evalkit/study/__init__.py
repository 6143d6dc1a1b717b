"""Whole studies: train the arms, ask them, report."""
