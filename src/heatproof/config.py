"""The schema of a configuration file, and the function that reads it.

Section and key names are those of the ROAR research code. Defaults stand here and nowhere else.
"""

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
)

from heatproof.errors import ConfigError, nearest


def _distinct(values: Sequence[Any]) -> Sequence[Any]:
    # Numbers name files and lines of results as they are written, and so do names where a file system ignores case.
    keys = [f"{value:g}" if isinstance(value, float) else value for value in values]
    for position, (key, value) in enumerate(zip(keys, values, strict=True)):
        if value in values[:position]:
            raise ValueError(f"{key if isinstance(value, float) else repr(value)} occurs twice")
        if key in keys[:position]:
            raise ValueError(f"{value!r} is written {key}, as one before it; numbers must differ in six digits")
    return values


def _names_of_files(names: Sequence[str], of: str) -> None:
    """Raises ValueError where two names, or a name and a file of the stages, are one path, perhaps but for case."""
    for position, name in enumerate(names):
        for other in names[:position]:
            if name.lower() == other.lower():
                how = "occurs twice" if name == other else f"differs from {other!r} in case only"
                raise ValueError(f"{of}[{position}].name: {name!r} {how}; names must differ")
        if name.lower() in RESERVED:
            raise ValueError(f"{of}[{position}].name: {name!r} is the name of a file of results; take another")


