"""What the stages of a configuration left behind, read for the report.

Nothing is computed again. A result that was made with other settings than the configuration's is left out and said to be;
so is one that disagrees with its companions about data or classifier. What is not there yet is counted as missing.
"""

import functools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof import artefacts, config, removal, store
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
from heatproof.report.wording import listed
from heatproof.stages import learned, registry, twins
from heatproof.stages.evaluate import MapTest
from heatproof.stages.run import Run, fill_origin, model_origin, training_origin
from heatproof.training import classifier

logger = logging.getLogger(__name__)

TIES_SAMPLE = 1000
"""Maps in which ties are counted: sorting is slow."""
SPLITS = ("train", "validation", "test")
EXTRACT, RETRAIN = "extract-attribution-maps", "evaluate-attribution-maps-roar"


Extracting = config.ExtractCams | config.MapTest


@dataclass(frozen=True)
class Results:
    """The results of one configuration."""

    run: Run
    _score_files: dict[str, "ScoreFiles"] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def settings(self) -> config.Config:
        """The configuration."""
        return self.run.config

    @functools.cached_property
    def methods(self) -> tuple[Method, ...]:
        """The methods of all sections, in their order, the controls last."""
        sections = [section for _, section in self.settings if isinstance(section, config.Methods)]
        found = {method.name: method for section in sections for method in section.methods()}
        listed = [
            Method(
                m.name,
                m.control,
                m.method,
                m.kwargs | {"channel_reduction": m.channel_reduction},
                m.kwargs["of"]["name"] if twins.is_twin(m.method) else "",
            )
            for m in found.values()
        ]
        return tuple(sorted(listed, key=lambda method: method.control))

    # --- the data set

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of each split that is there; empty where the images are not there, which a report can do without."""
        try:
            return {name: self.run.dataset.split(name).fingerprint for name in self.run.dataset.splits}
        except HeatproofError as error:
            logger.info("the images are not there, so results are not compared with them: %s", error)
            return {}

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """Of the data set, or as the trained model has them."""
        if self.fingerprints:
            return tuple(self.run.dataset.class_names)
        kept = artefacts.read_json(self.settings.outdir / "train_cls" / "best_model.json") or {}
        return tuple(kept.get("class_names", ()))

    # --- the classifier

    @functools.cached_property
    def _classifier_names(self) -> tuple[str, ...]:
        """Of the classes that the maps explain: the data set's, unless the classifier has others."""
        reader = next(iter(self.maps.readers.values()), None)
        return self.run.class_names(reader.classes) if reader is not None and self.fingerprints else self.class_names

    def training(self) -> tuple[Training | None, Progress | None]:
        """How the classifier was trained, and whether it is there."""
        section = self.settings.train_cls
        if section is None:
            return None, None
        folder = self.settings.outdir / "train_cls"
        kept, history = artefacts.read_json(folder / "best_model.json"), _history(folder / "history.csv")
        wanted = {
            "model": model_origin(section.model),
            "training": training_origin(section),
            "seed": self.settings.seed,
        }
        remarks = []
        if kept is not None and (reason := _differs(kept["origin"], wanted)):
            remarks.append(
                f"The classifier was trained with other settings ({reason}); maps and curves explain that one."
            )
            kept = None
        progress = Progress("Classifier", _command("train-cls"), int(kept is not None), 1, "networks", tuple(remarks))
        if kept is None or not history:
            return None, progress
        found = Training(history, kept["best_epoch"], kept["validation_accuracy"], kept["test_accuracy"])
        return found, progress

    # --- maps

    @functools.cached_property
    def maps(self) -> "MapFiles":
        """The files of maps of test images that can be used, and remarks about the others."""
        readers: dict[str, store.MapReader] = {}
        remarks = []
        for section, method, path in self._map_files():
            name, state = method.name, store.read_state(path, store.FORMAT)
            if state is None or name in readers:
                continue
            reason = state.damage or _differs(state.origin or {}, self._origin_of_maps(section, method))
            if reason:
                remarks.append(f"The maps of {name} were made with other settings or are damaged ({reason}); left out.")
            elif state.complete:
                readers[name] = store.MapReader(path)
        return MapFiles(readers, tuple(remarks))

    def extraction_progress(self) -> Progress | None:
        """How many files of maps there are."""
        section = self.settings.extract_cams
        if section is None:
            return None
        methods = section.methods()
        folder = self.settings.outdir / "extract_cams"
        splits = tuple(self.fingerprints) or SPLITS
        states = [store.read_state(folder / m.name / f"{split}.h5") for m in methods for split in splits]
        done = sum(state is not None and state.complete for state in states)
        return Progress("Attribution maps", _command(EXTRACT), done, len(states), "files", self.maps.remarks)

    def health(self) -> list[MapHealth]:
        """Counts, ties and times of the maps of test images."""
        seconds = _seconds_by_method(self.settings.outdir / "extract_cams" / "timing.csv")
        return [
            _health(method.name, self.maps.readers[method.name], self._cuts(), seconds.get(method.name))
            for method in self.methods
            if method.name in self.maps.readers
        ]

    def pictures(self, wanted: int) -> tuple[list[Picture], tuple[str, ...]]:
        """Some test images with all maps of them, and a remark where the images cannot be read."""
        readers = self.maps.readers
        if not readers or not wanted:
            return [], ()
        if not self.fingerprints:
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

    def retraining(self) -> tuple[list[Retraining], Progress | None]:
        """Accuracies of the cells that belong to the configuration, and how many of the grid there are."""
        section = self.settings.retrain_cls
        if section is None:
            return [], None
        cells = list(self._cells(section))
        found = {cell: result for cell in cells if (result := artefacts.read_json(cell.path)) is not None}
        stale = {cell: reason for cell, result in found.items() if (reason := self._why_stale(cell, result))}
        usable = {cell: result for cell, result in found.items() if cell not in stale}
        odd = _odd({cell: [result["origin"].get("data"), result["test_images"]] for cell, result in usable.items()})
        usable = {cell: result for cell, result in usable.items() if cell not in odd}
        accuracy = {cell.key: float(result["test_accuracy"]) for cell, result in usable.items()}
        remarks = [
            f"{_cells(len(group))} made with other settings ({why}); left out." for why, group in _grouped(stale)
        ]
        if odd:
            remarks.append(f"{_cells(len(odd))} made from other data than the rest; left out.")
        failed = [cell for cell in cells if cell not in usable and cell.path.with_suffix(".error").is_file()]
        if failed:
            where = failed[0].path.with_suffix(".error")
            remarks.append(f"{_cells(len(failed), 'has', 'have')} failed; see {where}.")
        progress = Progress("Retraining", _command(RETRAIN), len(usable), len(cells), "cells", tuple(remarks))
        # Networks that see masks alone have no curve to be read; their verdict is in retrain_cls/summary.csv.
        curves = [metric for metric in section.metrics if metric != "mask_only"]
        begun = [metric for metric in curves if any(key[0] == metric for key in accuracy)]
        return [self._table(section, metric, accuracy) for metric in begun], progress

    def _table(self, section: config.RetrainCls, metric: str, accuracy: Mapping[tuple[Any, ...], float]) -> Retraining:
        percentiles = sorted(p for p in section.percentiles if p > 0)
        steps: list[tuple[str, str | None, float]]
        table = {}
        for method in section.methods():
            steps = [("intact", None, 0.0), *((metric, method.name, percentile) for percentile in percentiles)]
            table[method.name] = np.array(
                [[accuracy.get((*step, number), np.nan) for step in steps] for number in section.seeds]
            )
        fractions = np.array([0.0, *(percentile / 100 for percentile in percentiles)])
        return Retraining(metric, fractions, tuple(section.seeds), table, self._most_frequent(), _fill(section.fill))

    def _cells(self, section: config.RetrainCls) -> Iterator["Cell"]:
        """The grid; the same paths as the stage that makes it."""
        root = self.settings.outdir / "retrain_cls"
        for number in section.seeds:
            yield Cell(root / "intact" / "0" / f"seed{number}.json", "intact", None, 0.0, number)
            for metric in section.metrics:
                for method in section.methods():
                    for percentile in section.percentiles:
                        if percentile > 0:
                            path = root / metric / method.name / f"{percentile:g}" / f"seed{number}.json"
                            yield Cell(path, metric, method.name, percentile, number)

    @functools.cached_property
    def _contents(self) -> dict[str, str]:
        """What is in the test maps that are there and right, by method."""
        return {name: reader.content_id() for name, reader in self.maps.readers.items()}

    def _why_stale(self, cell: "Cell", result: Mapping[str, Any]) -> str:
        """How a cell's origin differs from the configuration's; empty where it does not."""
        section = config.section(self.settings, "retrain_cls", config.RetrainCls)
        wanted: dict[str, Any] = {
            "model": model_origin(section.model),
            "training": training_origin(section),
            "seed": self.settings.seed,
            "run": cell.run,
            "code": classifier.RESULTS_VERSION,
        }
        if self.fingerprints:
            wanted["data"] = self.fingerprints
        if cell.method is not None:
            wanted |= {"metric": cell.metric, "percentile": cell.percentile}
            if cell.metric != "mask_only":
                wanted["fill"] = fill_origin(section.fill)
        origin = result.get("origin", {})
        made_from = (origin.get("maps") or {}).get("test")
        if cell.method in self._contents and made_from != self._contents[cell.method]:
            return f"maps of {cell.method} that have been made anew since"
        return _differs(origin, wanted)

    # --- curves

    def curves(self) -> Curves | None:
        """Curves without retraining of the methods whose files are complete."""
        section = self.settings.pixel_perturbation_analysis
        test = None if section is None else registry.map_test(self.settings, "lerf")
        found = {} if test is None else self._scored(test).readers
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

    # --- tests of stored maps

    @functools.cached_property
    def tests(self) -> list[TestResult]:
        """What the tests of stored maps left, for those that the configuration has."""
        results = []
        for command, stage in registry.STAGES.items():
            if stage.is_map_test and getattr(self.settings, stage.section or "") is not None:
                test = registry.map_test(self.settings, command)
                files = self._scored(test)
                values = {name: tuple(test.read(reader.read)) for name, reader in files.readers.items()}
                if not values:
                    continue
                index = next((reader.read("index") for reader in files.readers.values()), np.zeros(0, np.int64))
                results.append(TestResult(test.section, command, stage.summary, tuple(test.scores), values, index))
        return results

    def test_progress(self) -> list[Progress]:
        """How many files of scores there are, for each test of stored maps."""
        progress = []
        for command, stage in registry.STAGES.items():
            section = getattr(self.settings, stage.section or "", None)
            if stage.is_map_test and isinstance(section, config.MapTest):
                files = self._scored(registry.map_test(self.settings, command))
                done, wanted = len(files.readers), len(section.methods())
                progress.append(Progress(command, _command(command), done, wanted, "methods", files.remarks))
        return progress

    def _scored(self, test: MapTest) -> "ScoreFiles":
        """The files of scores of a test that can be used, and remarks about the others."""
        if test.section not in self._score_files:
            self._score_files[test.section] = self._read_scored(test)
        return self._score_files[test.section]

    def _read_scored(self, test: MapTest) -> "ScoreFiles":
        section = config.section(self.settings, test.section, config.MapTest)
        wanted = {"seed": self.settings.seed, **test.origin()}
        if self.fingerprints:
            wanted["data"] = self.fingerprints.get("test")
        found: dict[str, store.RowReader] = {}
        stale: dict[str, str] = {}
        remarks: list[str] = []
        for method in section.methods():
            name, path = method.name, self.settings.outdir / test.section / f"{method.name}.h5"
            state = store.read_state(path)
            if state is None or not (state.complete or state.damage):
                continue
            reason = state.damage or _differs(state.origin or {}, wanted) or self._made_from_others(name, state)
            if reason:
                stale[name] = reason
            else:
                found[name] = store.RowReader(path)
        remarks += [
            f"{test.section}: the scores of {listed(names)} were made with other settings or are damaged ({reason}); left out."
            for reason, names in _grouped(stale)
        ]
        for name in _odd({name: [r.origin.get("model"), r.origin.get("rows")] for name, r in found.items()}):
            remarks.append(
                f"{test.section}: the scores of {name} are of another classifier or other images than the rest; left out."
            )
            del found[name]
        return ScoreFiles(found, tuple(remarks))

    def _made_from_others(self, name: str, state: store.State) -> str:
        if name not in self._contents or (state.origin or {}).get("maps") == self._contents[name]:
            return ""
        return "its maps have been made anew since"

    # --- stages with a summary of their own

    def retraining_lines(self, found: Sequence[Retraining]) -> tuple[list[RetrainingLine], tuple[str, ...]]:
        """The summary that the retraining stage wrote, if it is of the same cells; and a remark if it is not.

        Args:
            found: the cells' accuracies.
        """
        path = self.settings.outdir / "retrain_cls" / "summary.csv"
        if (
            not (lines := [_retraining_line(row) for row in artefacts.read_csv(path)])
            or self.settings.retrain_cls is None
        ):
            return [], ()
        names = {method.name for method in self.settings.retrain_cls.methods()}
        if not all(_agrees(line, found) for line in lines) or {line.method for line in lines} - names - {""}:
            return [], (f"{path.relative_to(self.settings.outdir)} is of other cells; left out. {_command(RETRAIN)}",)
        return lines, ()

    def similarity(self) -> tuple[Similarity | None, tuple[str, ...]]:
        """How alike the methods' maps are, if these are the maps that are here; and a remark if they are not."""
        folder = self.settings.outdir / "agreement"
        state = store.read_state(folder / "agreement.h5")
        if self.settings.agreement is None or state is None or not state.complete or state.damage:
            return None, ()
        origin = state.origin or {}
        wanted = {"seed": self.settings.seed, "top_fraction": self.settings.agreement.top_fraction}
        old = [n for n, content in self._contents.items() if origin["maps"].get(n, content) != content]
        if reason := _differs(origin, wanted) or listed(old):
            return None, (f"agreement: made with other settings or maps ({reason}); left out.",)
        reader = store.RowReader(folder / "agreement.h5")
        matrices = {name: reader.read(name) for name in ("spearman", "top_k_overlap", "ssim")}
        tree = artefacts.read_json(folder / "clustering.json") or {}
        return Similarity(
            tuple(origin["methods"]),
            matrices,
            tuple(tree.get("leaf_order", ())),
            np.array(tree.get("linkage", ()), dtype=np.float64).reshape(-1, 4),
            tuple(tree.get("left_out", ())),
        ), ()

    def sanity(self) -> list[SanityStep]:
        """What randomising the classifier does to maps, of the methods of the configuration."""
        section = self.settings.sanity_checks
        if section is None:
            return []
        names = {method.name for method in section.methods()}
        rows = artefacts.read_csv(self.settings.outdir / "sanity_checks" / "results.csv")
        return [_sanity_step(row) for row in rows if row["method"] in names]

    # --- around

    def costs(self) -> list[Cost]:
        """Times that the stages kept."""
        return [
            cost for name in registry.sections() if (cost := _cost(name, self.settings.outdir / name / "timing.csv"))
        ]

    def provenance(self) -> list[tuple[str, str]]:
        """Hashes of what the numbers were computed from."""
        lines = [(f"images, {name}", value) for name, value in self.fingerprints.items()]
        kept = artefacts.read_json(self.settings.outdir / "train_cls" / "best_model.json") or {}
        if "weights_sha256" in kept:
            lines.append(("weights of the classifier", kept["weights_sha256"]))
        return lines + [(f"test maps of {name}", value) for name, value in self._contents.items()]

    def files(self) -> list[Path]:
        """All files that the report reads, there or not."""
        outdir, section = self.settings.outdir, self.settings.retrain_cls
        paths = [outdir / "train_cls" / name for name in ("best_model.json", "history.csv", "timing.csv")]
        paths += [path for _, _, path in self._map_files()]
        extraction = self.settings.extract_cams.methods() if self.settings.extract_cams else []
        paths += [outdir / "extract_cams" / m.name / f"{split}.h5" for m in extraction for split in SPLITS]
        for cell in self._cells(section) if section else ():
            paths += [cell.path, cell.path.with_suffix(".error")]
        for name, test in self._map_tests():
            paths += [outdir / name / f"{method.name}.h5" for method in test.methods()]
        paths += [outdir / "retrain_cls" / "summary.csv", outdir / "sanity_checks" / "results.csv"]
        paths += [outdir / "agreement" / name for name in ("agreement.h5", "clustering.json")]
        paths += [outdir / name for name in learned.FILES]
        return list(dict.fromkeys([*paths, *(outdir / name / "timing.csv" for name in registry.sections())]))

    def _map_tests(self) -> list[tuple[str, config.MapTest]]:
        return [(name, section) for name, section in self.settings if isinstance(section, config.MapTest)]

    def _map_files(self) -> Iterator[tuple[Extracting, config.AttributionMethod, Path]]:
        """Where the maps of test images may be, and the section that says how they are made; the better place first."""
        outdir = self.settings.outdir
        if extraction := self.settings.extract_cams:
            for method in extraction.methods():
                yield extraction, method, outdir / "extract_cams" / method.name / "test.h5"
        for _, test in self._map_tests():
            for method in test.methods():
                whole = outdir / "extract_cams" / method.name / "test.h5"
                yield test, method, whole
                if test.test_samples:
                    yield test, method, whole.with_name(f"test-{test.test_samples}.h5")

    def _origin_of_maps(self, section: Extracting, method: config.AttributionMethod) -> dict[str, Any]:
        """What an attribution file's origin has to say, as far as that is known without loading the classifier."""
        model: dict[str, Any] = model_origin(section.model)
        if section.model.pretrained_weights and Path(section.model.pretrained_weights).is_file():
            model["weights"] = _sha256(Path(section.model.pretrained_weights))
        wanted: dict[str, Any] = {
            "model": model,
            "target": section.target,
            "ties": section.ties,
            "seed": self.settings.seed,
            "method": {
                "path": method.method,
                "kwargs": artefacts.with_content(method.kwargs),
                "channel_reduction": method.channel_reduction,
                "on_invalid": method.on_invalid,
            },
        }
        return wanted | ({"data": self.fingerprints.get("test")} if self.fingerprints else {})

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
        if self.fingerprints:
            labels = self.run.dataset.split("test").labels.tolist()
        elif self.maps.readers:
            labels = next(iter(self.maps.readers.values())).labels.tolist()
        counts = Counter(labels)
        return max(counts.values()) / counts.total() if counts else float("nan")


