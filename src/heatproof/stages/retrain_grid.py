"""The grid of retrainings: its cells, what each is made from, and the chains of recursive ones."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heatproof import artefacts, config, removal, store
from heatproof.errors import ConfigError, MapError, MissingInputError
from heatproof.methods.explainer import Explainer
from heatproof.metrics import statistics
from heatproof.models import Normalization
from heatproof.stages import extract, infilled, kept_maps, recursive, retrain_summary
from heatproof.stages.plan import Artefact
from heatproof.stages.run import SPLITS, Run, build_fill, fill_origin, model_origin, training_origin
from heatproof.training import classifier

INTACT = "intact"


# KAR follows the ROAR code: the share of the least important pixels that is *removed*.
FIRST: dict[str, removal.First] = {"roar": "most", "kar": "least", "mask_only": "most", "recursive": "most"}


@dataclass(frozen=True)
class Job:
    """One retraining; everything that a fresh process needs."""

    settings: config.Config
    metric: str
    method: str
    control: bool
    percentile: float
    number: int
    maps: dict[str, Path]
    keeps_weights: bool = False


Cell = Artefact[Job]
"""A retraining's result, a JSON record, and its network where a chain goes on with it."""


def weights_of(cell: Cell) -> Path:
    """Where the retrained network is kept, if it is."""
    return cell.path.with_suffix(".pth")


def remaps(run: Run, section: config.RetrainCls, cell: Cell) -> list[Artefact[extract.Source]]:
    """The maps that the network of a cell makes for the next one of its chain; none where it is the last, or no chain's."""
    if not cell.job.keeps_weights:
        return []
    method = explainer_of(section, cell.job.method)
    weights = weights_of(cell)
    sha256 = artefacts.sha256(weights) if cell.status().is_complete else artefacts.Unknown(str(cell.path))
    files = []
    for split, path in recursive_maps(cell).items():
        kept = recursive.kept_of(extract.file_of(run, method.name, split))
        origin = {
            "retraining": cell.origin,
            "weights": sha256,
            "data": run.fingerprint(split),
            "code": [recursive.RESULTS_VERSION, method.code_version()],
            **kept,
        }
        files.append(Artefact(path, origin, extract.Source(method, split)))
    return files


def explainer_of(section: config.RetrainCls, name: str) -> Explainer:
    """A method of the section, by its name."""
    return next(extract.explainer(method) for method in section.methods() if method.name == name)


def recursive_maps(cell: Cell) -> dict[str, Path]:
    """Where the maps are that the network of a cell makes."""
    return {name: cell.path.with_suffix("") / f"{name}.h5" for name in SPLITS}


def fill_of(run: Run, section: config.RetrainCls, split: str) -> removal.Fill:
    """What replaces removed pixels of a split."""
    asked = section.model.normalization
    return build_fill(
        run,
        section.fill,
        lambda: run.statistics if asked is None else Normalization(tuple(asked.mean), tuple(asked.std)),
        split,
    )


def _check(run: Run, section: config.RetrainCls) -> None:
    if section.model.pretrained_weights is not None:
        raise ConfigError(
            "retrain_cls.model.pretrained_weights: must not be set; ROAR retrains from fresh weights, "
            "or what was learnt from intact images would leak into the score"
        )
    run.recipe(section)
    if (name := infilled.name_of(section.fill)) is None:
        fill_of(run, section, "test")
        return
    infilled.check_known(run, name)
    if section.recursive:
        raise ConfigError(
            f"retrain_cls.recursive: its maps are not known before, and so their holes are not stored; name the fill of {name} itself"
        )


Contents = dict[str, dict[str, Any]]
"""What is in the maps of each method, by split; unknown before they are made."""


def grid_of(run: Run, section: config.RetrainCls) -> Iterator[Cell]:
    """All cells, run by run. The section is checked first, unless the run is for reading only."""
    if not run.is_reading:
        _check(run, section)
    root = run.config.outdir / "retrain_cls"
    shared = {
        "data": {name: run.fingerprint(name) for name in SPLITS},
        "model": model_origin(section.model),
        "training": training_origin(section),
        "seed": run.config.seed,
        "code": classifier.RESULTS_VERSION,
    }
    fill = fill_origin(section.fill)
    contents = _contents(run, section)
    infills = _infills(run, section, contents)
    # Run by run, so that an unfinished grid already compares all methods.
    for number in section.seeds:
        path = root / INTACT / "0" / f"seed{number}.json"
        yield Artefact(path, shared | {"run": number}, Job(run.config, INTACT, INTACT, False, 0.0, number, {}))
        for metric in section.metrics:
            for method in section.methods():
                paths = {split: extract.file_of(run, method.name, split) for split in SPLITS}
                for percentile in section.percentiles:
                    if percentile == 0:
                        continue
                    maps = contents[method.name]
                    origin = shared | {"run": number, "metric": metric, "percentile": percentile, "maps": maps}
                    if metric != "mask_only":
                        origin["fill"] = fill
                        origin |= infills(method.name, percentile / 100, FIRST[metric])
                    path = root / metric / method.name / f"{percentile:g}" / f"seed{number}.json"
                    job = Job(run.config, metric, method.name, method.control, percentile, number, paths)
                    yield Artefact(path, origin, job)
        if section.recursive:
            for method in section.methods():
                if not method.control and extract.is_called(extract.explainer(method)):
                    origin = shared | {"run": number, "fill": fill}
                    yield from _recursive_cells(run, section, method, number, origin, contents[method.name])