def _ascending(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError("the least must come first")
    return values


def _percentile(value: float) -> float:
    if not 0 <= value <= 100:
        raise ValueError("must lie between 0 and 100")
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _empty_when_null(value: Any) -> Any:
    return {} if value is None else value


FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Percentile = Annotated[float, AfterValidator(_percentile)]
Options = Annotated[dict[str, Any], BeforeValidator(_empty_when_null)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
RESERVED = ("results", "timing.csv")
"""Names of files that stages leave beside those of the methods."""
Control = Literal["random", "sobel", "centre", "uniform", "oracle", "anti_oracle"]
Twin = Literal["blurred", "max3", "inverse", "average"]


class Section(BaseModel):
    """Base of all sections: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Plugin(BaseModel):
    """A class named by its dotted path; all further keys are its keyword arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(description="dotted path, such as torch.optim.Adam")

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments."""
        return dict(self.model_extra or {})


class Data(Section):
    """Which images."""

    dataset: str = Field(
        description="Planted | Counting | CIFAR10 | CIFAR10_QA | MNIST | FashionMNIST | ImageFolder | ImageNet | Arrays | Wsol | Prepared | OxfordPets | Coco | dotted path of your own class"
    )
    dataset_dir: Path | None = Field(None, description="where the files are; not needed for generated data")
    split_ratio: float = Field(0.875, gt=0, lt=1, description="train share of the training set; the rest is validation")
    examples_per_class: PositiveInt | None = Field(
        None,
        description="few-shot: cut the train split to so many pictures of each class, drawn from the seed; null: all",
    )
    classes: PositiveInt | None = Field(
        None, description="cut the train split to so many classes, drawn from the seed; labels and other splits stay"
    )
    options: Options = Field(default_factory=dict, description="further options of the data set")
    memory_gb: float = Field(
        4.0, ge=0, description="splits up to this size are held in memory, larger ones are streamed"
    )
    loader_workers: NonNegativeInt = Field(2, description="processes that decode pictures of streamed splits")


class NormalizationSection(Section):
    """What the model expects: (pixels - mean) / std for each channel, pixels in [0, 1]."""

    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]


class Model(Section):
    """A classifier and its weights."""

    arch: str = Field(description="dotted path, torchvision.models.resnet50, timm:NAME or hf:NAME")
    constructor_args: Options = Field(default_factory=dict)
    pretrained_weights: str | None = Field(None, description="file of weights (torch.save or safetensors), or DEFAULT")
    transformer: str | None = Field(None, description="dotted path called with (model, num_classes)")
    output: Literal["softmax", "sigmoid", "probabilities"] = Field(
        "softmax",
        description="what it gives: logits of classes that exclude one another, logits of labels that can be true together, or probabilities; one output is always the logit of class 1 of two",
    )
    class_names: Path | None = Field(
        None, description="text file with the name of each class, one a line, where they are not the data set's"
    )
    normalization: NormalizationSection | None = Field(
        None,
        description="null: of the file beside the weights (train-cls writes it), else of the library's own weights for this "
        "arch; needed where neither has one; of the training split where weights are drawn",
    )


class Augmentation(Section):
    """What is done to training images, after the removal of pixels: crop and mirror before normalisation, the rest after."""

    crop_padding: NonNegativeInt = Field(4, description="random crop after padding by so many pixels; 0: none")
    padding: Literal["fill", "black"] = Field("fill", description="colour of the padding: the training mean, or black")
    flip: bool = Field(True, description="mirror half of the images left to right")
    noise: float = Field(0.0, ge=0, description="standard deviation of added noise, in units of the normalised image")
    rotation: float = Field(0.0, ge=0, le=180, description="turned by up to so many degrees, to either side")
    blur: bool = Field(False, description="Gaussian kernel of 3 x 3 of random width")


class Training(Section):
    """How a classifier is trained; the defaults are those of the ROAR code."""

    model: Model
    optimizer: Plugin = Plugin.model_validate({"name": "torch.optim.Adam", "lr": 1.0e-3, "weight_decay": 1.0e-4})
    scheduler: Plugin | None = Plugin.model_validate(
        {"name": "torch.optim.lr_scheduler.StepLR", "step_size": 10, "gamma": 0.5}
    )
    loss: Plugin = Plugin(name="torch.nn.CrossEntropyLoss")
    scheduler_per_batch: bool = Field(False, description="a scheduler's step is a batch, not an epoch")
    batch_size: PositiveInt = 256
    nb_epochs: PositiveInt = 50
    patience: PositiveInt | None = Field(
        None, description="end when the validation accuracy has not risen for so many epochs; null: never"
    )
    augmentation: Augmentation = Augmentation()
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: autocast of the forward pass")
    channels_last: bool = Field(False, description="memory layout of activations; pays for convolutions in bfloat16")


class EvaluateCls(Section):
    """evaluate-cls: how often the classifier is right, as a whole and for each class."""

    model: Model | None = Field(None, description="null: the one that train-cls left")
    splits: Annotated[
        list[Literal["train", "validation", "test"]],
        BeforeValidator(_as_list),
        AfterValidator(_distinct),
        Field(min_length=1),
    ] = ["test"]
    batch_size: PositiveInt = 256


# --- train_diffmask


class TrainDiffmask(Section):
    """train-diffmask: learn which patches the classifier needs, without labels.

    Defaults are those of the corrected form. The published code has compat: true, alpha 20, lr 2e-5, lr_placeholder 1e-3,
    lr_alpha 0.3, mul_activation 15, add_activation 8, hidden: ~ and warmup_steps 1200.
    """

    model: Model
    form: Literal["tokens", "pixels"] | None = Field(
        None,
        description="tokens: patch embeddings of a vision transformer; pixels: squares of the input, for convolutional "
        "networks, an extension of the published method; null: tokens where there are any",
    )
    patch: PositiveInt | None = Field(
        None, description="pixels: side of a square; null: about an eighth of the image's shorter side"
    )
    nb_epochs: PositiveInt = 20
    batch_size: PositiveInt = 32
    patience: PositiveInt | None = Field(
        None, description="end when no epoch has been better for so many epochs; null: never"
    )
    eps: float = Field(0.1, gt=0, description="tolerated KL divergence of the masked from the intact prediction")
    alpha: float = Field(2.0, ge=0, le=200, description="first value of each depth's multiplier of the divergence")
    lr: float = Field(1.0e-2, gt=0, description="learning rate of the gates")
    lr_placeholder: float = Field(
        0.02, gt=0, description="learning rate of what stands for a masked patch, in units of the embeddings' spread"
    )
    lr_alpha: float = Field(
        0.01, gt=0, description="share by which a multiplier changes in a step at most; compat: its learning rate"
    )
    warmup_steps: NonNegativeInt = Field(100, description="in which the first two rates grow from 0")
    optimizer: Literal["adam", "radam", "rmsprop"] = Field("adam", description="within Lookahead")
    mul_activation: float = Field(5.0, gt=0, description="factor of the gates' outputs")
    add_activation: float = Field(5.0, description="first value of the logit that each gate adds")
    hidden: PositiveInt | None = Field(64, description="width of the gates' hidden layer; null: a quarter of a state's")
    no_placeholder: bool = Field(False, description="masked patches become zeros, not a learned vector")
    every_layer: bool = Field(
        False, description="train what the first gates alone would keep too (DiffMask's option layer); masks get larger"
    )
    weighted_layer_distribution: bool = Field(
        False, description="every_layer, and depths whose masks are small and faithful are drawn ten times less often"
    )
    diffmask_checkpoint: Path | None = Field(None, description="start from the gates of this file")
    compat: bool = Field(False, description="the published form, faults included")
    sample_images: NonNegativeInt = Field(8, description="validation images whose masks TensorBoard shows")
    pictures_every: PositiveInt = Field(1, description="epochs from one picture to the next")


# --- train_masker


class MaskPrior(Section):
    """kldivergence: uncertainty of the masked image as nearness to a prior over classes."""

    kl: Literal["forward", "backward"] = Field("forward", description="-sum(prior ln q), or sum(q (ln q - ln prior))")
    compare: Literal["subtract", "divide"] = Field(
        "subtract", description="the answer is the largest of q - prior, or q / prior"
    )
    class_weights: list[Annotated[float, Field(gt=0)]] | None = Field(
        None, description="one for each class; the prior is their inverse, normalised; null: a uniform prior"
    )
    only_right: bool = Field(False, description="images that are wrong when clean count as zero")
    weigh_classes: bool = Field(False, description="each image counts times the weight of its label")
    always_small: bool = Field(False, description="every mask pays for its area, instead of rewards for some")
    nothing_class: NonNegativeInt | None = Field(None, description="label of images without an object")
    nothing_weight: float = Field(1.0, description="factor of lambda_r for those")


class MaskTerm(Section):
    """One of the two terms of the masker's loss."""

    criterion: Literal["crossentropy", "kldivergence", "none"] = Field(
        "crossentropy", description="none leaves the term out; kldivergence: see prior"
    )
    direction: Literal["maximize", "minimize"] = "maximize"
    weight: float = Field(1.0, gt=0)
    lambda_tv: float = Field(
        0.001, ge=0, description="price of rough masks, summed over pixels; published at 224 x 224, and in both terms"
    )
    prior: MaskPrior = MaskPrior()


class MaskInTerm(MaskTerm):
    """The term of the image masked in."""

    objective: Literal["classification", "entropy"] = "classification"
    lambda_r: float = Field(1.0, ge=0, description="reward for small masks that do their work")


class MaskOutTerm(MaskTerm):
    """The term of the image masked out."""

    objective: Literal["classification", "entropy"] = "entropy"
    lambda_r: float | None = Field(
        None, ge=0, description="reward for small masks that do their work; null: as published, 10 with fix, 15 with ca"
    )


MaskerFormName = Literal["fix", "ca"]


class TrainMasker(Section):
    """train-masker: a network that says in one pass which pixels count. The defaults are the published ones."""

    model: Model
    form: Annotated[list[MaskerFormName], BeforeValidator(_as_list), AfterValidator(_distinct), Field(min_length=1)] = (
        Field(
            default=["fix"],
            description="fix: the classifier stays as it is; ca: it is trained beside the masker, as its adversary",
        )
    )
    target: Literal["label", "predicted"] = Field(
        "label", description="the class that masked images are to keep or lose; predicted: the classifier's own answer"
    )
    permuted_labels: bool = Field(
        False, description="also a masker of each form on permuted labels, for the data randomisation test"
    )
    taps: Annotated[list[str], AfterValidator(_distinct), Field(min_length=1)] = Field(
        description="layers of the classifier that the masker reads, as in named_modules()"
    )
    layouts: dict[str, str] = Field(
        default_factory=dict,
        description="layouts of taps that cannot be found: channels_first, channels_last, tokens, or tokens:HxW such as tokens:14x14",
    )
    width: PositiveInt = Field(64, description="channels for each tap")
    mask_stride: PositiveInt = Field(4, description="pixels of the image for one cell of the mask, along each axis")
    upsample: Literal["nearest", "bilinear"] = "nearest"
    takes_area: bool = Field(
        False, description="the masker is told which share of the image to keep (use_p of the method)"
    )
    areas: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]], AfterValidator(_ascending)
    ] = Field((0.25, 0.75), description="takes_area: least and largest share that training draws")
    area_distance: Literal["l1", "l2"] = "l1"
    takes_class: bool = Field(False, description="the masker is told the class")
    gumbel: Literal["hard", "soft", "sigmoid", "logits"] | None = Field(
        None, description="head with binary Gumbel noise"
    )
    temperature: float = Field(0.1, gt=0, description="of the Gumbel noise")
    mask_in: MaskInTerm = MaskInTerm()
    mask_out: MaskOutTerm = MaskOutTerm()
    nb_epochs: PositiveInt = 60
    batch_size: PositiveInt = 72
    share: float = Field(
        0.2,
        gt=0,
        description="of the training images in one epoch, drawn anew for each; above 1, several passes make one",
    )
    masker_lr: float = Field(1e-3, gt=0, description="of Adam")
    classifier_lr: float = Field(1e-3, gt=0, description="ca: of SGD")
    lr_decay_epochs: NonNegativeInt = Field(20, description="epochs after which both rates fall to a tenth; 0: never")
    momentum: float = Field(0.9, ge=0, lt=1, description="ca: of SGD")
    weight_decay: float = Field(1e-4, ge=0)
    historic: Literal["consulted", "as_published"] = Field(
        "consulted",
        description="ca: earlier classifiers judge some steps; as_published: they are drawn, but the live one judges",
    )
    historic_probability: float = Field(
        0.5, ge=0, le=1, description="ca: share of the steps that earlier classifiers judge"
    )
    zoo_every: PositiveInt = Field(100, description="ca: steps between two copies of the classifier")
    zoo_size: PositiveInt = Field(30, description="ca: how many copies are kept")
    infiller: str | Plugin | None = Field(
        None,
        description="what fills removed places in training, from pixels in [0, 1]: a fill, one of infill.infillers by its name, or "
        "an object with generate(pixels, holes); null: the mean colour",
    )
    infill: Annotated[list[Literal["in", "out"]], BeforeValidator(_as_list), AfterValidator(_distinct)] = Field(
        default=["in", "out"], description="the terms whose images the infiller fills"
    )
    augmentation: Augmentation = Augmentation()
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: autocast of classifier and masker"
    )
    sample_images: NonNegativeInt = Field(8, description="validation images in the sheet of masks")


