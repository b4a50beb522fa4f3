"""The whole configuration: its sections, the stages that they belong to, and what help says of their keys."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from heatproof.config.base import Section, Seed
from heatproof.config.classifier import Data, EvaluateCls, TrainCls
from heatproof.config.map_tests import (
    Agreement,
    Complexity,
    Faithfulness,
    InsertionDeletion,
    Localise,
    OwnTest,
    PixelPerturbationAnalysis,
    Road,
    Robustness,
    SanityChecks,
)
from heatproof.config.maps import ExtractCams, Infill, Methods, RetrainCls
from heatproof.config.networks import TrainDiffmask, TrainInfiller, TrainMasker
from heatproof.config.stages import STAGES
from heatproof.errors import ConfigError


class Report(Section):
    """What the page shows."""

    gallery_images: NonNegativeInt = 8
    confidence: float = Field(
        0.95, gt=0, lt=1, description="of all intervals and tests: those of the page and of every table"
    )
    resamples: PositiveInt = Field(10_000, description="bootstrap resamples, of the page and of every table")


def _name_stages(schema: dict[str, Any]) -> None:
    """Describes the sections in the JSON schema, and adds the commands that may stand for them."""
    sections = schema["properties"]
    for command, stage in STAGES.items():
        sections[stage.section]["description"] = f"{command}: {stage.summary}"
        sections.setdefault(command, sections[stage.section])


class Config(Section):
    """A configuration file. A stage needs its own section only."""

    model_config = ConfigDict(json_schema_extra=_name_stages)
    desc: str = ""
    outdir: Path
    seed: Seed = 0
    device: str = Field("auto", description="auto | cpu | cuda | cuda:1 | mps")
    data: Data
    train_cls: TrainCls | None = None
    evaluate_cls: EvaluateCls | None = None
    train_diffmask: TrainDiffmask | None = None
    train_masker: TrainMasker | None = None
    train_infiller: TrainInfiller | None = None
    extract_cams: ExtractCams | None = None
    infill: Infill | None = None
    retrain_cls: RetrainCls | None = None
    pixel_perturbation_analysis: PixelPerturbationAnalysis | None = None
    insertion_deletion: InsertionDeletion | None = None
    road: Road | None = None
    faithfulness: Faithfulness | None = None
    localise: Localise | None = None
    complexity: Complexity | None = None
    robustness: Robustness | None = None
    tests: Annotated[list[OwnTest], Field(min_length=1)] | None = None
    agreement: Agreement | None = None
    sanity_checks: SanityChecks | None = None
    report: Report = Report()

    def sections(self) -> Iterator[tuple[str, Section]]:
        """The sections that are given, each entry of a list as one, with their places in the file."""
        for name in type(self).model_fields:
            part = getattr(self, name)
            if isinstance(part, Section):
                yield name, part
            elif isinstance(part, list):
                yield from ((f"{name}[{position}]", entry) for position, entry in enumerate(part))


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


def keys(name: str) -> list[tuple[str, str, str]]:
    """The keys of a section, what each stands at, and what it means (empty where its name says it)."""
    kind = KINDS[name]
    inherited = kind.inherited if issubclass(kind, Methods) else ()
    found = []
    for key, field in kind.model_fields.items():
        default = "(needed)" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        default = "(default: that of extract_cams)" if key in inherited else default
        found.append((key, default, field.description or ""))
    return found


def _shown(default: Any) -> str:
    if isinstance(default, BaseModel):
        return str(default.model_dump().get("name", "{...}"))
    return "~" if default is None else str(default)


def section_in(annotation: Any) -> Any:
    """The section within an annotation; None where there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = section_in(argument)
        if found is not None:
            return found
    return None


KINDS: dict[str, type[Section]] = {
    stage.section: section_in(Config.model_fields[stage.section].annotation) for stage in STAGES.values()
}
"""The sections of stages by their names."""