def _infills(
    run: Run, section: config.RetrainCls, contents: Contents
) -> Callable[[str, float, removal.First], dict[str, Any]]:
    """What stored images in the place of a fill add to the origin of a cell: of method, removed fraction and end."""
    name = infilled.name_of(section.fill)
    if name is None:
        return lambda method, fraction, first: {}
    # All that is missing is told at once, not one percentile after the other.
    firsts = {FIRST[metric] for metric in section.metrics if metric != "mask_only"}
    needed = [(percentile / 100, first) for first in sorted(firsts) for percentile in section.percentiles if percentile]
    try:
        stored = {
            (method, split): infilled.opened(run, name, method, split, content)
            for method, found in contents.items()
            for split, content in found.items()
        }
        for one in stored.values():
            one.need(needed)
    except (MissingInputError, MapError) as error:
        if not run.dry_run:
            raise
        unmade = artefacts.Unknown(str(error))
        return lambda method, fraction, first: {"infill": unmade}

    def added(method: str, fraction: float, first: removal.First) -> dict[str, Any]:
        return {"infill": {split: stored[method, split].content_ids([(fraction, first)]) for split in SPLITS}}

    return added


def _recursive_cells(
    run: Run,
    section: config.RetrainCls,
    method: config.AttributionMethod,
    number: int,
    shared: dict[str, Any],
    contents: dict[str, Any],
) -> Iterator[Cell]:
    """One method's cells of one run, from the smallest fraction on; each uses the maps that the one before leaves."""
    paths = {split: extract.file_of(run, method.name, split) for split in SPLITS}
    steps = sorted(percentile for percentile in section.percentiles if percentile > 0)
    explained = method.model_dump(exclude={"control"}) | {"code": extract.explainer(method).code_version()}
    for position, percentile in enumerate(steps):
        origin = shared | {
            "metric": "recursive",
            "percentile": percentile,
            "chain": steps[:position],
            "maps": contents,
            "method": explained,
            "remaps": recursive.RESULTS_VERSION,
        }
        path = run.config.outdir / "retrain_cls" / "recursive" / method.name / f"{percentile:g}" / f"seed{number}.json"
        is_last = percentile == steps[-1]
        cell = Artefact(
            path, origin, Job(run.config, "recursive", method.name, False, percentile, number, paths, not is_last)
        )
        yield cell
        paths = recursive_maps(cell)


def chains(grid: list[Cell], missing: set[Cell]) -> list[tuple[Cell, ...]]:
    """What has to be computed in one go: single cells, and the whole recursive chains in which a cell is missing."""
    chains: dict[Any, list[Cell]] = {}
    for cell in grid:
        job = cell.job
        chains.setdefault((job.method, job.number) if job.metric == "recursive" else cell, []).append(cell)
    return [tuple(chain) for chain in chains.values() if not missing.isdisjoint(chain)]


def _contents(run: Run, section: config.RetrainCls) -> Contents:
    """What is in the maps of each method."""
    files = kept_maps.kept_files(run, section.methods())
    return {
        method.name: {split: kept_maps.content_of(files[method.name, split]) for split in SPLITS}
        for method in section.methods()
    }


def check_maps(reader: store.MapReader, *, allow_label: bool) -> None:
    """Raises an error where maps cannot be retrained with: none is valid, or they give the label away."""
    if reader.invalid.all():
        raise MapError(f"{reader.path}: holds no valid map; take the method out of the configuration, or mend it")
    if reader.origin.get("target") == "label" and not allow_label:
        raise ConfigError(
            f"{reader.path}: the maps explain the true label, which a retrained network could read off the mask; "
            "use extract_cams.target: predicted, or set retrain_cls.allow_label_target: true"
        )


def tables_of(run: Run, grid: Sequence[Cell]) -> Artefact[None]:
    """The tables of all results, and what they amount to."""
    states = {cell: cell.status() for cell in grid}
    unmade = [cell for cell, state in states.items() if not state.is_complete]
    results: Any = artefacts.Unknown(str(unmade[0].path)) if unmade else None
    if not unmade:
        parts = {str(cell.path.relative_to(run.config.outdir)): state.content for cell, state in states.items()}
        results = hashlib.sha256(artefacts.canonical(parts).encode()).hexdigest()
    origin = {
        "results": results,
        "settings": run.intervals.origin(),
        "code": [retrain_summary.SUMMARY_VERSION, statistics.RESULTS_VERSION],
    }
    return Artefact(run.config.outdir / "retrain_cls" / "summary.csv", origin, None)
