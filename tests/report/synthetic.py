"""Made-up results whose right verdict is known by construction."""

from dataclasses import replace

import numpy as np

from heatproof import config
from heatproof.metrics.score import Curve, Pooled, Score, Scored
from heatproof.report import (
    Cost,
    Curves,
    MapHealth,
    Material,
    Method,
    Picture,
    Progress,
    Retraining,
    Settings,
    TestResult,
    Training,
    sections,
)
from heatproof.stages.perturb import PixelPerturbation

METHODS = (
    Method("good", path="my.Good", settings={"layer": "layer3"}),
    Method("useless", path="my.Useless"),
    Method("bad", path="my.Bad"),
    Method("random", control=True, path="heatproof.methods.controls.Random"),
    Method("sobel", control=True, path="heatproof.methods.controls.Sobel"),
    Method("centre", control=True, path="heatproof.methods.controls.CentreGaussian"),
    Method("oracle", control=True, path="heatproof.methods.controls.Oracle"),
    Method("anti_oracle", control=True, path="heatproof.methods.controls.AntiOracle"),
)
# How much of the evidence each order removes first: 1 all of it, 0 as much as chance, -1 none.
QUALITY = {
    "good": 0.8, "useless": 0.0, "bad": -0.6, "random": 0.0, "sobel": 0.2, "centre": 0.1, "oracle": 1.0, "anti_oracle": -1.0,
}  # fmt: skip
SETTINGS = Settings(resamples=400)


def retraining(metric, runs=(0, 1, 2), fractions=(0.0, 0.1, 0.3, 0.5), quality=QUALITY):
    """Accuracies that fall with the removed fraction, faster or slower by quality; runs differ by a shared offset."""
    rng = np.random.default_rng(7)
    steps, shared = np.array(fractions), rng.normal(0, 0.004, len(runs))
    sign = 1 if metric == "roar" else -1
    accuracy = {}
    for name, value in quality.items():
        slope = 0.9 + 0.8 * sign * value
        mean = 0.97 - slope * steps
        noise = rng.normal(0, 0.004, (len(runs), len(steps)))
        if name == "useless":  # the very accuracies of the random control, but for noise that cancels
            noise = np.array([1, -1, 0])[: len(runs), None] * np.full(len(steps), 0.004)
        if name == "random":
            noise = np.zeros((len(runs), len(steps)))
        accuracy[name] = np.clip(mean + noise * (steps > 0) + shared[:, None], 0, 1)
    return Retraining(metric, steps, tuple(runs), accuracy, nothing_left=0.125)


def curves(images=60, quality=QUALITY, fractions=(0.0, 0.05, 0.1, 0.2, 0.3, 0.5)):
    """Probabilities of images; `useless` differs from random by noise that cancels over pairs of images."""
    rng = np.random.default_rng(11)
    steps = np.array(fractions)
    intact = rng.uniform(0.85, 0.99, images)
    jitter = rng.normal(0, 0.02, (images, 2, len(steps)))
    probability, predicted = {}, {}
    targets = np.arange(images) % 4
    for name, value in quality.items():
        ends = np.stack([1.0 + 0.9 * value, 1.0 - 0.9 * value])
        curve = intact[:, None, None] - ends[None, :, None] * steps
        own = jitter if name == "random" else jitter + rng.normal(0, 0.01, jitter.shape)
        if name == "useless":
            own = jitter + np.where(np.arange(images) % 2 == 0, 0.01, -0.01)[:, None, None]
        probability[name] = np.clip(curve + own * (steps > 0), 0.0, 1.0)
        predicted[name] = np.where(probability[name] > 0.5, targets[:, None, None], 3 - targets[:, None, None])
    return Curves(steps, targets, probability, predicted, ("stripes", "dots", "rings", "lattice"))


def perturbation(found):
    """The main scores of the test whose curves these are, as its stage reads them from files."""
    percentiles = [round(100 * fraction, 6) for fraction in found.fractions if fraction > 0]
    test = PixelPerturbation(config.PixelPerturbationAnalysis.model_construct(percentiles=percentiles))
    values = {
        name: tuple(part for part in test.read({"probability": p}.__getitem__) if part.name in sections.SHOWN_ABOVE)
        for name, p in found.probability.items()
    }
    return TestResult(test.section, "lerf", "removes pixels", test.scores, values, np.arange(found.images))