# ---


class AttributionMethod(Section):
    """One attribution method: a factory (model, **kwargs) or a function (model, image, label, **kwargs)."""

    name: FileName
    method: str = Field(description="dotted path")
    kwargs: Options = Field(default_factory=dict)
    channel_reduction: Literal["signed_max", "abs_max", "sum", "abs_sum", "l2", "mean"] = "signed_max"
    on_invalid: Literal["error", "skip"] = Field(
        "error", description="what to do with a map that holds NaN or infinity"
    )
    control: bool = Field(False, description="a baseline that the other methods have to beat")


class Methods(Section):
    """The attribution methods that a stage works on."""

    attribution_methods: Annotated[list[AttributionMethod], Field(min_length=1)]
    controls: Annotated[list[Control], AfterValidator(_distinct)] = Field(
        default=["random", "sobel", "centre"], description="baselines that are added to the methods"
    )

    twins: Annotated[list[Twin], BeforeValidator(_as_list), AfterValidator(_distinct)] = Field(
        default=[], description="further controls, derived from the stored maps of each method that is no control"
    )

    def methods(self) -> list[AttributionMethod]:
        """The methods, the controls that are not among them already, and the methods' twins."""
        named = {method.name for method in self.attribution_methods}
        listed = self.attribution_methods + [CONTROLS[name] for name in self.controls if name not in named]
        explained = [method for method in self.attribution_methods if not method.control]
        return listed + [_twin(method, kind) for method in explained for kind in self.twins]


