"""The order of pixels, what is removed, what replaces it, and what the model says of the rest."""

from heatproof.removal.fills import (
    FILLS,
    GENERATIVE,
    Black,
    Blur,
    Fill,
    ImageMean,
    MaskingBlur,
    Mean,
    Noise,
    NoisyLinear,
    Replacing,
    RiseBlur,
    ZeroNormalised,
    build_fill,
    fill,
)
from heatproof.removal.inpainting import CaGan, Cnn, DfNet, LearnedInfill, PartialConv, in_normalised_space
from heatproof.removal.linear import impute_linear
from heatproof.removal.orders import First, count, inverse, orders, rank_tensor, ranks, removed, tie_keys, tied_share
from heatproof.removal.scores import DegradedScores, SubsetScores, degraded_scores, subset_scores
from heatproof.removal.telea import Telea

__all__ = [
    "FILLS",
    "GENERATIVE",
    "Black",
    "Blur",
    "CaGan",
    "Cnn",
    "DegradedScores",
    "DfNet",
    "Fill",
    "First",
    "ImageMean",
    "LearnedInfill",
    "MaskingBlur",
    "Mean",
    "Noise",
    "NoisyLinear",
    "PartialConv",
    "Replacing",
    "RiseBlur",
    "SubsetScores",
    "Telea",
    "ZeroNormalised",
    "build_fill",
    "count",
    "degraded_scores",
    "fill",
    "impute_linear",
    "in_normalised_space",
    "inverse",
    "orders",
    "rank_tensor",
    "ranks",
    "removed",
    "subset_scores",
    "tie_keys",
    "tied_share",
]
