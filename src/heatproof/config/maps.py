"""Sections of attribution methods, of their maps, and of the stages that remove pixels, retrain or fill."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveInt, field_validator

from heatproof.config.base import FileName, Options, Percentile, Plugin, Section, as_list, check_file_names, distinct
from heatproof.config.classifier import Model, TrainCls

Control = Literal["random", "sobel", "centre", "uniform", "oracle", "anti_oracle"]
IMPORTED = "imported"
"""In the place of a dotted path: the maps come through import-maps."""
Twin = Literal["blurred", "max3", "inverse", "average"]


class AttributionMethod(Section):
    """One attribution method: a factory (model, **kwargs) or a function (model, image, label, **kwargs)."""

    name: FileName
    method: str = Field(description="short name, such as grad-cam, or dotted path; imported: see import-maps")
    kwargs: Options = Field(default_factory=dict)
    channel_reduction: Literal["signed_max", "abs_max", "sum", "abs_sum", "l2", "mean"] = "signed_max"
    on_invalid: Literal["error", "skip"] = Field(
        "error", description="what to do with a map that holds NaN or infinity"
    )
    control: bool = Field(False, description="a baseline that the other methods have to beat")


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


class Methods(Section):
    """The attribution methods that a stage works on."""

    inherited: ClassVar[tuple[str, ...]] = ("attribution_methods", "controls", "twins")
    """The keys that are those of extract_cams where a section leaves them out."""

    attribution_methods: Annotated[list[AttributionMethod], Field(min_length=1)]
    controls: Annotated[list[Control], AfterValidator(distinct)] = Field(
        default=["random", "sobel", "centre"], description="baselines that are added to the methods"
    )
    twins: Annotated[list[Twin], BeforeValidator(as_list), AfterValidator(distinct)] = Field(
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
    """How maps are computed and kept."""

    inherited: ClassVar[tuple[str, ...]] = ()

    model: Model
    target: Literal["predicted", "label"] = Field("predicted", description="the class that is explained")
    dtype: Literal["float16", "float32"] = "float16"
    ties: Literal["random", "index"] = Field("random", description="order of pixels of equal value")
    batch_size: PositiveInt = 64
    consolidate: Literal["auto", "always", "never"] = "auto"


class RetrainCls(TrainCls, Methods):
    """Which pixels are removed, what replaces them, and how classifiers are retrained."""

    metrics: Annotated[
        list[Literal["roar", "kar", "mask_only"]], BeforeValidator(as_list), AfterValidator(distinct)
    ] = Field(
        default=["roar"],
        description="roar: the most important pixels are removed; kar: the least important ones; "
        "mask_only: networks that see ROAR's holes and nothing else, which tells whether their shape leaks the class",
    )
    recursive: bool = Field(
        False, description="also ROAR with maps made anew at each removed fraction, by the network retrained before"
    )
    percentiles: Annotated[list[Percentile], Field(min_length=1), AfterValidator(distinct)] = Field(
        default=[10, 30, 50, 70, 90]
    )
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1), AfterValidator(distinct)] = Field(
        default=[0, 1, 2, 3, 4]
    )
    fill: str | Plugin = Field("mean", description="how removed pixels are replaced")
    allow_label_target: bool = Field(
        False, description="accept maps of the true class, which write the label into the mask"
    )
    workers: PositiveInt | Literal["auto"] = Field(
        "auto", description="processes; auto: as many as the CPUs are enough for, or one for each GPU"
    )
    threads: PositiveInt = Field(1, description="CPU threads of each process; part of what makes runs repeatable")


class Infiller(Section):
    """A fill whose answers are kept."""

    name: FileName = Field(description="stages name it as infill:NAME")
    infiller: str = Field(description="a fill's name, such as CaGan, LearnedInfill or telea, or a dotted path")
    kwargs: Options = Field(default_factory=dict)


class Infill(Methods):
    """Which holes are filled, and by what."""

    infillers: Annotated[list[Infiller], Field(min_length=1)]
    percentiles: Annotated[
        list[Annotated[float, Field(gt=0, le=100)]], Field(min_length=1), AfterValidator(distinct)
    ] = Field([10, 30, 50, 70, 90], description="removed percent")
    orders: Annotated[
        list[Literal["most", "least"]], BeforeValidator(as_list), AfterValidator(distinct), Field(min_length=1)
    ] = Field(["most"], description="which pixels go first: the most important (ROAR, MoRF) or the least (KAR, LeRF)")
    splits: Annotated[list[Literal["train", "validation", "test"]], AfterValidator(distinct), Field(min_length=1)] = (
        Field(["train", "validation", "test"], description="those that are there; test is enough without retraining")
    )
    batch_size: PositiveInt = Field(64, description="images that are filled at a time")

    @field_validator("infillers")
    @classmethod
    def _named_once(cls, infillers: list[Infiller]) -> list[Infiller]:
        check_file_names([infiller.name for infiller in infillers], "infillers")
        return infillers
