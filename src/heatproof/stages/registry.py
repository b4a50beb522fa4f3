"""The stages that configurations name, and the map tests that they ask for."""

from typing import TYPE_CHECKING, Any

from heatproof.config.stages import STAGES, Stage

if TYPE_CHECKING:
    from heatproof import config
    from heatproof.stages.evaluate import MapTest
    from heatproof.stages.plan import Artefact
    from heatproof.stages.run import Run

__all__ = ["STAGES", "Stage", "folders", "map_tests", "plan"]


def plan(run: "Run", command: str) -> "list[Artefact[Any]]":
    """All artefacts of a stage, there or not, in the order in which they are made.

    A stage's module has `run(run)` and `plan(run)`; that of a map test has `test(settings)` or `tests(settings)`, and perhaps
    `tables(run, files)` for what it makes of the scores beside results.csv.

    Raises:
        HeatproofError: the configuration asks for what cannot be.
    """
    stage = STAGES[command]
    module = stage.load()
    if not stage.is_map_test:
        planned: list[Artefact[Any]] = module.plan(run)
        return planned
    from heatproof.stages import evaluate

    made: list[Artefact[Any]] = []
    for test in map_tests(run.config, command):
        files = evaluate.plan(run, test.settings, test)
        own = module.tables(run, files) if hasattr(module, "tables") else []
        made += [*files, *own, evaluate.table(run, test.settings, test, files)]
    return made


def folders(settings: "config.Config") -> list[str]:
    """Folders that stages write below outdir, in the order of the pipeline."""
    own = [f"tests/{test.name}" for test in settings.tests or ()]
    return [name for stage in STAGES.values() for name in (own if stage.section == "tests" else [stage.section])]


def map_tests(settings: "config.Config", name: str) -> "list[MapTest]":
    """The tests of a stage, as the configuration asks for them."""
    module = STAGES[name].load()
    return [module.test(settings)] if hasattr(module, "test") else list(module.tests(settings))
