"""Configuration files: the schema, by subject, and how a file is read.

Section and key names are those of the ROAR research code. Defaults stand here and nowhere else.
"""

from heatproof.config.base import Plugin, Section
from heatproof.config.classifier import Augmentation, Data, EvaluateCls, Model, TrainCls
from heatproof.config.map_tests import (
    Agreement,
    Complexity,
    DataRandomisation,
    ExplainingTest,
    Faithfulness,
    FaithfulnessTest,
    InsertionDeletion,
    Localise,
    MapTest,
    OwnTest,
    PixelPerturbationAnalysis,
    Road,
    Robustness,
    SanityChecks,
)
from heatproof.config.maps import IMPORTED, AttributionMethod, ExtractCams, Infill, Infiller, Methods, RetrainCls
from heatproof.config.networks import MaskerFormName, MaskInTerm, MaskOutTerm, TrainDiffmask, TrainInfiller, TrainMasker
from heatproof.config.reading import read
from heatproof.config.schema import Config, Report, keys, section

__all__ = [
    "IMPORTED",
    "Agreement",
    "AttributionMethod",
    "Augmentation",
    "Complexity",
    "Config",
    "Data",
    "DataRandomisation",
    "EvaluateCls",
    "ExplainingTest",
    "ExtractCams",
    "Faithfulness",
    "FaithfulnessTest",
    "Infill",
    "Infiller",
    "InsertionDeletion",
    "Localise",
    "MapTest",
    "MaskInTerm",
    "MaskOutTerm",
    "MaskerFormName",
    "Methods",
    "Model",
    "OwnTest",
    "PixelPerturbationAnalysis",
    "Plugin",
    "Report",
    "RetrainCls",
    "Road",
    "Robustness",
    "SanityChecks",
    "Section",
    "TrainCls",
    "TrainDiffmask",
    "TrainInfiller",
    "TrainMasker",
    "keys",
    "read",
    "section",
]
