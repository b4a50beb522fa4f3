"""From the numbers that stages stored to one page: tables, charts, pictures and what they say in words.

A stage gathers `Material`; `compose` makes the page of it. Nothing here reads a file of a run.
"""

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
    Settings,
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
    "Settings",
    "TestResult",
    "Training",
    "compose",
    "source_texts",
]