@dataclass(frozen=True)
class MapFiles:
    """Open files of maps, by method, and what was left out."""

    readers: Mapping[str, store.MapReader]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoreFiles:
    """Open files of one test's scores, by method, and what was left out."""

    readers: Mapping[str, store.RowReader]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One job of the grid and where its result is."""

    path: Path
    metric: str
    method: str | None
    percentile: float
    run: int
    key: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.metric, self.method, self.percentile, self.run))


# --- origins


def _differs(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first differences in what both say; empty where there is none."""
    return "; ".join(artefacts.differences(_common(found, wanted), wanted)[:2])


def _common(found: Any, wanted: Any) -> Any:
    """`found` without the keys that `wanted` says nothing about."""
    if not (isinstance(found, Mapping) and isinstance(wanted, Mapping)):
        return found
    return {key: _common(found.get(key), value) if key != "kwargs" else found.get(key) for key, value in wanted.items()}


def _odd(values: Mapping[Any, Any]) -> set[Any]:
    """The keys whose value differs from that of most of them."""
    texts = {key: artefacts.canonical(value) for key, value in values.items()}
    if not texts:
        return set()
    (usual, _), *_ = Counter(texts.values()).most_common(1)
    return {key for key, text in texts.items() if text != usual}


def _grouped(reasons: Mapping[Any, str]) -> Iterator[tuple[str, list[Any]]]:
    for reason in dict.fromkeys(reasons.values()):
        yield reason, [key for key, value in reasons.items() if value == reason]