def _twin(method: AttributionMethod, kind: Twin) -> AttributionMethod:
    """The entry of maps that are derived from a method's; it says of which, so that it is stale when that changes."""
    source = {"name": method.name, "method": method.method, "kwargs": method.kwargs}
    return method.model_copy(
        update={
            "name": f"{method.name}+{kind}", "method": f"twin:{kind}", "kwargs": {"of": source}, "control": True
        }
    )  # fmt: skip


class ExtractCams(Methods):
    """extract-attribution-maps: each method's maps, once."""

    model: Model
    target: Literal["predicted", "label"] = Field("predicted", description="the class that is explained")
    dtype: Literal["float16", "float32"] = "float16"
    ties: Literal["random", "index"] = Field("random", description="order of pixels of equal value")
    batch_size: PositiveInt = 64
    consolidate: Literal["auto", "always", "never"] = "auto"


class RetrainCls(Training, Methods):
    """evaluate-attribution-maps-roar: remove and retrain."""

    metrics: Annotated[
        list[Literal["roar", "kar", "mask_only"]], BeforeValidator(_as_list), AfterValidator(_distinct)
    ] = Field(
        default=["roar"],
        description="roar: the most important pixels are removed; kar: the least important ones; "
        "mask_only: networks that see ROAR's holes and nothing else, which tells whether their shape leaks the class",
    )
    recursive: bool = Field(
        False, description="also ROAR with maps made anew at each removed fraction, by the network retrained before"
    )
    percentiles: Annotated[list[Percentile], Field(min_length=1), AfterValidator(_distinct)] = [10, 30, 50, 70, 90]
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1), AfterValidator(_distinct)] = [0, 1, 2, 3, 4]
    fill: str | Plugin = Field("mean", description="how removed pixels are replaced")
    allow_label_target: bool = Field(
        False, description="accept maps of the true class, which write the label into the mask"
    )
    workers: PositiveInt | Literal["auto"] = Field(
        "auto", description="processes; auto: as many as the CPUs are enough for, or one for each GPU"
    )
    threads: PositiveInt = Field(1, description="CPU threads of each process; part of what makes runs repeatable")


