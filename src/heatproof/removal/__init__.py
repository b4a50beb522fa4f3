"""The order of pixels, what is removed, what replaces it, and what the model says of the rest."""

from heatproof.removal.fills import (
    FILLS,
    Black,
    Blur,
    Fill,
    ImageMean,
    Mean,
    Noise,
    NoisyLinear,
    Replacing,
    RiseBlur,
    ZeroNormalised,
    build_fill,
    fill,
)
from heatproof.removal.linear import impute_linear
from heatproof.removal.orders import First, count, inverse, orders, rank_tensor, ranks, removed, tie_keys, tied_share
from heatproof.removal.scores import DegradedScores, SubsetScores, degraded_scores, subset_scores

__all__ = [
    "FILLS",
    "Black",
    "Blur",
    "DegradedScores",
    "Fill",
    "First",
    "ImageMean",
    "Mean",
    "Noise",
    "NoisyLinear",
    "Replacing",
    "RiseBlur",
    "SubsetScores",
    "ZeroNormalised",
    "build_fill",
    "count",
    "degraded_scores",
    "fill",
    "impute_linear",
    "inverse",
    "orders",
    "rank_tensor",
    "ranks",
    "removed",
    "subset_scores",
    "tie_keys",
    "tied_share",
]
