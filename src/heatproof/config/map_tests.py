"""Sections of the tests that score stored maps image by image."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveInt

from heatproof.config.base import FileName, Options, Percentile, Plugin, Section, as_list, distinct
from heatproof.config.classifier import Model
from heatproof.config.maps import IMPORTED, AttributionMethod, Methods


class MapTest(Methods):
    """A test that scores stored maps image by image."""

    inherited: ClassVar[tuple[str, ...]] = (*Methods.inherited, "model", "target", "ties", "dtype")

    model: Model
    target: Literal["predicted", "label"] = "predicted"
    ties: Literal["random", "index"] = "random"
    dtype: Literal["float16", "float32"] = "float16"
    test_samples: PositiveInt | None = Field(None, description="how many test images; null: all")
    batch_size: PositiveInt = Field(64, description="images at work, and kept at once; bounds the memory")
    rows_per_forward: PositiveInt = Field(256, description="altered images in one forward pass")


class PixelPerturbationAnalysis(MapTest):
    """Which pixels are removed, the least and the most relevant first, and what replaces them."""

    percentiles: Annotated[list[Percentile], Field(min_length=1), AfterValidator(distinct)] = Field(
        default=[*range(1, 11)]
    )
    test_samples: PositiveInt | None = Field(2000, description="how many test images; null: all")
    fill: str | Plugin = "mean"


class InsertionDeletion(MapTest):
    """How many pixels come and go in one step, the most important first, and between which images."""

    step: PositiveInt | Annotated[float, Field(gt=0, lt=1)] = Field(
        1 / 224, description="pixels of a step: a number, or below 1 a share of the image; with `patch`, of its squares"
    )
    patch: PositiveInt | None = Field(
        None, description="side of squares that come and go as a whole, as for patches of a transformer; null: pixels"
    )
    insertion_fill: str | Plugin = Field("rise_blur", description="where insertion starts")
    deletion_fill: str | Plugin = Field("zero_normalised", description="where deletion ends")


class Road(MapTest):
    """Which pixels are removed, in both orders, and how they are imputed."""

    percentiles: Annotated[
        list[Annotated[float, Field(gt=0, le=100)]], Field(min_length=1), AfterValidator(distinct)
    ] = Field([10, 20, 30, 40, 50, 70, 90], description="removed percent, in both orders")
    fill: str | Plugin = Field("noisy_linear", description="how removed pixels are replaced")


FaithfulnessTest = Literal[
    "region_perturbation",
    "pixel_flipping",
    "selectivity",
    "faithfulness_correlation",
    "faithfulness_estimate",
    "monotonicity_correlation",
    "sensitivity_n",
    "sensitivity_n_within",
    "infidelity",
    "monotonicity",
]


class Faithfulness(MapTest):
    """Which tests compare the values of maps with the drop of the score, and how pixels are removed for them."""

    tests: Annotated[
        list[FaithfulnessTest], BeforeValidator(as_list), AfterValidator(distinct), Field(min_length=1)
    ] = Field(
        default=[
            "region_perturbation",
            "pixel_flipping",
            "faithfulness_correlation",
            "faithfulness_estimate",
            "sensitivity_n",
            "infidelity",
        ]
    )
    fill: str | Plugin = Field("mean", description="how removed pixels are replaced")
    score: Literal["probability", "logit", "logit_margin", "accuracy"] = Field(
        "probability", description="of the target, along a growing removal; accuracy: is it still predicted"
    )
    correlation_score: Literal["probability", "logit", "logit_margin"] = Field(
        "logit", description="of the target, where each removal starts from the untouched image"
    )
    region_side: PositiveInt | None = Field(
        None, description="pixels of a square's side; null: an eighth of the image's shorter side"
    )
    region_steps: PositiveInt = Field(16, description="steps in which all squares are removed, equally many in each")
    region_draws: PositiveInt = Field(
        1, description="region_perturbation: curves averaged, each with its own noise, where the fill draws any"
    )
    pixel_steps: PositiveInt = Field(32, description="steps in which all pixels are removed, equally many in each")
    subsets: Annotated[int, Field(ge=3)] = Field(50, description="random subsets of pixels for each image")
    subset_fraction: float = Field(0.1, gt=0, lt=1, description="share of the pixels in a subset")
    within_fractions: Annotated[
        list[Annotated[float, Field(gt=0, lt=1)]], AfterValidator(distinct), Field(min_length=1)
    ] = Field(
        default=[0.1, 0.3, 0.5, 0.7], description="sensitivity_n_within: shares of the pixels in a subset, one by one"
    )
    monotonicity_draws: PositiveInt = Field(
        10, description="monotonicity_correlation: noise fills that each step is averaged over"
    )


class Localise(MapTest):
    """How maps are compared with the place of the object."""

    tolerance: float | None = Field(
        None,
        gt=0,
        description="pointing: pixels; null: 15 for images of at least 128 pixels, 1 (on the object) for smaller",
    )
    relative_tolerance: bool = Field(False, description="tolerance is a share of the image's diagonal")
    force_tolerance: bool = Field(False, description="accept a tolerance of a quarter of the image's side, or more")
    top_k: PositiveInt | None = Field(
        None, description="top_k_in_region: pixels; null: as many of the image as 1000 are of 224 x 224"
    )
    mask: Literal["minmax", "as_is"] = Field(
        "minmax",
        description="F1 and mask statistics: scale each map to [0, 1] first; as_is: maps that are masks already",
    )
    convention: Literal["exact", "as_published"] = Field(
        "exact", description="boxes: tight and half-open; or as the published code draws and compares them"
    )
    threshold_interval: float = Field(0.01, gt=0, lt=1, description="MaxBoxAcc: step from one threshold to the next")
    value_interval: float = Field(0.01, gt=0, lt=1, description="PxAP: width of a bin")
    size: PositiveInt | None = Field(
        None, description="MaxBoxAcc and PxAP: resize maps to this side first (224 as published); null: as they are"
    )
    accepted_classes: dict[str, list[NonNegativeInt]] | None = Field(
        None, description="for each label's name the model's classes that count as right; [] where there is none"
    )


class Complexity(MapTest):
    """What counts as a pixel that a map uses."""

    effective_threshold: float = Field(
        1e-5, ge=0, lt=1, description="values above this share of the map's largest are effective"
    )


class ExplainingTest(MapTest):
    """A test that makes maps anew, of other images or of another classifier."""

    def methods(self) -> list[AttributionMethod]:
        """Those that can be called: maps that came through import-maps, and twins, cannot be made anew."""
        return [method for method in super().methods() if method not in self.left_out()]

    def left_out(self) -> list[AttributionMethod]:
        """The methods that cannot be called."""
        return [m for m in super().methods() if m.method == IMPORTED or m.method.startswith("twin:")]


class Robustness(ExplainingTest):
    """How images are perturbed."""

    test_samples: PositiveInt | None = Field(200, description="how many test images; null: all")
    samples: PositiveInt = Field(
        10, description="perturbed versions of each image, uniform and Gaussian ones each; the papers take 200"
    )
    radius: float = Field(0.2, gt=0, description="of the uniform perturbation, in units of the normalised image")
    sigma: float = Field(0.1, gt=0, description="of the Gaussian perturbation, in units of the normalised image")


class OwnTest(MapTest):
    """A test from outside the package: a function that scores a batch of maps, or a class with `measure`."""

    name: FileName = Field(description="of its folder below tests/, and of its place in the report")
    test: str = Field(description="dotted path of a function (maps, ranks, images, ...) -> (N,), or of a class")
    kwargs: Options = Field(default_factory=dict, description="of the function, or of the class")
    better: Literal["higher", "lower", "neither"] | None = Field(
        None, description="of a function's score; null: its attribute `better`, else higher"
    )
    chance: float | None = Field(None, description="of a function's score: what a map without information scores")


class Agreement(MapTest):
    """Which maps are compared with one another."""

    test_samples: PositiveInt | None = Field(500, description="how many test images; null: all")
    top_fraction: float = Field(0.1, gt=0, le=1, description="share of the pixels that counts as the most important")


class DataRandomisation(Section):
    """A network of train_cls.model, trained on permuted labels until it knows them by heart.

    As train_cls says, but without augmentation and at a constant rate.
    """

    nb_epochs: PositiveInt = Field(200, description="passes over the training images, at most")
    until_accuracy: float = Field(
        0.95, gt=0, le=1, description="training accuracy that is enough; below it the test says nothing"
    )


class SanityChecks(ExplainingTest):
    """How the classifier is randomised, and which similarity is low."""

    test_samples: PositiveInt | None = Field(100, description="how many test images; null: all")
    orders: Annotated[list[Literal["top_down", "bottom_up", "independent"]], AfterValidator(distinct)] = Field(
        ["top_down", "independent"], description="of the layers' randomisation; top_down and bottom_up cascade"
    )
    layer_depth: PositiveInt | None = Field(
        2, description="what a layer is: a module at this depth; null: every module with reset_parameters"
    )
    initialisation: Literal["published", "reset"] = Field(
        "published", description="published: the rule of the masking-based saliency code; reset: reset_parameters"
    )
    keep_statistics: bool = Field(True, description="running statistics of normalisation layers stay as learnt")
    random_logit: bool = Field(True, description="also compare with the maps of a random other class")
    data_randomisation: DataRandomisation | None = Field(
        None, description="also compare with a network trained on permuted labels; {} for the defaults"
    )
    low_similarity: float = Field(
        0.5, gt=0, lt=1, description="a method passes where the interval of its similarity lies below, and fails above"
    )