class MapTest(Methods):
    """A test that scores stored maps image by image. What its section leaves out is taken from extract_cams."""

    model: Model
    target: Literal["predicted", "label"] = "predicted"
    ties: Literal["random", "index"] = "random"
    dtype: Literal["float16", "float32"] = "float16"
    test_samples: PositiveInt | None = Field(None, description="how many test images; null: all")
    batch_size: PositiveInt = Field(64, description="images at work, and kept at once; bounds the memory")
    rows_per_forward: PositiveInt = Field(256, description="altered images in one forward pass")


class PixelPerturbationAnalysis(MapTest):
    """lerf: least and most relevant first, without retraining."""

    percentiles: Annotated[list[Percentile], Field(min_length=1), AfterValidator(_distinct)] = [*range(1, 11)]
    test_samples: PositiveInt | None = Field(2000, description="how many test images; null: all")
    fill: str | Plugin = "mean"


# --- insertion_deletion


class InsertionDeletion(MapTest):
    """insertion-deletion: the most important pixels put into a start image, or taken from the image, step by step."""

    step: PositiveInt | Annotated[float, Field(gt=0, lt=1)] = Field(
        1 / 224, description="pixels of a step: a number, or below 1 a share of the image; with `patch`, of its squares"
    )
    patch: PositiveInt | None = Field(
        None, description="side of squares that come and go as a whole, as for patches of a transformer; null: pixels"
    )
    insertion_fill: str | Plugin = Field("rise_blur", description="where insertion starts")
    deletion_fill: str | Plugin = Field("zero_normalised", description="where deletion ends")


# --- train_infiller, infill


class TrainInfiller(Section):
    """train-infiller: a small network that fills holes, trained on the images at hand."""

    width: PositiveInt = Field(12, description="channels at full size; the cost grows with its square")
    nb_epochs: PositiveInt = Field(10, description="passes over the training images")
    batch_size: PositiveInt = 32
    lr: float = Field(3.0e-3, gt=0, description="of Adam, at the start; it falls to 0 along half a cosine")
    test_samples: PositiveInt | None = Field(500, description="how many test images the comparison fills; null: all")
    fills: Annotated[list[str], AfterValidator(_distinct)] = Field(
        default=["mean", "kept_blur", "blur", "noisy_linear", "telea"],
        description="what it is compared with; blur sees what stood in the hole, the others do not",
    )


class Infiller(Section):
    """A fill whose answers are kept."""

    name: FileName = Field(description="stages name it as infill:NAME")
    infiller: str = Field(description="a fill's name, such as CaGan, LearnedInfill or telea, or a dotted path")
    kwargs: Options = Field(default_factory=dict)


class Infill(Methods):
    """infill: fills the holes that maps cut, once. What its section leaves out is taken from extract_cams."""

    infillers: Annotated[list[Infiller], Field(min_length=1)]
    percentiles: Annotated[
        list[Annotated[float, Field(gt=0, le=100)]], Field(min_length=1), AfterValidator(_distinct)
    ] = Field([10, 30, 50, 70, 90], description="removed percent")
    orders: Annotated[
        list[Literal["most", "least"]], BeforeValidator(_as_list), AfterValidator(_distinct), Field(min_length=1)
    ] = Field(["most"], description="which pixels go first: the most important (ROAR, MoRF) or the least (KAR, LeRF)")
    splits: Annotated[list[Literal["train", "validation", "test"]], AfterValidator(_distinct), Field(min_length=1)] = (
        Field(["train", "validation", "test"], description="those that are there; test is enough without retraining")
    )
    batch_size: PositiveInt = Field(64, description="images that are filled at a time")

    @field_validator("infillers")
    @classmethod
    def _named_once(cls, infillers: list[Infiller]) -> list[Infiller]:
        _names_of_files([infiller.name for infiller in infillers], "infillers")
        return infillers


