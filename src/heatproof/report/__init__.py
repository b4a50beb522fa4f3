"""From the numbers that stages stored to one page: tables, charts, pictures and what they say in words.

A stage gathers `Material`; `compose` makes the page of it. Nothing here reads a file of a run.
"""

from heatproof.metrics.comparison import Settings
from heatproof.report.page import RESULTS_VERSION, Report, compose, source_texts
from heatproof.report.records import (
    Cost,
    Curves,
    MapHealth,
    Material,
    Method,
    Picture,
    Progress,
    Retraining,
    RetrainingLine,
    SanityStep,
    Similarity,
    TestResult,
    Training,
)

__all__ = [
    "RESULTS_VERSION",
    "Cost",
    "Curves",
    "MapHealth",
    "Material",
    "Method",
    "Picture",
    "Progress",
    "Report",
    "Retraining",
    "RetrainingLine",
    "SanityStep",
    "Settings",
    "Similarity",
    "TestResult",
    "Training",
    "compose",
    "source_texts",
]
