"""Scores as plain arithmetic on NumPy arrays."""
