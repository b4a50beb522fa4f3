"""localise: pointing game, boxes and masks, for datasets with object annotations.

Reads each method's stored maps, and where the objects are from the data set; writes localise/<method>.h5 (per image: what the
scores are made of), results.csv, classes.csv (pointing and LE of each class, with the number of tests), and
localise/<method>.json with the summary that masking-based saliency is published with.

The object is the label's, whatever class the map explains: with maps of the predicted class, a wrong prediction is judged too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from heatproof import artefacts, config, seeding, store
from heatproof.errors import ConfigError, DataError, InputError, nearest
from heatproof.metrics import boxes, masks, pixels, pointing, regions
from heatproof.metrics.score import Pooled, Score, Scored
from heatproof.models.probabilities import Kind, kind_of, log_probability_of_any
from heatproof.removal.crops import enlarged
from heatproof.removal.pixels import as_float
from heatproof.stages.evaluate import Images, Subject, evaluate
from heatproof.stages.plan import Artefact
from heatproof.stages.run import IMAGES, Run

RESULTS_VERSION = 1

OVERLAPS = (0.3, 0.5, 0.7)  # required by MaxBoxAccV2; MaxBoxAcc requires the second
MOST_CLASSES = 100  # up to which the mean over classes is resampled: the work grows with images x classes

BY_CLASS = ("method", "class", "pointing_tests", "pointing", "le_tests", "le")

PER_IMAGE = (
    "half", "tolerance", "hit", "hit_chance", "region_share", "mass_in_region", "absolute_mass_in_region", "rank_in_region",
    "top_k_in_region", "roc_area_in_region", "box_overlap", "le", "om", "f1", "f1a", "sm1", "sm2", "sm_correct", "top1", "top5",
    "binarized", "avg_mask", "entropy", "tv", "reachable_overlap",
    "whole_box_overlap", "whole_le", "whole_om", "whole_f1", "whole_f1a", "whole_sm", "whole_sm1", "whole_sm2", "whole_sm_acc",
)  # fmt: skip


@dataclass(frozen=True)
class Localisation:
    """Where maps are high, compared with where the object is."""

    settings: config.Localise
    seed: int
    section = "localise"
    # Where a map that knows nothing and the object's inverse both score next to the worst, the order of these two says nothing:
    # such scores are not `oracle_best`, though the object itself is far ahead.
    scores = (
        Score("pointing", "higher", "share of images whose highest pixel lies on the object, or near", headline=True),
        Score("pointing_class_mean", "higher", "the same, averaged over the classes that occur, in [0, 1]"),
        Score(
            "mass_in_region", "higher", "share of the positive values that lies on the object, in [0, 1]", headline=True
        ),
        Score("absolute_mass_in_region", "higher", "share of the absolute values that lies on the object, in [0, 1]"),
        Score("rank_in_region", "higher", "share on the object of as many highest pixels as it has, in [0, 1]"),
        Score("top_k_in_region", "higher", "share of the k highest pixels that lies on the object, in [0, 1]"),
        Score("roc_area_in_region", "higher", "chance that a pixel of the object is higher than another, in [0, 1]"),
        Score("average_precision", "higher", "area under precision over recall of the object's pixels, in [0, 1]"),
        Score("pxap", "higher", "the same of the pixels of all images together (PxAP), in [0, 1]", oracle_best=False),
        Score("max_box_acc", "higher", "images whose box overlaps by half, at the data's best threshold, in [0, 1]"),
        Score(
            "max_box_acc_v2",
            "higher",
            "images with a box that overlaps by 0.3, 0.5, 0.7, each at the data's best threshold, in [0, 1]",
            headline=True,
        ),
        Score(
            "box_acc_held_out",
            "higher",
            "as max_box_acc, at the threshold best for the other half of the images",
            oracle_best=False,
        ),
        Score("box_acc_v2_held_out", "higher", "as max_box_acc_v2, at the thresholds best for the other half"),
        Score(
            "box_overlap",
            "higher",
            "overlap of the box at the map's mean with the object's, in [0, 1]",
            oracle_best=False,
        ),
        Score(
            "le",
            "lower",
            "share of images whose box at the map's mean overlaps by half or less",
            headline=True,
            oracle_best=False,
        ),
        Score("om", "lower", "share of images whose box or class is wrong", oracle_best=False),
        Score("f1", "higher", "F1 of the soft mask against the object's best box, in [0, 1]"),
        Score("f1a", "higher", "F1 of the soft mask, mean over the object's boxes, in [0, 1]"),
        Score("sm", "lower", "ln of the box's area less ln p of its content alone", oracle_best=False),
        Score("sm1", "lower", "ln of the box's share of the image, at least ln 0.05", oracle_best=False),
        Score("sm2", "higher", "ln p of the class for what the box holds", oracle_best=False),
        Score("sm_acc", "higher", "share of images still classified right by what the box holds", oracle_best=False),
        Score("binarized", "neither", "share of pixels above the map's mean, in [0, 1]", oracle_best=False),
        Score("avg_mask", "neither", "mean of the mask, in [0, 1]", oracle_best=False),
        Score("entropy", "neither", "mean of -m log2 m of the mask, in bits", oracle_best=False),
        Score(
            "reachable_overlap",
            "neither",
            "overlap that a box in the image can have at most: below 1 where the frame cuts the object, in [0, 1]",
            oracle_best=False,
        ),
        Score("tv", "neither", "mean squared difference of neighbours in the mask", oracle_best=False),
    )

    @property
    def taus(self) -> NDArray[np.float64]:
        """Thresholds of the boxes, as shares of a map's maximum."""
        return boxes.thresholds(self.settings.threshold_interval)

    def columns(self, size: tuple[int, int]) -> list[store.Column]:
        """Everything that the scores are made of; thresholds and bins are not reduced."""
        bins = len(pixels.bin_edges(self.settings.value_interval)) - 1
        return [
            store.Column("box", "int64", (4,)),
            store.Column("best_overlap", "float64", (2, len(self.taus))),
            store.Column("histogram", "float64", (2, bins)),
            *(store.Column(name, "float64") for name in PER_IMAGE),
        ]

    def origin(self) -> dict[str, Any]:
        """The section's own settings and the version of the code."""
        shared = {"attribution_methods", "controls", *config.MapTest.model_fields}
        return {"settings": self.settings.model_dump(mode="json", exclude=shared), "code": RESULTS_VERSION}

    def measure(self, images: Images, subject: Subject) -> dict[str, NDArray[Any]]:
        """Compares the maps with regions and boxes, and shows the classifier what each map's box holds."""
        if images.regions is None or images.boxes is None:
            raise DataError(_unknown(subject.run))
        if self.settings.accepted_classes is None:
            way_out = "set localise.accepted_classes to the outputs of each class"
            subject.run.require_labels(subject.extraction.model, subject.loaded, "localise", way_out)
        size = (images.maps.shape[1], images.maps.shape[2])
        truths = boxes.seen_truths(images.boxes, size)
        mask = self._masks(images)
        drawn = boxes.mean_boxes(mask, self.settings.convention)
        error = boxes.localisation_error(drawn, truths)
        accepted = _accepted(self.settings.accepted_classes, subject.run.dataset.class_names, images)
        top1, top5 = _among_best(images.logits, accepted, 1), _among_best(images.logits, accepted, 5)
        log_probability, sm_correct = self._content(images, subject, drawn, accepted)
        return {
            "box": drawn,
            "half": np.array(
                [seeding.derive(self.seed, "localise", "half", i) & 1 for i in images.index.tolist()], float
            ),
            **self._region_scores(images, images.regions),
            **self._threshold_scores(images, images.regions, truths),
            "box_overlap": boxes.best_overlap(drawn, truths),
            "le": error,
            "om": np.where(np.isnan(top1), np.nan, boxes.official_metric(error, top1 == 1)),
            "f1": boxes.f1(mask, truths),
            "f1a": boxes.f1a(mask, truths),
            "sm1": np.where(np.isnan(error), np.nan, boxes.log_area(drawn, size)),
            "sm2": np.where(np.isnan(error), np.nan, log_probability),
            "sm_correct": np.where(np.isnan(error), np.nan, sm_correct),
            "top1": top1,
            "top5": top5,
            "binarized": masks.binarized_share(mask),
            "avg_mask": masks.average(mask),
            "entropy": masks.soft_entropy(mask),
            "tv": masks.total_variation(mask),
            "reachable_overlap": boxes.reachable_overlap(truths, size),
            **_whole_image(images.logits, truths, accepted, size, kind_of(subject.loaded.module)),
        }

    def _masks(self, images: Images) -> NDArray[np.float64]:
        if self.settings.mask == "minmax":
            return masks.unit_range(images.maps)
        wrong = (images.maps < 0).any(axis=(1, 2)) | (images.maps > 1).any(axis=(1, 2))
        if wrong.any():
            row = int(wrong.argmax())
            low, high = images.maps[row].min(), images.maps[row].max()
            raise ConfigError(
                f"localise.mask: as_is needs maps in [0, 1]; that of image {images.index[row]} goes from {low:g} to {high:g}"
            )
        return images.maps.astype(np.float64)

    def _region_scores(self, images: Images, region: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
        size, ignored = (region.shape[1], region.shape[2]), images.ignored
        tolerance = _tolerance(self.settings, size)
        ranks = images.ranks.cpu().numpy()
        return {
            "tolerance": np.full(len(images), tolerance),
            "hit": pointing.hit(pointing.top_points(ranks), region, tolerance),
            "hit_chance": pointing.chance(region, tolerance),
            "region_share": regions.region_share(region, ignored),
            "mass_in_region": regions.mass_in_region(images.maps, region, ignored),
            "absolute_mass_in_region": regions.absolute_mass_in_region(images.maps, region, ignored),
            "rank_in_region": regions.rank_in_region(ranks, region, ignored),
            "top_k_in_region": regions.top_k_in_region(ranks, region, ignored, k=top_k(self.settings, size)),
            "roc_area_in_region": regions.roc_area_in_region(images.maps, region, ignored),
        }

    def _threshold_scores(
        self, images: Images, region: NDArray[np.bool_], truths: list[NDArray[np.int64]]
    ) -> dict[str, NDArray[np.float64]]:
        maps, ignored, side = images.maps, images.ignored, self.settings.size
        if side is not None:
            size = (maps.shape[1], maps.shape[2])
            truths = [boxes.resized_boxes(truth, size, (side, side)) for truth in truths]
            maps = _resized(maps, side, "bicubic")
            region = _resized(region, side, "nearest") > 0
            ignored = None if ignored is None else _resized(ignored, side, "nearest") > 0
        published = self.settings.convention == "as_published"
        # The published corners of true boxes belong to the box.
        true_boxes = [truth - np.array([0, 0, 1, 1]) for truth in truths] if published else truths
        unit = masks.unit_range(maps)
        return {
            "best_overlap": boxes.box_overlaps(unit, true_boxes, self.taus, reference=published),
            "histogram": pixels.pixel_histograms(unit, region, ignored, self.settings.value_interval).astype(
                np.float64
            ),
        }

    def _content(
        self, images: Images, subject: Subject, drawn: NDArray[np.int64], accepted: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """For what each box holds: ln p of the accepted classes, and whether the best class is one of them."""
        rows, logits = self.settings.rows_per_forward, []
        with torch.no_grad():
            for start in range(0, len(images), rows):
                part = slice(start, start + rows)
                crops = enlarged(subject.loaded.normalization(as_float(images.pixels[part])), drawn[part])
                logits.append(subject.loaded.module(crops).cpu())
        content = torch.cat(logits).numpy()
        kind = kind_of(subject.loaded.module)
        return _log_probability(content, accepted, kind), _among_best(content, accepted, 1)

    def read(self, column: Callable[[str], NDArray[Any]]) -> Iterator[Scored | Pooled]:
        """The scores; those of thresholds that are chosen for the data, and of pooled pixels, belong to all images together."""
        value = {name: column(name) for name in PER_IMAGE}
        yield from _pointing_scores(value, column("label"))
        share = value["region_share"]
        for name in ("mass_in_region", "absolute_mass_in_region", "rank_in_region", "top_k_in_region"):
            yield Scored(name, value[name], chance=share)
        yield Scored("roc_area_in_region", value["roc_area_in_region"], chance=np.full(len(share), 0.5))
        histogram = column("histogram")
        chance = pixels.object_share(np.nan_to_num(histogram))
        yield Scored("average_precision", pixels.pixel_average_precision(np.nan_to_num(histogram)), chance=chance)
        yield Pooled("pxap", np.nan_to_num(histogram), pixels.pixel_average_precision)
        yield from _box_scores(column("best_overlap"), value["half"] == 1)
        value |= {"sm": boxes.saliency_metric(value["sm1"], value["sm2"]), "sm_acc": value["sm_correct"]}
        for name in ("box_overlap", "le", "om", "f1", "f1a", "sm", "sm1", "sm2", "sm_acc"):
            yield Scored(name, value[name], chance=value[f"whole_{name}"])
        for name in ("reachable_overlap", "binarized", "avg_mask", "entropy", "tv"):
            yield Scored(name, value[name])


def _whole_image(
    logits: NDArray[Any],
    truths: list[NDArray[np.int64]],
    accepted: NDArray[np.bool_],
    size: tuple[int, int],
    kind: Kind,
) -> dict[str, NDArray[np.float64]]:
    """What a mask of ones, and the box around it, would score: it knows nothing of the image."""
    whole = np.tile(np.array([0, 0, size[1], size[0]]), (len(logits), 1))
    ones = np.ones((len(logits), *size))
    error = boxes.localisation_error(whole, truths)
    top1 = _among_best(logits, accepted, 1)
    sm1 = np.where(np.isnan(error), np.nan, boxes.log_area(whole, size))
    sm2 = np.where(np.isnan(error), np.nan, _log_probability(logits, accepted, kind))
    return {
        "whole_box_overlap": boxes.best_overlap(whole, truths),
        "whole_le": error,
        "whole_om": np.where(np.isnan(top1), np.nan, boxes.official_metric(error, top1 == 1)),
        "whole_f1": boxes.f1(ones, truths),
        "whole_f1a": boxes.f1a(ones, truths),
        "whole_sm": boxes.saliency_metric(sm1, sm2),
        "whole_sm1": sm1,
        "whole_sm2": sm2,
        "whole_sm_acc": np.where(np.isnan(error), np.nan, top1),
    }


def _pointing_scores(value: Mapping[str, NDArray[np.float64]], labels: NDArray[np.int64]) -> Iterator[Scored | Pooled]:
    known = value["tolerance"][np.isfinite(value["tolerance"])]
    setting = f"tolerance={known[0]:g}" if len(known) else ""
    hits = value["hit"]
    yield Scored("pointing", hits, setting, chance=value["hit_chance"])
    classes, position = np.unique(labels, return_inverse=True)
    if len(classes) <= MOST_CLASSES:
        sums = np.zeros((len(hits), len(classes), 2))
        sums[np.arange(len(hits)), position] = np.stack([np.nan_to_num(hits), np.isfinite(hits)], axis=1)
        yield Pooled("pointing_class_mean", sums, _class_mean, setting)


def _class_mean(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, classes, 2) hits and tests -> (B,) mean accuracy of the classes that were tested."""
    hits, tests = sums[..., 0], sums[..., 1]
    tested = tests > 0
    accuracy = np.divide(hits, tests, out=np.zeros_like(hits), where=tested)
    count = tested.sum(axis=1)
    means: NDArray[np.float64] = np.divide(accuracy.sum(axis=1), count, out=np.full(len(sums), np.nan), where=count > 0)
    return means


def _box_scores(overlaps: NDArray[np.float64], halves: NDArray[np.bool_]) -> Iterator[Scored | Pooled]:
    single = boxes.hits_at(overlaps[:, 0], OVERLAPS[1])[:, None]
    several = np.stack([boxes.hits_at(overlaps[:, 1], theta) for theta in OVERLAPS], axis=1)
    for version, hits in (("", single), ("_v2", several)):
        # One more threshold, at which every image with an object counts: the number of images travels with the sums.
        counted = np.concatenate([np.nan_to_num(hits), np.isfinite(hits[..., :1])], axis=2)
        yield Pooled(f"max_box_acc{version}", counted, _best_accuracy)
        yield Scored(f"box_acc{version}_held_out", boxes.held_out_accuracy(hits, halves))


def _best_accuracy(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return boxes.max_box_accuracy(sums[..., :-1], sums[:, 0, -1])


def summary(column: Callable[[str], NDArray[Any]]) -> dict[str, float | None]:
    """The numbers that masking-based saliency is published with, from a method's columns; None where undefined.

    F1, F1a, LE, OM, SM terms, mask statistics: means over the images where they are defined; top1, top5 and sm_acc in
    percent; std_mask over all images.
    """
    means = {
        "F1": "f1", "F1a": "f1a", "OM": "om", "LE": "le", "SM1": "sm1", "SM2": "sm2", "binarized": "binarized",
        "avg_mask": "avg_mask", "entropy": "entropy", "tv": "tv",
    }  # fmt: skip
    values = {key: column(name) for key, name in means.items()}
    values["SM"] = boxes.saliency_metric(values["SM1"], values["SM2"])
    values |= {
        key: 100 * column(name) for key, name in {"top1": "top1", "top5": "top5", "sm_acc": "sm_correct"}.items()
    }
    found = {
        key: float(array[np.isfinite(array)].mean()) if np.isfinite(array).any() else None
        for key, array in values.items()
    }
    spread = masks.spread_of_averages(column("avg_mask"))
    return found | {"std_mask": spread if np.isfinite(spread) else None}


def top_k(settings: config.Localise, size: tuple[int, int]) -> int:
    """How many pixels top_k_in_region looks at: as set, or the share of the image that 1000 are of 224 x 224."""
    return settings.top_k or max(1, round(1000 / 224**2 * size[0] * size[1]))


def test(settings: config.Config) -> Localisation:
    """The test that a configuration asks for."""
    return Localisation(config.section(settings, Localisation.section, config.Localise), settings.seed)


def tables(run: Run, files: Sequence[Artefact[Any]]) -> list[Artefact[Any]]:
    """The table of classes, and each method's summary."""
    folder = run.config.outdir / Localisation.section
    names = list(run.dataset.class_names) if run.has_images else IMAGES
    origin = {"files": {file.path.stem: file.origin for file in files}, "class_names": names, "code": RESULTS_VERSION}
    return [Artefact(folder / "classes.csv", origin, None)]


def run(run: Run) -> None:
    """Computes what is missing or stale of every method's scores, and summarises them."""
    wanted = test(run.config)
    check(run, wanted.settings)
    files = evaluate(run, wanted.settings, wanted)
    (classes,) = tables(run, files)
    if not classes.is_complete():
        columns = {file.path.stem: store.RowReader(file.path).read for file in files}
        summaries = {classes.path.with_name(f"{name}.json"): summary(column) for name, column in columns.items()}
        for path, found in summaries.items():
            artefacts.write_json(path, found)
        lines = [
            [name, *line] for name, column in columns.items() for line in _by_class(column, run.dataset.class_names)
        ]
        artefacts.write_csv(classes.path, BY_CLASS, lines)
        classes.write(classes.path, *summaries)


def _by_class(column: Callable[[str], NDArray[Any]], class_names: tuple[str, ...]) -> Iterator[list[Any]]:
    """A line for each class that occurs: its name, and of pointing and LE the number of tests and the mean."""
    labels = column("label")
    means = [pointing.class_accuracy(column(name), labels, len(class_names))[:2] for name in ("hit", "le")]
    for label in np.unique(labels).tolist():
        cells = [(int(tests[label]), float(mean[label]) if tests[label] else "") for mean, tests in means]
        yield [class_names[label], *cells[0], *cells[1]]


def check(run: Run, settings: config.Localise) -> None:
    """Refuses, before any model is loaded, what cannot be measured."""
    try:
        _tolerance(settings, run.dataset.size)
    except InputError as error:
        raise ConfigError(f"localise.{error}: set localise.force_tolerance") from error
    split, class_names = run.dataset.split("test"), run.dataset.class_names
    if split.boxes(np.arange(1)) is None:
        raise DataError(_unknown(run))
    if settings.accepted_classes is None:
        return
    for name in settings.accepted_classes:
        if name not in class_names:
            raise ConfigError(f"localise.accepted_classes: no label {name!r}{nearest(name, class_names)}")
    for name in (class_names[label] for label in np.unique(split.labels).tolist()):
        if name not in settings.accepted_classes:
            raise ConfigError(
                f"localise.accepted_classes: no entry for {name!r}; [] where no class of the model is right"
            )


def _tolerance(settings: config.Localise, size: tuple[int, int]) -> float:
    return pointing.checked_tolerance(
        size, settings.tolerance, relative=settings.relative_tolerance, force=settings.force_tolerance
    )


def _unknown(run: Run) -> str:
    return (
        f"{run.config.data.dataset}: the data set does not know where its objects are; "
        "localise needs regions or boxes (Planted, or a data set with annotations)"
    )


def _accepted(given: Mapping[str, list[int]] | None, class_names: tuple[str, ...], images: Images) -> NDArray[np.bool_]:
    """Which of the model's classes are right for each image: (B, K)."""
    count = images.logits.shape[1]
    accepted = np.zeros((len(images), count), dtype=np.bool_)
    for row, label in enumerate(images.label.tolist()):
        classes = [label] if given is None else given[class_names[label]]
        if classes and max(classes) >= count:
            raise ConfigError(
                f"localise.accepted_classes: {class_names[label]!r} would be class {max(classes)}; "
                f"the model has {count} classes"
            )
        accepted[row, classes] = True
    return accepted


def _log_probability(logits: NDArray[Any], accepted: NDArray[np.bool_], kind: Kind) -> NDArray[np.float64]:
    """Logarithm of the probability of any right class; NaN where no class is right."""
    right = log_probability_of_any(torch.from_numpy(logits).to(torch.float64), torch.from_numpy(accepted), kind)
    return np.where(accepted.any(axis=1), right.numpy(), np.nan)


def _among_best(logits: NDArray[Any], accepted: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """1 where a right class is among the k best, else 0; NaN where no class is right."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(accepted, best, axis=1).any(axis=1).astype(np.float64)
    return np.where(accepted.any(axis=1), found, np.nan)


def _resized(arrays: NDArray[Any], side: int, mode: str) -> NDArray[np.float32]:
    values: Tensor = torch.from_numpy(arrays.astype(np.float32))[:, None]
    corners = False if mode == "bicubic" else None
    result: NDArray[np.float32] = functional.interpolate(values, (side, side), mode=mode, align_corners=corners)[
        :, 0
    ].numpy()
    return result
