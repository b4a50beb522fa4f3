"""The declaration of every stage. Help, JSON schema, section names, and by a test all documents, follow it."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline. Its module is a name, so that listing stages imports none of them.

    Args:
        command: its name on the command line, also accepted as the name of its section.
        section: of the configuration, and folder of the run.
        module: in heatproof.stages; it has `run(run)`.
        is_map_test: whether it scores stored maps image by image; its module then has `test(settings)`, or
            `tests(settings)` for several.
        summary: what it does, in a few words.
    """

    command: str
    section: str
    module: str
    is_map_test: bool
    summary: str

    def load(self) -> Any:
        """The module."""
        return import_module(f"heatproof.stages.{self.module}")


STAGES = {
    stage.command: stage
    for stage in (
        Stage("train-cls", "train_cls", "train_cls", False,
              "train the classifier that is explained"),
        Stage("evaluate-cls", "evaluate_cls", "evaluate_cls", False,
              "measure the classifier's accuracy, overall and for each class"),
        Stage("train-diffmask", "train_diffmask", "train_diffmask", False,
              "train the gates of Vision DiffMask, which select the patches that the classifier needs"),
        Stage("train-masker", "train_masker", "train_masker", False,
              "train masking networks (FIX, CA), used as attribution methods"),
        Stage("train-infiller", "train_infiller", "train_infiller", False,
              "train a small network to fill holes, and compare it with the other fills"),
        Stage("extract-attribution-maps", "extract_cams", "extract", False,
              "compute the maps of every attribution method, once"),
        Stage("infill", "infill", "infill", False,
              "fill the holes that maps cut into images, once for all tests that remove the same pixels"),
        Stage("evaluate-attribution-maps-roar", "retrain_cls", "retrain", False,
              "ROAR and KAR: remove pixels, retrain, measure"),
        Stage("lerf", "pixel_perturbation_analysis", "perturb", True,
              "LeRF and MoRF: remove pixels and measure, without retraining"),
        Stage("insertion-deletion", "insertion_deletion", "insertion_deletion", True,
              "insertion and deletion: put pixels into a start image or remove them, without retraining"),
        Stage("road", "road", "road", True,
              "ROAD: remove pixels, impute them from their neighbours and measure, without retraining"),
        Stage("faithfulness", "faithfulness", "faithfulness", True,
              "region perturbation, pixel flipping and faithfulness correlations, without retraining"),
        Stage("localise", "localise", "localise", True,
              "pointing game, boxes and masks, for datasets with object annotations"),
        Stage("complexity", "complexity", "complexity", True,
              "measure whether maps concentrate on few pixels"),
        Stage("robustness", "robustness", "robustness", True,
              "measure how far maps change when images are perturbed slightly"),
        Stage("map-tests", "tests", "map_tests", True,
              "run tests of your own on the stored maps"),
        Stage("agreement", "agreement", "agreement", False,
              "measure how similar the maps of every two methods are"),
        Stage("sanity-checks", "sanity_checks", "sanity_checks", False,
              "test whether maps change when the classifier's weights are randomised"),
        Stage("report", "report", "report", False,
              "write one self-contained page with all results"),
    )
}  # fmt: skip
"""All stages by their commands, in the order of the pipeline."""
