"""Loops that train networks, and their checkpoints."""