# --- road


class Road(MapTest):
    """road: LeRF and MoRF without retraining, removed pixels imputed from their neighbours."""

    percentiles: Annotated[
        list[Annotated[float, Field(gt=0, le=100)]], Field(min_length=1), AfterValidator(_distinct)
    ] = Field([10, 20, 30, 40, 50, 70, 90], description="removed percent, in both orders")
    fill: str | Plugin = Field("noisy_linear", description="how removed pixels are replaced")


# --- faithfulness

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
    """faithfulness: do a map's values say how far the score falls without the pixels? No retraining."""

    tests: Annotated[
        list[FaithfulnessTest], BeforeValidator(_as_list), AfterValidator(_distinct), Field(min_length=1)
    ] = [
        "region_perturbation",
        "pixel_flipping",
        "faithfulness_correlation",
        "faithfulness_estimate",
        "sensitivity_n",
        "infidelity",
    ]
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
        list[Annotated[float, Field(gt=0, lt=1)]], AfterValidator(_distinct), Field(min_length=1)
    ] = Field(
        default=[0.1, 0.3, 0.5, 0.7], description="sensitivity_n_within: shares of the pixels in a subset, one by one"
    )
    monotonicity_draws: PositiveInt = Field(
        10, description="monotonicity_correlation: noise fills that each step is averaged over"
    )


# --- localise


class Localise(MapTest):
    """localise: do maps point at the object, lie on it, and draw its box? For data that know where the object is."""

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


# --- complexity


class Complexity(MapTest):
    """complexity: whether a map is about few pixels, or about all."""

    effective_threshold: float = Field(
        1e-5, ge=0, lt=1, description="values above this share of the map's largest are effective"
    )


# --- robustness


class ExplainingTest(MapTest):
    """A test that makes maps anew, of other images or of another classifier."""

    def methods(self) -> list[AttributionMethod]:
        """Those that can be called: maps that came through import-maps, and twins, cannot be made anew."""
        return [method for method in super().methods() if method not in self.left_out()]

    def left_out(self) -> list[AttributionMethod]:
        """The methods that cannot be called."""
        return [m for m in super().methods() if m.method == "imported" or m.method.startswith("twin:")]


class Robustness(ExplainingTest):
    """robustness: how far maps move when their images are perturbed a little."""

    test_samples: PositiveInt | None = Field(200, description="how many test images; null: all")
    samples: PositiveInt = Field(
        10, description="perturbed versions of each image, uniform and Gaussian ones each; the papers take 200"
    )
    radius: float = Field(0.2, gt=0, description="of the uniform perturbation, in units of the normalised image")
    sigma: float = Field(0.1, gt=0, description="of the Gaussian perturbation, in units of the normalised image")


# --- agreement


class Agreement(MapTest):
    """agreement: how alike the maps of every two methods are."""

    test_samples: PositiveInt | None = Field(500, description="how many test images; null: all")
    top_fraction: float = Field(0.1, gt=0, le=1, description="share of the pixels that counts as the most important")


# --- sanity_checks


class DataRandomisation(Section):
    """A network of train_cls.model, trained on permuted labels until it knows them by heart.

    As train_cls says, but without augmentation and at a constant rate.
    """

    nb_epochs: PositiveInt = Field(200, description="passes over the training images, at most")
    until_accuracy: float = Field(
        0.95, gt=0, le=1, description="training accuracy that is enough; below it the test says nothing"
    )


