"""The stages that configurations name, and the map tests that they ask for."""

from typing import TYPE_CHECKING

from heatproof.config.stages import STAGES, Stage

if TYPE_CHECKING:
    from heatproof import config
    from heatproof.stages.evaluate import MapTest

__all__ = ["STAGES", "Stage", "map_test", "sections"]


def sections() -> list[str]:
    """Sections of the configuration that belong to a stage, in the order of the pipeline."""
    return [stage.section for stage in STAGES.values()]


def map_test(settings: "config.Config", name: str) -> "MapTest":
    """The test of a stage, as the configuration asks for it."""
    test: MapTest = STAGES[name].load().test(settings)
    return test