def _fill(fill: str | config.Plugin) -> str:
    return fill if isinstance(fill, str) else fill.name


@functools.lru_cache(maxsize=4)
def _sha256(path: Path) -> str:
    return artefacts.sha256(path)


# --- small files


def _history(path: Path) -> dict[str, NDArray[np.float64]]:
    rows = artefacts.read_csv(path)
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]} if rows else {}


def _cost(stage: str, path: Path) -> Cost | None:
    rows = artefacts.read_csv(path)
    if not rows:
        return None
    return Cost(
        stage,
        len(rows),
        sum(int(row["items"]) for row in rows),
        sum(float(row["seconds"]) for row in rows),
        tuple(sorted({row["host"] for row in rows})),
        max(row["finished"] for row in rows),
    )


def _seconds_by_method(path: Path, but: Iterable[str] = ()) -> dict[str, tuple[float, int]]:
    """Seconds and number of maps of each method whose maps were made there."""
    known = set(but)
    found: dict[str, tuple[float, int]] = {}
    for row in artefacts.read_csv(path):
        name, _, split = row["what"].partition("/")
        if split in SPLITS and name not in known:
            seconds, made = found.get(name, (0.0, 0))
            found[name] = (seconds + float(row["seconds"]), made + int(row["items"]))
    return found


