"""All stages: what they are called, where they are, and which section of a configuration they need.

Names and paths only: listing the stages imports none of them.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heatproof import config
    from heatproof.stages.evaluate import MapTest


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline.

    Args:
        module: dotted path; it has `run(run)`.
        summary: what it does, in a few words.
        section: of the configuration, and folder of the run.
        is_map_test: whether it scores stored maps image by image; its module then has `test(settings)`.
    """

    module: str
    summary: str
    section: str
    is_map_test: bool = False

    def load(self) -> Any:
        """The module."""
        return import_module(self.module)


STAGES = {
    "train-cls": Stage("heatproof.stages.train_cls", "train the classifier that is explained", "train_cls"),
    "evaluate-cls": Stage(
        "heatproof.stages.evaluate_cls", "say how often the classifier is right, for each class", "evaluate_cls"
    ),
    "train-diffmask": Stage(
        "heatproof.stages.train_diffmask", "learn which patches the classifier needs, for DiffMask", "train_diffmask"
    ),
    "train-masker": Stage(
        "heatproof.stages.train_masker",
        "train networks that mask what counts (FIX, CA), which then explain",
        "train_masker",
    ),
    "train-infiller": Stage(
        "heatproof.stages.train_infiller", "train a small network to fill holes of these images", "train_infiller"
    ),
    "extract-attribution-maps": Stage(
        "heatproof.stages.extract", "compute each attribution method's maps, once", "extract_cams"
    ),
    "infill": Stage("heatproof.stages.infill", "fill the holes that maps cut into images, once", "infill"),
    "evaluate-attribution-maps-roar": Stage(
        "heatproof.stages.retrain", "ROAR and KAR: remove pixels, retrain, measure", "retrain_cls"
    ),
    "lerf": Stage(
        "heatproof.stages.perturb",
        "LeRF and MoRF: remove pixels, measure without retraining",
        "pixel_perturbation_analysis",
        is_map_test=True,
    ),
    "insertion-deletion": Stage(
        "heatproof.stages.insertion_deletion",
        "insert pixels into a start image and delete them, the most important first, without retraining",
        "insertion_deletion",
        is_map_test=True,
    ),
    "road": Stage(
        "heatproof.stages.road",
        "ROAD: remove pixels and impute them from their neighbours, without retraining",
        "road",
        is_map_test=True,
    ),
    "faithfulness": Stage(
        "heatproof.stages.faithfulness",
        "region perturbation, pixel flipping, and do a map's values say how far the score falls",
        "faithfulness",
        is_map_test=True,
    ),
    "localise": Stage(
        "heatproof.stages.localise",
        "pointing game, boxes and masks: do maps find the object",
        "localise",
        is_map_test=True,
    ),
    "complexity": Stage(
        "heatproof.stages.complexity", "is a map about few pixels or about all", "complexity", is_map_test=True
    ),
    "robustness": Stage(
        "heatproof.stages.robustness",
        "how far maps move when their images are perturbed a little",
        "robustness",
        is_map_test=True,
    ),
    "agreement": Stage("heatproof.stages.agreement", "how alike the maps of every two methods are", "agreement"),
    "sanity-checks": Stage(
        "heatproof.stages.sanity_checks",
        "do maps change when the classifier forgets what it has learnt",
        "sanity_checks",
    ),
    "report": Stage("heatproof.stages.report", "one self-contained page of all results", "report"),
}


def sections() -> list[str]:
    """Sections of the configuration that belong to a stage, in the order of the pipeline."""
    return [stage.section for stage in STAGES.values()]


def map_test(settings: "config.Config", name: str) -> "MapTest":
    """The test of a stage, as the configuration asks for it."""
    test: MapTest = STAGES[name].load().test(settings)
    return test
