"""Sections of the data, of a classifier, and of its training."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveInt

from heatproof.config.base import Options, Plugin, Section, as_list, distinct


class Data(Section):
    """Which images."""

    dataset: str = Field(
        description="Planted | Counting | CIFAR10 | CIFAR10_QA | MNIST | FashionMNIST | ImageFolder | ImageNet | Arrays | Wsol | Prepared | OxfordPets | Coco | dotted path of your own class, which may have regions, boxes and ignored (README)"
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

    arch: str = Field(
        description="torchvision's name, such as resnet50, one of the package's, such as ResNet8, timm:NAME, hf:NAME, or a dotted path"
    )
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


class TrainCls(Section):
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
    """Which classifier is measured, on which images."""

    model: Model | None = Field(None, description="null: the one that train-cls left")
    splits: Annotated[
        list[Literal["train", "validation", "test"]],
        BeforeValidator(as_list),
        AfterValidator(distinct),
        Field(min_length=1),
    ] = Field(default=["test"])
    batch_size: PositiveInt = 256