class SanityChecks(ExplainingTest):
    """sanity-checks: do maps change when the classifier forgets what it has learnt?"""

    test_samples: PositiveInt | None = Field(100, description="how many test images; null: all")
    orders: Annotated[list[Literal["top_down", "bottom_up", "independent"]], AfterValidator(_distinct)] = Field(
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


# ---


class Report(Section):
    """report: one self-contained page."""

    gallery_images: NonNegativeInt = 8
    confidence: float = Field(0.95, gt=0, lt=1)
    resamples: PositiveInt = Field(10_000, description="bootstrap resamples")


class Config(Section):
    """A configuration file. A stage needs its own section only."""

    desc: str = ""
    outdir: Path
    seed: Seed = 0
    device: str = Field("auto", description="auto | cpu | cuda | cuda:1 | mps")
    data: Data
    train_cls: Annotated[Training | None, Field(description="train-cls: the classifier that is explained")] = None
    evaluate_cls: EvaluateCls | None = None
    train_diffmask: TrainDiffmask | None = None
    train_masker: TrainMasker | None = None
    extract_cams: ExtractCams | None = None
    retrain_cls: RetrainCls | None = None
    pixel_perturbation_analysis: PixelPerturbationAnalysis | None = None
    insertion_deletion: InsertionDeletion | None = None
    train_infiller: TrainInfiller | None = None
    infill: Infill | None = None
    road: Road | None = None
    faithfulness: Faithfulness | None = None
    localise: Localise | None = None
    complexity: Complexity | None = None
    robustness: Robustness | None = None
    agreement: Agreement | None = None
    sanity_checks: SanityChecks | None = None
    report: Report = Report()


CONTROLS: dict[str, AttributionMethod] = {
    name: AttributionMethod(name=name, method=f"heatproof.methods.controls.{factory}", control=True)
    for name, factory in {
        "random": "Random",
        "sobel": "Sobel",
        "centre": "CentreGaussian",
        "uniform": "Uniform",
        "oracle": "Oracle",
        "anti_oracle": "AntiOracle",
    }.items()
}

LARGEST: dict[type, float] = {float: 3.4e38, int: 2**63 - 1}
"""Of the numbers of a configuration: networks compute in 32 bits, and count in 64."""

# Names that pydantic puts into a location for the alternatives of a type.
_ALTERNATIVES = {"str", "int", "float", "Plugin"}


SectionType = TypeVar("SectionType", bound=Section)


def section(config: Config, name: str, kind: type[SectionType]) -> SectionType:
    """The section of a stage.

    Raises:
        ConfigError: where the file has none.
    """
    found = getattr(config, name)
    if not isinstance(found, kind):
        raise ConfigError(f"section {name} is missing in the configuration; this stage needs it")
    return found


def read(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Reads a YAML file, applies overrides such as "train_cls.nb_epochs=1" and checks the whole.

    Raises:
        ConfigError: one line that names the file, the key, what is wrong and the nearest known key.
    """
    content = _load(path)
    for override in overrides:
        _apply(content, override)
    outdir = content.get("outdir")
    if isinstance(outdir, str):
        content = _substituted(content, outdir)
    _complete_tests(content)
    for where, value in _numbers(content):
        # What the arithmetic cannot hold, and origins cannot say.
        if not abs(value) <= LARGEST[type(value)]:
            kind = "finite number, of 32 bits" if isinstance(value, float) else "whole number of 64 bits"
            raise ConfigError(f"{path}: {where}: {value!r}: input should be a {kind}")
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_problem(error)}") from error
    for name in Config.model_fields:
        part = getattr(config, name)
        if isinstance(part, Methods):
            _check_names(path, name, part)
    return config


def keys(name: str) -> list[tuple[str, str, str]]:
    """The keys of a section, what each stands at, and what it means (empty where its name says it)."""
    kind = _section_in(Config.model_fields[name].annotation)
    found = []
    for key, field in kind.model_fields.items():
        default = "(needed)" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        found.append((key, default, field.description or ""))
    return found


def _shown(default: Any) -> str:
    if isinstance(default, BaseModel):
        return str(default.model_dump().get("name", "{...}"))
    return "~" if default is None else str(default)


def map_tests() -> dict[str, type[MapTest]]:
    """The sections of tests that score stored maps, and their kinds."""
    kinds = {name: _section_in(field.annotation) for name, field in Config.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, MapTest)}


def _complete_tests(content: dict[str, Any]) -> None:
    """Gives tests the classifier and the methods of extract_cams where their sections say nothing of them."""
    extraction = content.get("extract_cams")
    if not isinstance(extraction, dict):
        return
    kinds: dict[str, type[Methods]] = {**map_tests(), "infill": Infill}
    for name, kind in kinds.items():
        if isinstance(content.get(name), dict):
            shared = {key: extraction[key] for key in extraction if key in kind.model_fields and key != "batch_size"}
            content[name] = shared | content[name]


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number and a key may occur only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key, _ in reversed(node.value):
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} occurs twice", key.start_mark)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as text for want of a dot.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_yaml_problem(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {type(content).__name__}, not sections; see configs/demo.yml for an example")
    return content


def _parsed(text: str) -> Any:
    """What YAML says. Its aliases are one object in several places; here they are copies: an override means one place only."""
    try:
        return _unshared(yaml.load(text, Loader=_Loader))  # noqa: S506 - a SafeLoader
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply, or an alias stands inside of what it names") from error


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark else ""
    problem = str(getattr(error, "problem", None) or error).replace("\n", " ")
    if "could not determine a constructor" in problem:
        return f"{where}tags such as !!python/... are not allowed; write plain YAML values"
    return where + problem


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = [part for part in re.split(r"[.\[\]]+", key) if part]
    if not equals or not names:
        raise ConfigError(f"{override!r}: an override is written section.key=value, such as train_cls.nb_epochs=1")
    try:
        value = _parsed(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: {_yaml_problem(error)}") from error
    here: Any = content
    for position, name in enumerate(names):
        last = position == len(names) - 1
        if isinstance(here, list):
            if not name.isdigit() or int(name) >= len(here):
                raise ConfigError(
                    f"{override!r}: {'.'.join(names[:position])} is a list of {len(here)}; {name!r} is no position in it"
                )
            if last:
                here[int(name)] = value
            here = here[int(name)]
        elif isinstance(here, dict):
            if last:
                here[name] = value
            elif here.get(name) is None:
                here[name] = {}
            here = here[name]
        else:
            raise ConfigError(f"{override!r}: {'.'.join(names[:position])} is a value, not a section")


def _unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _numbers(value: Any, where: tuple[int | str, ...] = ()) -> Iterator[tuple[str, float]]:
    """All numbers of a configuration, each with its place; also in options that the schema does not know."""
    if type(value) in LARGEST:
        yield _where(where), value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from _numbers(part, (*where, name if isinstance(name, int) else str(name)))


def _substituted(value: Any, outdir: str) -> Any:
    if isinstance(value, dict):
        return {key: _substituted(item, outdir) for key, item in value.items()}
    if isinstance(value, list):
        return [_substituted(item, outdir) for item in value]
    return value.replace("${outdir}", outdir) if isinstance(value, str) else value


def _first_problem(error: ValidationError) -> str:
    # An unknown key explains more than what is missing because of it.
    problems = sorted(error.errors(), key=lambda p: p["type"] != "extra_forbidden")
    first = problems[0]
    # Alternatives of a type ("auto" or a number) fail one by one; what belongs to one key is one problem.
    same = [p for p in problems if _where(p["loc"]) == _where(first["loc"])]
    others = len({_where(p["loc"]) for p in problems}) - 1
    more = f" (and {others} more)" if others else ""
    return f"{_where(first['loc'])}: {' or '.join(dict.fromkeys(_what(p) for p in same))}{more}"


def _where(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z_0-9]+", part) and part not in _ALTERNATIVES:
            text += f".{part}" if text else part
    return text


def _what(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key{nearest(str(problem['loc'][-1]), _fields_at(problem['loc'][:-1]))}"
    if problem["type"] == "missing":
        return "is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{problem['input']!r}: {message[0].lower()}{message[1:]}"


def _fields_at(location: Sequence[int | str]) -> list[str]:
    kind: Any = Config
    for part in location:
        if isinstance(part, int):
            continue
        fields = getattr(kind, "model_fields", {})
        if part in fields:
            kind = _section_in(fields[part].annotation)
    return list(getattr(kind, "model_fields", {}))


def _section_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_in(argument)
        if found is not None:
            return found
    return None


def _check_names(path: Path, name: str, part: Methods) -> None:
    """Refuses names of methods that would share a file, or stand for a control that they are not."""
    try:
        _names_of_files([method.name for method in part.attribution_methods], "attribution_methods")
    except ValueError as error:
        raise ConfigError(f"{path}: {name}.{error}") from error
    for position, method in enumerate(part.attribution_methods):
        where = f"{path}: {name}.attribution_methods[{position}].name: {method.name!r}"
        control = CONTROLS.get(method.name.lower())
        if control is not None and (method.name, method.method) != (control.name, control.method):
            raise ConfigError(
                f"{where} is the name of the control {control.method}, which other methods are compared with; take another"
            )
        if method.name.lower().endswith(tuple(f"+{kind}" for kind in get_args(Twin))):
            raise ConfigError(f"{where} is the name of a control that is derived from a method; take another")
