"""What the stages of a configuration left behind, read for the report.

Nothing is computed again: each stage's plan says what there should be and how it stands. What is complete is shown; what was
made with other settings or is damaged is left out and said to be, and what is not there yet is counted as missing.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from heatproof import artefacts, config, removal, runtime, store
from heatproof.errors import HeatproofError
from heatproof.report import (
    Cost,
    Curves,
    MapHealth,
    Method,
    Picture,
    Progress,
    Retraining,
    RetrainingLine,
    SanityStep,
    Similarity,
    TestResult,
    Training,
)
from heatproof.report.pictures import choice, confidence
from heatproof.stages import registry, retrain_grid, retrain_summary, twins
from heatproof.stages.evaluate import SampledMaps
from heatproof.stages.extract import Source
from heatproof.stages.map_tests import OwnTest
from heatproof.stages.plan import Artefact
from heatproof.stages.planned import EXTRACT, RETRAIN, TRAIN, Planned, without_odd
from heatproof.stages.run import SPLITS, Run

Line = TypeVar("Line", RetrainingLine, SanityStep)
TIES_SAMPLE = 1000
"""Maps in which ties are counted: sorting is slow."""


@dataclass(frozen=True)
class Results:
    """The results of one configuration.

    Args:
        run: the configuration at work, for reading.
    """

    run: Run

    @classmethod
    def of(cls, run: Run) -> "Results":
        """What a run left."""
        return cls(run.view(is_reading=True))

    @property
    def settings(self) -> config.Config:
        """The configuration."""
        return self.run.config

    @functools.cached_property
    def stages(self) -> dict[str, Planned]:
        """The stages that the configuration has a section for, but for the report, by their commands."""
        asked = (stage for stage in registry.STAGES.values() if getattr(self.settings, stage.section))
        return {stage.command: self.planned(stage.command) for stage in asked if stage.command != "report"}

    def planned(self, command: str) -> Planned:
        """One stage's artefacts, as they stand now."""
        root, stage = self.settings.outdir, registry.STAGES[command]
        try:
            states = {file: file.status() for file in registry.plan(self.run, command)}
        except HeatproofError as error:
            return Planned(command, root, {}, f"{error}")
        if not self.run.has_images:
            states = without_odd(states)
        return Planned(command, root, states, is_begun=(root / stage.section).is_dir())

    def _stage(self, command: str) -> Planned:
        """A stage as planned; nothing where the configuration has no section for it."""
        return self.stages.get(command) or Planned(command, self.settings.outdir, {})

    def progress(self) -> list[Progress]:
        """How far each stage got."""
        return [planned.progress for planned in self.stages.values()]

    def networks(self) -> tuple[int, int]:
        """How many retrained networks there are, and how many there shall be."""
        cells = [state for file, state in self._stage(RETRAIN).states.items() if isinstance(file.job, retrain_grid.Job)]
        return sum(state.is_complete for state in cells), len(cells)

    @functools.cached_property
    def methods(self) -> tuple[Method, ...]:
        """The methods of all sections, in their order, the controls last."""
        sections = [section for _, section in self.settings.sections() if isinstance(section, config.Methods)]
        found = {method.name: method for section in sections for method in section.methods()}
        described = [
            Method(
                m.name,
                m.control,
                m.method,
                m.kwargs | {"channel_reduction": m.channel_reduction},
                m.kwargs["of"]["name"] if twins.is_twin(m.method) else "",
            )
            for m in found.values()
        ]
        return tuple(sorted(described, key=lambda method: method.control))

    # --- the classifier

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """Of the data set, or as the trained model has them."""
        if self.run.has_images:
            return tuple(self.run.dataset.class_names)
        return tuple(self._stage(TRAIN).content(self._trained).get("class_names", ()))

    @property
    def _trained(self) -> Path:
        return self.settings.outdir / "train_cls" / "best_model.pth"

    @functools.cached_property
    def _classifier_names(self) -> tuple[str, ...]:
        """Of the classes that the maps explain: the data set's, unless the classifier has others."""
        reader = next(iter(self.maps.values()), None)
        has_names = reader is not None and self.run.has_images
        return self.run.class_names(reader.classes) if reader is not None and has_names else self.class_names

    def training(self) -> Training | None:
        """How the classifier was trained."""
        planned = self._stage(TRAIN)
        kept = planned.content(self._trained)
        history = _history(planned.table(self._trained, "history.csv"))
        if not kept or not history:
            return None
        return Training(history, kept["best_epoch"], kept["validation_accuracy"], kept["test_accuracy"])

    # --- maps

    @functools.cached_property
    def maps(self) -> dict[str, store.MapReader]:
        """The maps of test images that can be used, by method: of the whole split where they are there, else of a test's sample."""
        found: dict[str, Artefact[Source]] = {}
        for file in self._stage(EXTRACT).complete.values():
            if file.job.split == "test":
                found.setdefault(file.job.method.name, file)
        for sampled in self._sampled:
            for name, file in sampled.maps.items():
                if name not in found and file.status().is_complete:
                    found[name] = file
        return {name: store.MapReader(file.path) for name, file in found.items()}

    @property
    def _sampled(self) -> list[SampledMaps]:
        """The maps that each test asks for."""
        jobs = [file.job for planned in self.stages.values() for file in planned.states]
        return list({id(job): job for job in jobs if isinstance(job, SampledMaps)}.values())

    def health(self) -> list[MapHealth]:
        """Counts, ties and times of the maps of test images."""
        seconds = _seconds_by_method(self.settings.outdir / "extract_cams")
        return [
            _health(method.name, self.maps[method.name], self._cuts(), seconds.get(method.name))
            for method in self.methods
            if method.name in self.maps
        ]

    def pictures(self, wanted: int) -> tuple[list[Picture], tuple[str, ...]]:
        """Some test images with all maps of them, and a remark where the images cannot be read."""
        readers = self.maps
        if not readers or not wanted:
            return [], ()
        if not self.run.has_images:
            return [], ("The images of the data set are not there, so no pictures are shown.",)
        shared = functools.reduce(np.intersect1d, [reader.index for reader in readers.values()])
        # Images that the tests have seen, where there are such, so that their curves can be shown.
        for test in self.tests:
            if (seen := np.intersect1d(shared, test.index)).size:
                shared = seen
        first = next(iter(readers.values()))
        rows = np.flatnonzero(np.isin(first.index, shared))
        chosen = rows[choice(first.labels[rows], first.predictions[rows], wanted)]
        indices = first.index[chosen]
        split = self.run.dataset.split("test")
        pixels = split.pixels(indices).numpy().transpose(0, 2, 3, 1)
        regions = split.regions(indices)
        maps = {name: reader.maps(reader.rows_of(indices)) for name, reader in readers.items()}
        sure = confidence(first.logits[chosen], first.origin.get("model", {}).get("probabilities", "softmax"))
        names = self._classifier_names
        comparable = names == self.class_names
        return [
            Picture(
                index=int(index),
                pixels=pixels[place],
                label=_name(self.class_names, first.labels[row]),
                prediction=_name(names, first.predictions[row]),
                target=_name(names, first.targets[row]),
                confidence=float(sure[place]),
                is_right=bool(first.labels[row] == first.predictions[row]) if comparable else None,
                region=None if regions is None else regions[place],
                maps={m.name: maps[m.name][place] for m in self.methods if m.name in maps},
            )
            for place, (index, row) in enumerate(zip(indices, chosen, strict=True))
        ], ()

    # --- retraining

    def retraining(self) -> list[Retraining]:
        """Accuracies of the cells that belong to the configuration."""
        section = self.settings.retrain_cls
        if section is None:
            return []
        planned = self._stage(RETRAIN)
        cells = [file for file in planned.complete.values() if isinstance(file.job, retrain_grid.Job)]
        accuracy = {
            (cell.job.metric, cell.job.method, cell.job.percentile, cell.job.number): float(
                planned.states[cell].content["test_accuracy"]
            )
            for cell in cells
        }
        # Networks that see masks alone have no curve to be read; their verdict is in retrain_cls/summary.csv.
        curves = [metric for metric in section.metrics if metric != "mask_only"]
        begun = [metric for metric in curves if any(key[0] == metric for key in accuracy)]
        return [self._table(section, metric, accuracy) for metric in begun]

    def _table(self, section: config.RetrainCls, metric: str, accuracy: Mapping[tuple[Any, ...], float]) -> Retraining:
        percentiles = sorted(p for p in section.percentiles if p > 0)
        table = {}
        for method in section.methods():
            steps = [
                (retrain_grid.INTACT, retrain_grid.INTACT, 0.0),
                *((metric, method.name, percentile) for percentile in percentiles),
            ]
            table[method.name] = np.array(
                [[accuracy.get((*step, number), np.nan) for step in steps] for number in section.seeds]
            )
        fractions = np.array([0.0, *(percentile / 100 for percentile in percentiles)])
        return Retraining(metric, fractions, tuple(section.seeds), table, self._most_frequent(), _fill(section.fill))

    def retraining_lines(self) -> list[RetrainingLine]:
        """The summary that the retraining stage wrote."""
        rows = self._stage(RETRAIN).table(self.settings.outdir / "retrain_cls" / "summary.csv")
        return [_of_row(RetrainingLine, row) for row in rows]

    # --- tests of stored maps

    def curves(self) -> Curves | None:
        """Curves without retraining of the methods whose files are complete."""
        section = self.settings.pixel_perturbation_analysis
        found = self._scores("lerf", "pixel_perturbation_analysis")
        if section is None or not found:
            return None
        first = next(iter(found.values()))
        return Curves(
            np.array(sorted({0.0} | {percentile / 100 for percentile in section.percentiles})),
            first.read("target"),
            {name: reader.read("probability") for name, reader in found.items()},
            {name: reader.read("predicted") for name, reader in found.items()},
            self._classifier_names,
            _fill(section.fill),
        )

    @functools.cached_property
    def tests(self) -> list[TestResult]:
        """What the tests of stored maps left, for those that the configuration has."""
        results = []
        for command in self.stages:
            stage = registry.STAGES[command]
            has_scores = stage.is_map_test and self._stage(command).complete
            for test in registry.map_tests(self.settings, command) if has_scores else ():
                if not (readers := self._scores(command, test.section)):
                    continue
                name, label, summary = test.section, command, stage.summary
                if isinstance(test, OwnTest):
                    name, label, summary = test.settings.name, test.settings.name, test.summary
                values = {method: tuple(test.read(reader.read)) for method, reader in readers.items()}
                index = next(iter(readers.values())).read("index")
                results.append(TestResult(name, label, summary, tuple(test.scores), values, index))
        return results

    def _scores(self, command: str, section: str) -> dict[str, store.RowReader]:
        """The files of scores of a test that can be used, by method."""
        folder = self.settings.outdir / section
        files = [file.path for file in self._stage(command).complete.values() if file.path.parent == folder]
        return {path.stem: store.RowReader(path) for path in files if path.suffix == ".h5"}

    # --- stages with a summary of their own

    def similarity(self) -> Similarity | None:
        """How alike the methods' maps are."""
        folder, planned = self.settings.outdir / "agreement", self._stage("agreement")
        if folder / "agreement.h5" not in planned.complete:
            return None
        reader = store.RowReader(folder / "agreement.h5")
        matrices = {name: reader.read(name) for name in ("spearman", "top_k_overlap", "ssim")}
        tree: Mapping[str, Any] = {}
        if folder / "results.csv" in planned.complete:
            tree = artefacts.read_json(folder / "clustering.json") or {}
        return Similarity(
            tuple(reader.origin["methods"]),
            matrices,
            tuple(tree.get("leaf_order", ())),
            np.array(tree.get("linkage", ()), dtype=np.float64).reshape(-1, 4),
            tuple(tree.get("left_out", ())),
        )

    def sanity(self) -> list[SanityStep]:
        """What randomising the classifier does to maps."""
        rows = self._stage("sanity-checks").table(self.settings.outdir / "sanity_checks" / "results.csv")
        return [_of_row(SanityStep, row) for row in rows]

    # --- around

    def costs(self) -> list[Cost]:
        """Times that the stages kept."""
        folders = [(name, self.settings.outdir / name) for name in registry.folders(self.settings)]
        return [cost for name, folder in folders if (cost := _cost(name, folder))]

    def provenance(self) -> list[tuple[str, str]]:
        """Hashes of what the numbers were computed from."""
        names = self.run.splits if self.run.has_images else ()
        lines = [(f"images, {name}", self.run.dataset.split(name).fingerprint) for name in names]
        if self._trained in self._stage(TRAIN).complete:
            lines.append(("weights of the classifier", artefacts.sha256(self._trained)))
        return lines + [(f"test maps of {name}", reader.content_id()) for name, reader in self.maps.items()]

    def identity(self) -> list[Any]:
        """What changes with anything that the report shows."""
        parts: list[Any] = [self.run.has_images]
        for planned in self.stages.values():
            parts.append([planned.command, planned.problem])
            for file, state in planned.states.items():
                kept: Any = state.content
                if state.is_complete and file.path.suffix == ".h5":
                    kept = {name: str(value) for name, value in store.RowReader(file.path).attributes.items()}
                parts.append([str(file.path.relative_to(self.settings.outdir)), state.state, len(file.needs), kept])
        parts += [[name, str(reader.content_id())] for name, reader in self.maps.items()]
        times = [self.settings.outdir / name / "timing.csv" for name in registry.folders(self.settings)]
        return [*parts, *(artefacts.sha256(path) if path.is_file() else "" for path in times)]

    def _cuts(self) -> list[float]:
        """Removed fractions at which ties are counted: those of the retraining, else three of the curves'."""
        if self.settings.retrain_cls:
            asked = sorted(self.settings.retrain_cls.percentiles)
        elif self.settings.pixel_perturbation_analysis:
            every = sorted(self.settings.pixel_perturbation_analysis.percentiles)
            asked = [every[0], every[len(every) // 2], every[-1]]
        else:
            asked = [10, 50, 90]
        return list(dict.fromkeys(percentile / 100 for percentile in asked if 0 < percentile < 100))

    def _most_frequent(self) -> float:
        """Share of the most frequent class among the test images: what a network that sees nothing can reach."""
        labels: Iterable[int] = ()
        if self.run.has_images:
            labels = self.run.dataset.split("test").labels.tolist()
        elif self.maps:
            labels = next(iter(self.maps.values())).labels.tolist()
        counts = Counter(labels)
        return max(counts.values()) / counts.total() if counts else float("nan")


def _fill(fill: str | config.Plugin) -> str:
    return fill if isinstance(fill, str) else fill.name


# --- small files


def _history(rows: Sequence[Mapping[str, str]]) -> dict[str, NDArray[np.float64]]:
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]} if rows else {}


