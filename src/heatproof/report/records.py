"""What a page is made of: plain values that a stage gathered from its files. Nothing here reads or computes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof.metrics.comparison import Settings
from heatproof.metrics.score import Curve, Direction, Pooled, Score, Scored

FIRSTS = ("most", "least")
"""The two ends of an order, as the axes of `Curves` have them: MoRF, then LeRF."""


@dataclass(frozen=True)
class Method:
    """An attribution method of the configuration.

    Args:
        name: its unique name.
        control: whether it is a baseline that the others have to beat.
        path: dotted path of the code.
        settings: options, channel reduction and the like, for the reader.
        twin_of: the method whose stored maps a control is derived from; empty for all others.
    """

    name: str
    control: bool = False
    path: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    twin_of: str = ""


@dataclass(frozen=True)
class Retraining:
    """Test accuracies of networks retrained on degraded images: one metric's part of the grid.

    Args:
        metric: "roar" (the most important pixels are removed) or "kar" (the least important ones).
        fractions: (S,) removed fractions, growing, the first is 0: the intact runs, which all methods share.
        runs: (R,) numbers of the runs; equal numbers are pairs.
        accuracy: for each method (R, S), in [0, 1]; NaN where the cell is not there.
        nothing_left: accuracy to be expected where all pixels are removed: the share of the most frequent class.
        fill: what replaces removed pixels.
    """

    metric: str
    fractions: NDArray[np.float64]
    runs: tuple[int, ...]
    accuracy: Mapping[str, NDArray[np.float64]]
    nothing_left: float
    fill: str = "mean"

    @property
    def measures_nothing_left(self) -> bool:
        """Whether the grid reaches total removal, so that its accuracy need not be assumed."""
        return bool(self.fractions[-1] == 1)


@dataclass(frozen=True)
class Curves:
    """What the classifier says of degraded images, without retraining.

    Args:
        fractions: (S,) removed fractions, growing, the first is 0: the untouched image.
        targets: (N,) the class whose probability is kept.
        probability: for each method (N, 2, S): of the target, with the ends `FIRSTS`; NaN where the map is invalid.
        predicted: for each method (N, 2, S): the classifier's class.
        class_names: names of the classes.
        fill: what replaces removed pixels.
    """

    fractions: NDArray[np.float64]
    targets: NDArray[np.int64]
    probability: Mapping[str, NDArray[np.float64]]
    predicted: Mapping[str, NDArray[np.int64]]
    class_names: tuple[str, ...] = ()
    fill: str = "mean"

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.targets)


@dataclass(frozen=True)
class TestResult:
    """What a test of stored maps found, image by image.

    Args:
        name: of its section, or of a test from outside.
        label: the command that makes it, or the name of a test from outside.
        summary: what it does, in a few words.
        scores: all that it measures, with their directions.
        values: for each method its scores and curves; methods without a file are left out.
        index: (N,) positions of the images in the test split; all methods have the same.
    """

    name: str
    label: str
    summary: str
    scores: Sequence[Score]
    values: Mapping[str, Sequence[Scored | Pooled | Curve]]
    index: NDArray[np.int64]


@dataclass(frozen=True)
class RetrainingLine:
    """One line of what retraining amounts to; NaN where it is not testable or was not asked for.

    Args:
        score: accuracy, area_to_random, racu, diff_roar, order_kendall and the like.
        metric: "roar", "kar", "mask_only" and the like, or two of them.
        method: which; empty where it is about all methods.
        control: whether that is a baseline.
        removed_fraction: NaN where it is about all of them.
        better: direction.
        n: runs, or methods where it is about all.
        mean, sd, low, high: with the interval over runs.
        chance: the score of a map without information; of masks, the chance level.
        difference_to_random, difference_low, difference_high: over pairs of runs.
        images_low, images_high: interval over runs and test images: of that difference; of masks, of the mean.
        cohens_d: of the difference.
        p_holm: of no difference, or no better than chance; Holm-adjusted.
        not_better_than, not_testable_against: controls.
        leaks: whether the masks alone reveal the class.
    """

    score: str
    metric: str
    method: str
    control: bool
    removed_fraction: float
    better: Direction
    n: int
    mean: float
    sd: float = math.nan
    low: float = math.nan
    high: float = math.nan
    chance: float = math.nan
    difference_to_random: float = math.nan
    difference_low: float = math.nan
    difference_high: float = math.nan
    images_low: float = math.nan
    images_high: float = math.nan
    cohens_d: float = math.nan
    p_holm: float = math.nan
    not_better_than: tuple[str, ...] = ()
    not_testable_against: tuple[str, ...] = ()
    leaks: bool = False


@dataclass(frozen=True)
class Similarity:
    """How alike the maps of every two methods are.

    Args:
        methods: M names, as the matrices have them.
        matrices: for each similarity (N, M, M), NaN where undefined.
        leaf_order: the clustered methods, in the order of a dendrogram.
        linkage: (M' - 1, 4) of these, as SciPy has it.
        left_out: methods that could not be clustered.
    """

    methods: tuple[str, ...]
    matrices: Mapping[str, NDArray[np.float64]]
    leaf_order: tuple[str, ...] = ()
    linkage: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 4)))
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class SanityStep:
    """How alike a method's maps are to the intact ones once part of the classifier has forgotten what it learnt.

    Args:
        method: which.
        check: an order of randomisation, random_logit or data_randomisation.
        step: its number, from 1; growing with what is randomised.
        layer: what is new at this step.
        score: of similarity.
        n, n_undefined: images with a value, and without.
        mean, sd, low, high: of the similarity over these, with its interval.
        verdict: "passes", "fails" and the like, after the last step of a check that leaves nothing learnt; else empty.
        model_independent: whether the method's maps cannot depend on the classifier.
    """

    method: str
    check: str
    step: int
    layer: str
    score: str
    n: int
    n_undefined: int
    mean: float
    sd: float
    low: float
    high: float
    verdict: str = ""
    model_independent: bool = False


@dataclass(frozen=True)
class MapHealth:
    """What the maps of a method are like, whatever they mean.

    Args:
        method: its name.
        images: number of maps.
        constant: maps of one value only: their order is drawn.
        invalid: maps with NaN or infinity, left out everywhere.
        signed: whether a map of the sample has negative values.
        sampled: maps in which ties were counted.
        tied: for each removed fraction the mean share of pixels that tie across the cut.
        seconds: time it took to make all maps of all splits; None where it was not kept.
        made: number of maps in `seconds`.
    """

    method: str
    images: int
    constant: int
    invalid: int
    signed: bool
    sampled: int
    tied: Mapping[float, float]
    seconds: float | None = None
    made: int = 0


@dataclass(frozen=True)
class Picture:
    """One test image and every method's map of it.

    Args:
        index: its position in the test split.
        pixels: (H, W, C) uint8, C 1 or 3.
        label, prediction, target: names of the true class, the classifier's and the explained one.
        confidence: the classifier's probability of its prediction.
        is_right: whether prediction and label agree; None where the classifier's classes are not the labels.
        region: (H, W) the object, where the data set knows it.
        maps: for each method (H, W); NaN where invalid.
    """

    index: int
    pixels: NDArray[np.uint8]
    label: str
    prediction: str
    target: str
    confidence: float
    is_right: bool | None
    region: NDArray[np.bool_] | None
    maps: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Training:
    """How the classifier that is explained was trained.

    Args:
        history: columns of history.csv, each (E,).
        best_epoch: the epoch whose weights are kept.
        validation_accuracy, test_accuracy: of these weights.
    """

    history: Mapping[str, NDArray[np.float64]]
    best_epoch: int
    validation_accuracy: float
    test_accuracy: float


@dataclass(frozen=True)
class Progress:
    """How far a stage got.

    Args:
        what: the stage's subject, in words.
        command: the command that goes on with it.
        done, wanted: units of work.
        unit: what is counted.
        remarks: what was left out and why, one sentence each.
    """

    what: str
    command: str
    done: int
    wanted: int
    unit: str
    remarks: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing."""
        return self.done >= self.wanted


@dataclass(frozen=True)
class Cost:
    """Time that a stage took, over all hosts.

    Args:
        stage: its folder.
        jobs: lines of its timing.csv.
        items: images or the like.
        seconds: their sum.
        hosts: where it ran.
        finished: when the last job ended, as written.
    """

    stage: str
    jobs: int
    items: int
    seconds: float
    hosts: tuple[str, ...]
    finished: str


@dataclass(frozen=True)
class Material:
    """Everything that a page shows; what is None or empty was not computed (yet).

    Args:
        title: what the run is called.
        facts: subject and value, for the strip below the title.
        methods: of all stages, in the configuration's order, the controls last.
        retraining: one for each metric.
        curves: without retraining.
        tests: of stored maps, image by image; LeRF and MoRF are among them.
        retraining_lines: what retraining amounts to beside its curves: leakage of masks, the orders' agreement.
        similarity: of the methods' maps.
        sanity: what randomising the classifier does to maps.
        health: one for each method.
        pictures: the gallery.
        training: of the base classifier.
        learned: subject and sentence: how good the classifier is, and what was trained beside it to explain and to fill.
        progress: one for each stage.
        warnings: what makes numbers doubtful, one sentence each.
        costs: one for each stage that kept times.
        provenance: subject and value: hashes, fingerprints.
        versions: of what made the page.
        configuration: the whole, as YAML.
        label_targets: whether the maps explain the true class instead of the predicted one.
        settings: of the statistics.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    methods: Sequence[Method]
    retraining: Sequence[Retraining] = ()
    curves: Curves | None = None
    tests: Sequence[TestResult] = ()
    retraining_lines: Sequence[RetrainingLine] = ()
    similarity: Similarity | None = None
    sanity: Sequence[SanityStep] = ()
    health: Sequence[MapHealth] = ()
    pictures: Sequence[Picture] = ()
    training: Training | None = None
    learned: Sequence[tuple[str, str]] = ()
    progress: Sequence[Progress] = ()
    warnings: Sequence[str] = ()
    costs: Sequence[Cost] = ()
    provenance: Sequence[tuple[str, str]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    configuration: str = ""
    label_targets: bool = False
    settings: Settings = field(default_factory=Settings)