def _retraining_line(row: Mapping[str, str]) -> RetrainingLine:
    """A line of retrain_cls/summary.csv; what it leaves empty or calls not testable is NaN."""

    def number(name: str) -> float:
        try:
            return float(row[name])
        except ValueError:
            return float("nan")

    return RetrainingLine(
        score=row["score"],
        metric=row["metric"],
        method=row["method"],
        control=row["control"] == "True",
        removed_fraction=number("removed_fraction"),
        better=row["better"],  # type: ignore[arg-type]
        n=int(row["n"]),
        mean=number("mean"),
        sd=number("sd"),
        low=number("low"),
        high=number("high"),
        useless=number("useless"),
        difference=number("difference_to_random"),
        difference_low=number("difference_low"),
        difference_high=number("difference_high"),
        images_low=number("images_low"),
        images_high=number("images_high"),
        effect=number("cohens_d"),
        p=number("p_holm"),
        marks=row["marks"],
    )


def _agrees(line: RetrainingLine, found: Sequence[Retraining]) -> bool:
    """Whether a line's accuracy is that of the cells; what is no accuracy of ROAR or KAR is not asked."""
    for part in found:
        steps = np.flatnonzero(np.isclose(part.fractions, line.removed_fraction))
        if line.score == "accuracy" and line.metric == part.metric and line.method in part.accuracy and len(steps):
            runs = part.accuracy[line.method][:, steps[0]]
            runs = runs[np.isfinite(runs)]
            return len(runs) == line.n and bool(np.isclose(runs.mean(), line.mean, rtol=0, atol=1e-9))
    return True


def _sanity_step(row: Mapping[str, str]) -> SanityStep:
    """A line of sanity_checks/results.csv."""
    mean, sd, low, high = (float(row[name] or "nan") for name in ("mean", "sd", "low", "high"))
    return SanityStep(
        method=row["method"],
        check=row["check"],
        step=int(row["step"]),
        layer=row["layer"],
        score=row["score"],
        n=int(row["n"]),
        n_undefined=int(row["n_undefined"]),
        mean=mean,
        sd=sd,
        low=low,
        high=high,
        verdict=row["verdict"],
        looks_at_model=row["model_independent"] != "True",
    )


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


def _command(stage: str) -> str:
    return f"heatproof {stage} --config FILE"


def _cells(number: int, one: str = "was", many: str = "were") -> str:
    return f"{number:,} {'cell ' + one if number == 1 else 'cells ' + many}"
