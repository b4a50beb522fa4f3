"""Heatproof tests whether the heatmaps that explain vision models can be trusted."""