PROBED = (
    Score("hit", "higher", "how often the map hits, in [0, 1]", headline=True),
    Score("cost", "lower", "what the map costs"),
    Score("size", "neither", "how large the map is", headline=True, oracle_best=False),
    Score("precision", "higher", "precision of all pixels together, in [0, 1]"),
    Score("near", "higher", "how near the map comes", headline=True),
    Score("left", "lower", "what is left after removal"),
)


def probing(images=60, quality=QUALITY):
    """A test of stored maps with every kind of score; better methods score better in all that have a direction."""
    rng = np.random.default_rng(5)
    common = rng.normal(0, 0.05, (6, images))
    values = {}
    for name, value in quality.items():
        own = common if name == "random" else common + rng.normal(0, 0.01, common.shape)
        if name == "useless":
            own = common + np.where(np.arange(images) % 2 == 0, 0.01, -0.01)
        hit = 0.5 + 0.3 * value + own[0]
        if name == "good":
            hit[:3] = np.nan
        pixels = np.full(images, 100.0)
        precision = np.stack([np.round(pixels * np.clip(0.4 + 0.3 * value + own[3], 0, 1)), pixels], axis=1)
        x = np.linspace(0, 1, 6)
        values[name] = (
            Scored("hit", hit, chance=np.full(images, 0.5)),
            Scored("cost", 2 - value + own[1]),
            Scored("size", 3 + own[2]),
            Pooled("precision", precision, lambda total: total[:, 0] / total[:, 1]),
            *(Scored("near", 0.5 + 0.2 * value + own[4], f"tolerance={tolerance}") for tolerance in (1, 3)),
            *(Scored("left", 1 - s * (0.5 + 0.3 * value) + own[5], f"removed={s:g}") for s in (1.0, 0.1, 0.2, 0.5)),
            Curve(
                "fall", x, 1 - x * (0.5 + 0.4 * value) + own[5][:, None] * x, "removed share", "probability", "lower"
            ),
        )
    return TestResult("probing", "probing", "does a map hit", PROBED, values, np.arange(images))


def picture(index, is_right=True, side=32):
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:side, :side]
    centre = rng.integers(8, side - 8, 2)
    region = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= 30
    pixels = rng.integers(60, 200, (side, side, 3))
    pixels[region] = np.where((y + x)[region, None] % 4 < 2, 240, 20)
    blob = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 40).astype(np.float32)
    noise = rng.normal(size=(side, side)).astype(np.float32)
    maps = {
        m.name: (blob if m.name in ("good", "oracle") else noise if m.name == "bad" else abs(noise)) for m in METHODS
    }
    return Picture(
        index, pixels.astype(np.uint8), "dots", "dots" if is_right else "rings", "dots", 0.93, is_right, region, maps
    )


def material(**changes):
    """A whole page's worth."""
    health = [
        MapHealth(m.name, 200, 3 if m.name == "bad" else 0, 0, m.name == "bad", 200, {0.1: 0.0, 0.3: 0.0}, 1.25, 1000)
        for m in METHODS
    ]
    history = {
        "epoch": np.arange(1.0, 6.0),
        "train_accuracy": np.array([0.3, 0.6, 0.8, 0.9, 0.95]),
        "validation_accuracy": np.array([0.35, 0.62, 0.79, 0.88, 0.92]),
    }
    whole = Material(
        title="Planted <test>",
        facts=[("Data", "Planted, 4 classes, 32 × 32"), ("Classifier", "TinyNet, test accuracy 92 %")],
        methods=METHODS,
        retraining=[retraining("roar"), retraining("kar")],
        curves=curves(),
        health=health,
        pictures=[picture(3), picture(8), picture(5, is_right=False)],
        training=Training(history, 5, 0.92, 0.91),
        progress=[Progress("Retraining", "heatproof evaluate-attribution-maps-roar --config c.yml", 51, 51, "cells")],
        costs=[Cost("retrain_cls", 51, 510_000, 512.3, ("laptop",), "2026-01-01T00:00:00Z")],
        provenance=[("weights", "abc123")],
        versions={"heatproof": "0.1.0", "python": "3.11"},
        configuration="seed: 0\n",
        settings=SETTINGS,
    )
    made = replace(whole, **changes)
    if made.curves is None or sections.PERTURBATION in {test.name for test in made.tests}:
        return made
    return replace(made, tests=[perturbation(made.curves), *made.tests])
