"""The declaration of every stage. Help, JSON schema, section names, and by a test all documents, follow it."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline. Its module is a path, so that listing stages imports none of them.

    Args:
        command: its name on the command line, also accepted as the name of its section.
        section: of the configuration, and folder of the run.
        module: dotted path; it has `run(run)`.
        summary: what it does, in a few words.
        is_map_test: whether it scores stored maps image by image; its module then has `test(settings)`.
    """

    command: str
    section: str
    module: str
    summary: str
    is_map_test: bool = False

    def load(self) -> Any:
        """The module."""
        return import_module(self.module)


STAGES = {
    stage.command: stage
    for stage in (
        Stage("train-cls", "train_cls", "heatproof.stages.train_cls", "train the classifier that is explained"),
        Stage(
            "evaluate-cls",
            "evaluate_cls",
            "heatproof.stages.evaluate_cls",
            "measure the classifier's accuracy, overall and for each class",
        ),
        Stage(
            "train-diffmask",
            "train_diffmask",
            "heatproof.stages.train_diffmask",
            "train the gates of Vision DiffMask, which select the patches that the classifier needs",
        ),
        Stage(
            "train-masker",
            "train_masker",
            "heatproof.stages.train_masker",
            "train masking networks (FIX, CA), used as attribution methods",
        ),
        Stage(
            "train-infiller",
            "train_infiller",
            "heatproof.stages.train_infiller",
            "train a small network to fill holes, and compare it with the other fills",
        ),
        Stage(
            "extract-attribution-maps",
            "extract_cams",
            "heatproof.stages.extract",
            "compute the maps of every attribution method, once",
        ),
        Stage(
            "infill",
            "infill",
            "heatproof.stages.infill",
            "fill the holes that maps cut into images, once for all tests that remove the same pixels",
        ),
        Stage(
            "evaluate-attribution-maps-roar",
            "retrain_cls",
            "heatproof.stages.retrain",
            "ROAR and KAR: remove pixels, retrain, measure",
        ),
        Stage(
            "lerf",
            "pixel_perturbation_analysis",
            "heatproof.stages.perturb",
            "LeRF and MoRF: remove pixels and measure, without retraining",
            is_map_test=True,
        ),
        Stage(
            "insertion-deletion",
            "insertion_deletion",
            "heatproof.stages.insertion_deletion",
            "insertion and deletion: put pixels into a start image or remove them, without retraining",
            is_map_test=True,
        ),
        Stage(
            "road",
            "road",
            "heatproof.stages.road",
            "ROAD: remove pixels, impute them from their neighbours and measure, without retraining",
            is_map_test=True,
        ),
        Stage(
            "faithfulness",
            "faithfulness",
            "heatproof.stages.faithfulness",
            "region perturbation, pixel flipping and faithfulness correlations, without retraining",
            is_map_test=True,
        ),
        Stage(
            "localise",
            "localise",
            "heatproof.stages.localise",
            "pointing game, boxes and masks, for datasets with object annotations",
            is_map_test=True,
        ),
        Stage(
            "complexity",
            "complexity",
            "heatproof.stages.complexity",
            "measure whether maps concentrate on few pixels",
            is_map_test=True,
        ),
        Stage(
            "robustness",
            "robustness",
            "heatproof.stages.robustness",
            "measure how far maps change when images are perturbed slightly",
            is_map_test=True,
        ),
        Stage(
            "agreement",
            "agreement",
            "heatproof.stages.agreement",
            "measure how similar the maps of every two methods are",
        ),
        Stage(
            "sanity-checks",
            "sanity_checks",
            "heatproof.stages.sanity_checks",
            "test whether maps change when the classifier's weights are randomised",
        ),
        Stage("report", "report", "heatproof.stages.report", "write one self-contained page with all results"),
    )
}
"""All stages by their commands, in the order of the pipeline."""
