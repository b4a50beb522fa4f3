"""The stages that configurations name, and the map tests that they ask for."""

from typing import TYPE_CHECKING, Any

from heatproof.config.stages import STAGES, Stage

if TYPE_CHECKING:
    from heatproof import config
    from heatproof.stages.evaluate import MapTest
    from heatproof.stages.plan import Artefact
    from heatproof.stages.run import Run

__all__ = ["STAGES", "Stage", "map_test", "plan", "sections"]


def plan(run: "Run", command: str) -> "list[Artefact[Any]]":
    """All artefacts of a stage, there or not, in the order in which they are made.

    A stage's module has `run(run)` and `plan(run)`; that of a map test has `test(settings)`, and perhaps `tables(run, files)`
    for what it makes of the scores beside results.csv.

    Raises:
        HeatproofError: the configuration asks for what cannot be.
    """
    stage = STAGES[command]
    module = stage.load()
    if not stage.is_map_test:
        planned: list[Artefact[Any]] = module.plan(run)
        return planned
    from heatproof.stages import evaluate

    test = module.test(run.config)
    files = evaluate.plan(run, test.settings, test)
    own = module.tables(run, files) if hasattr(module, "tables") else []
    return [*files, *own, evaluate.table(run, test.settings, test, files)]


def sections() -> list[str]:
    """Sections of the configuration that belong to a stage, in the order of the pipeline."""
    return [stage.section for stage in STAGES.values()]


def map_test(settings: "config.Config", name: str) -> "MapTest":
    """The test of a stage, as the configuration asks for it."""
    test: MapTest = STAGES[name].load().test(settings)
    return test
