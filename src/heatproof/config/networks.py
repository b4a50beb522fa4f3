"""Sections of the networks that are trained beside the classifier: DiffMask, maskers and an infiller."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveInt

from heatproof.config.base import Plugin, Section, as_list, ascending, distinct
from heatproof.config.classifier import Augmentation, Model


class TrainDiffmask(Section):
    """How DiffMask's gates are trained, without labels.

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
    """How maskers are trained; the defaults are the published ones."""

    model: Model
    form: Annotated[list[MaskerFormName], BeforeValidator(as_list), AfterValidator(distinct), Field(min_length=1)] = (
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
    taps: Annotated[list[str], AfterValidator(distinct), Field(min_length=1)] = Field(
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
        tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]], AfterValidator(ascending)
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
    infill: Annotated[list[Literal["in", "out"]], BeforeValidator(as_list), AfterValidator(distinct)] = Field(
        default=["in", "out"], description="the terms whose images the infiller fills"
    )
    augmentation: Augmentation = Augmentation()
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: autocast of classifier and masker"
    )
    sample_images: NonNegativeInt = Field(8, description="validation images in the sheet of masks")


class TrainInfiller(Section):
    """How the infiller is trained, and what it is compared with."""

    width: PositiveInt = Field(12, description="channels at full size; the cost grows with its square")
    nb_epochs: PositiveInt = Field(10, description="passes over the training images")
    batch_size: PositiveInt = 32
    lr: float = Field(3.0e-3, gt=0, description="of Adam, at the start; it falls to 0 along half a cosine")
    test_samples: PositiveInt | None = Field(500, description="how many test images the comparison fills; null: all")
    fills: Annotated[list[str], AfterValidator(distinct)] = Field(
        default=["mean", "kept_blur", "blur", "noisy_linear", "telea"],
        description="what it is compared with; blur sees what stood in the hole, the others do not",
    )