def _cost(stage: str, folder: Path) -> Cost | None:
    rows = runtime.times(folder)
    if not rows:
        return None
    return Cost(
        stage,
        len(rows),
        sum(row.items for row in rows),
        sum(row.seconds for row in rows),
        tuple(sorted({row.host for row in rows})),
        max(row.finished for row in rows),
    )


def _seconds_by_method(folder: Path) -> dict[str, tuple[float, int]]:
    """Seconds and number of maps of each method whose maps were made there."""
    found: dict[str, tuple[float, int]] = {}
    for row in runtime.times(folder):
        name, _, split = row.what.partition("/")
        if split in SPLITS:
            seconds, made = found.get(name, (0.0, 0))
            found[name] = (seconds + row.seconds, made + row.items)
    return found


def _of_row(kind: type[Line], row: Mapping[str, str]) -> Line:
    """A line of a table as a dataclass whose fields are named as its columns; an undefined number is NaN."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        text = row[field.name]
        if field.type is float:
            values[field.name] = float("nan") if text in ("", retrain_summary.NOT_TESTABLE) else float(text)
        elif field.type is bool:
            values[field.name] = text == "True"
        elif field.type == tuple[str, ...]:
            values[field.name] = tuple(filter(None, text.split(";")))
        else:
            values[field.name] = int(text) if field.type is int else text
    return kind(**values)


# --- maps


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else str(number)


def _health(name: str, reader: store.MapReader, cuts: Sequence[float], spent: tuple[float, int] | None) -> MapHealth:
    valid = np.flatnonzero(~reader.invalid)
    sample = valid[np.unique(np.linspace(0, len(valid) - 1, min(len(valid), TIES_SAMPLE)).astype(np.int64))]
    maps = reader.maps(sample)
    seconds, made = spent or (None, 0)
    return MapHealth(
        method=name,
        images=reader.rows,
        constant=int(((reader.flags & store.CONSTANT) != 0).sum()),
        invalid=int(reader.invalid.sum()),
        signed=bool((maps < 0).any()),
        sampled=len(sample),
        tied={cut: float(removal.tied_share(maps, cut).mean()) if len(maps) else float("nan") for cut in cuts},
        seconds=seconds,
        made=made,
    )
