"""Rotary positions: formulas, what a config stores, what is served, what was loaded."""
