"""Classifiers, their weights and normalisation, and hooks on them."""

from heatproof.models.hooks import frozen_eval, module_named, recorded
from heatproof.models.loading import LoadedModel, load
from heatproof.models.normalization import Normalization

__all__ = ["LoadedModel", "Normalization", "frozen_eval", "load", "module_named", "recorded"]
