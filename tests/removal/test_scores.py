import numpy as np
import pytest
import torch
from torch import nn

from heatproof import removal
from heatproof.errors import InputError
from heatproof.metrics import perturbation
from heatproof.removal import degraded_scores

FRACTIONS = (0.25, 0.5, 1.0)


class Colours(nn.Module):
    """Logit k is the mean of colour channel k; remembers how many rows each forward pass had."""

    def __init__(self):
        super().__init__()
        self.rows = []
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        self.rows.append(len(images))
        assert not torch.is_grad_enabled()
        return self.scale * images.mean(dim=(2, 3))


def identity(pixels):
    return pixels


def planted(images=5, size=(4, 6), seed=0):
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.random((images, 3, *size), dtype=np.float32))
    ranks = removal.ranks(removal.orders(rng.normal(size=(images, *size))), size)
    return pixels, ranks, rng.integers(0, 3, images)


def scored(pixels, ranks, targets, model=None, **changes):
    options = {"normalize": identity, "fractions": FRACTIONS, "fill": removal.Black(), "rows_per_forward": 16} | changes
    return degraded_scores(model or Colours().eval(), pixels, ranks, targets, **options)


def test_scores_are_those_of_images_degraded_one_by_one():
    pixels, ranks, targets = planted()
    fill = removal.Mean((0.1, 0.9, 0.4))
    scores = scored(pixels, ranks, targets, fill=fill, normalize=lambda p: (p - 0.3) / 0.2)
    assert scores.firsts == ("most", "least")
    np.testing.assert_array_equal(scores.fractions, [0, *FRACTIONS])
    for image, target in enumerate(targets):
        for end, first in enumerate(scores.firsts):
            for step, fraction in enumerate(scores.fractions):
                gone = torch.from_numpy(removal.removed(ranks[image : image + 1], float(fraction), first))
                logits = ((fill(pixels[image : image + 1], gone) - 0.3) / 0.2).mean(dim=(0, 2, 3)).double()
                place = image, end, step
                others = np.delete(logits.numpy(), target)
                np.testing.assert_allclose(scores.logit[place], logits[target], rtol=1e-5)
                np.testing.assert_allclose(scores.probability[place], logits.softmax(0)[target], rtol=1e-5)
                np.testing.assert_allclose(scores.logit_margin[place], logits[target] - others.max(), atol=1e-5)
                assert scores.prediction[place] == logits.argmax()


FILLS = {
    name: removal.build_fill(name, mean=(0.2, 0.5, 0.7), normalization_mean=(0.4, 0.1, 0.9), seed=3)
    for name in removal.FILLS
}


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
def test_every_fill_serves_the_stream_as_it_does_alone(fill):
    pixels, ranks, targets = planted()
    indices = np.array([7, 2, 9, 4, 4])
    scores = scored(pixels, ranks, targets, fill=fill, normalize=lambda p: p * 3 - 1, indices=indices)
    for end, first in enumerate(("most", "least")):
        for step, fraction in enumerate((0.0, *FRACTIONS)):
            gone = torch.from_numpy(removal.removed(ranks, fraction, first))
            logits = (fill(pixels, gone, indices) * 3 - 1).mean(dim=(2, 3))
            expected = logits[range(5), targets]
            np.testing.assert_allclose(scores.logit[:, end, step], expected, atol=1e-5)


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
@pytest.mark.parametrize("rows", [1, 3, 6, 7, 8, 20, 1000])
def test_no_score_depends_on_rows_per_forward(fill, rows):
    pixels, ranks, targets = planted()
    model = Colours().eval()
    indices = np.arange(5)
    expected = scored(pixels, ranks, targets, fill=fill, indices=indices)
    scores = scored(pixels, ranks, targets, model, fill=fill, indices=indices, rows_per_forward=rows)
    for name in ("logit", "probability", "logit_margin"):
        np.testing.assert_allclose(getattr(scores, name), getattr(expected, name), rtol=1e-6, atol=1e-6)
    assert max(model.rows) <= rows
    assert sum(model.rows) == 5 * (1 + 2 * len(FRACTIONS))  # the untouched image is scored once


def test_a_row_asked_for_alone_is_the_same_row():
    pixels, ranks, targets = planted(images=6)
    together = scored(pixels, ranks, targets)
    for image in range(6):
        alone = scored(pixels[image : image + 1], ranks[image : image + 1], targets[image : image + 1])
        np.testing.assert_allclose(alone.logit[0], together.logit[image], rtol=1e-6)


def test_one_end_and_one_fraction_can_be_asked_for():
    pixels, ranks, targets = planted()
    both = scored(pixels, ranks, targets)
    least = scored(pixels, ranks, targets, firsts=("least",), fractions=(0.0, 0.5))
    np.testing.assert_array_equal(least.fractions, [0, 0.5])
    np.testing.assert_allclose(least.logit[:, 0], both.logit[:, 1, [0, 2]], rtol=1e-6)


def test_bytes_and_every_form_of_ranks_are_taken():
    pixels, ranks, targets = planted()
    stored = (pixels * 255).round().to(torch.uint8)
    expected = scored(stored.float() / 255, ranks, targets).logit
    forms = (ranks, torch.from_numpy(ranks), removal.rank_tensor(ranks), torch.from_numpy(ranks.astype(np.int64)))
    for form in forms:
        np.testing.assert_array_equal(scored(stored, form, torch.from_numpy(targets)).logit, expected)


def test_model_and_inputs_are_left_as_they_were():
    pixels, ranks, targets = planted()
    before = pixels.clone(), ranks.copy()
    model = Colours().eval()
    scored(pixels, ranks, targets, model)
    assert torch.equal(pixels, before[0])
    np.testing.assert_array_equal(ranks, before[1])
    assert model.scale.requires_grad
    assert model.scale.grad is None
    assert torch.is_grad_enabled()


def test_no_image_gives_no_score():
    pixels, ranks, targets = planted()
    assert scored(pixels[:0], ranks[:0], targets[:0]).logit.shape == (0, 2, 4)


def test_accuracy_compares_with_the_class_asked_about():
    pixels, ranks, targets = planted()
    scores = scored(pixels, ranks, targets, fractions=(0.25, 0.5))
    won = scores.logit_margin > 0
    assert 0 < won.sum() < won.size
    np.testing.assert_array_equal(scores.accuracy(targets), won)
    np.testing.assert_array_equal(scores.accuracy(scores.prediction[:, 0, 0])[:, :, 0], 1)


def test_the_right_map_falls_first_and_stays_longest():
    # The class is a patch's colour: the map of the patch must beat a random one in both orders.
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 30)
    pixels = torch.from_numpy(rng.random((30, 3, 8, 8), dtype=np.float32) * 0.1)
    patch = np.zeros((30, 8, 8))
    for image, target in enumerate(targets):
        y, x = rng.integers(0, 6, 2)
        pixels[image, target, y : y + 3, x : x + 3] = 1
        patch[image, y : y + 3, x : x + 3] = 1
    keys = removal.tie_keys(0, range(30), 64)
    curves = {}
    for name, maps in {"right": patch, "random": rng.random(patch.shape), "wrong": -patch}.items():
        ranks = removal.ranks(removal.orders(maps, keys=keys), (8, 8))
        scores = scored(pixels, ranks, targets, normalize=lambda p: p * 50)
        curves[name] = perturbation.abpc(scores.probability[:, 0], scores.probability[:, 1])
    assert curves["right"].min() > 0.1
    assert abs(curves["random"].mean()) < 0.05
    np.testing.assert_allclose(curves["wrong"].mean(), -curves["right"].mean(), rtol=0.05)


# --- the ROAR code's LeRF and MoRF, on the golden network


def tinycnn_scores(golden, tinycnn, ties, rows):
    model, network = tinycnn
    data = golden("lerf_morf")
    mean, std = (torch.from_numpy(network[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    fill = removal.ZeroNormalised(tuple(network["mean"].tolist()))
    for maps in data["maps"]:
        ranks = removal.ranks(removal.orders(maps, ties=ties), (32, 32))
        yield degraded_scores(
            model,
            torch.from_numpy(network["x_uint8"]),
            ranks,
            network["pred"],
            normalize=lambda pixels: (pixels - mean) / std,
            fractions=data["percentiles"] / 100,
            fill=fill,
            rows_per_forward=rows,
        )


@pytest.mark.parametrize("ties", ["index", "random"])
def test_deviation_is_the_roar_codes(golden, tinycnn, ties):
    data = golden("lerf_morf")
    tied = np.stack([data["cut_is_tied_top"], data["cut_is_tied_bottom"]], axis=-1)  # method, image, percentile, end
    for method, scores in enumerate(tinycnn_scores(golden, tinycnn, ties, 64)):
        intact = scores.probability[:, 0, 0]
        np.testing.assert_allclose(intact, tinycnn[1]["probs"].max(axis=1), atol=1e-6)
        percent = perturbation.deviation(intact, scores.probability)[:, :, 1:].transpose(0, 2, 1)
        # At tied cuts the reference's figure hangs on its unstable sort.
        counted = ~tied[method]
        assert counted.mean() > 0.3
        reference = data["deviation_per_image_percent"][:, method]
        np.testing.assert_allclose(percent[counted], reference[counted], atol=0.01)
        if counted.all():
            np.testing.assert_allclose(percent.mean(axis=0), data["deviation_mean_percent"][method], atol=0.01)
    assert not tied[:2].any()


def test_images_after_removal_are_the_roar_codes(golden, tinycnn):
    data = golden("lerf_morf")
    ranks = removal.ranks(removal.orders(data["maps"][0][:1]), (32, 32))
    image = tinycnn[1]["x"][0]
    for step, (percentile, number) in enumerate(zip(data["percentiles"], data["count_removed"], strict=True)):
        assert removal.count(percentile / 100, 1024) == number
        for first, end in (("most", "top"), ("least", "bottom")):
            degraded = np.where(removal.removed(ranks, percentile / 100, first), 0, image)
            np.testing.assert_array_equal(degraded, data[f"removed_{end}_image0"][step])


@pytest.mark.parametrize("rows", [5, 21, 1000])
def test_the_networks_scores_do_not_depend_on_rows_per_forward(golden, tinycnn, rows):
    expected = tinycnn_scores(golden, tinycnn, "index", 64)
    for scores, wanted in zip(tinycnn_scores(golden, tinycnn, "index", rows), expected, strict=True):
        # Relative to the logits' size: where a logit is near 0, rounding of its summands is all there is.
        np.testing.assert_allclose(scores.logit, wanted.logit, rtol=0, atol=1e-6 * np.abs(wanted.logit).max())
        np.testing.assert_allclose(scores.probability, wanted.probability, atol=2e-6)


# --- messages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fractions": (0.5, 0.25)}, r"fractions: \[0.5, 0.25\] must grow"),
        ({"fractions": (10, 30)}, "from 0 to 1 at most"),
        ({"fractions": (-0.1,)}, "must grow"),
        ({"firsts": ("most", "lest")}, "firsts: 'lest'; did you mean 'least'"),
        ({"rows_per_forward": 0}, "rows_per_forward: 0 must be at least 1"),
        ({"indices": np.arange(3)}, r"indices: shape \(3,\)"),
        ({"model": Colours().train()}, "model: is in training mode"),
        ({"model": nn.Identity().eval()}, r"model: returned shape \(14, 3, 4, 6\) for 14 images"),
        ({"targets": np.full(5, 3)}, "targets: from 3 to 3; the model has 3 classes"),
        ({"ranks": np.zeros((5, 6, 4), np.uint16)}, r"ranks: shape \(5, 6, 4\)"),
    ],
)
def test_messages(changes, message):
    pixels, ranks, targets = planted()
    arguments = {"pixels": pixels, "ranks": ranks, "targets": targets} | changes
    with pytest.raises(InputError, match=message):
        scored(**arguments)


class ByFraction:
    """In the place of a fill: one for each removal, which must be asked for this removal only."""

    def __init__(self, pixels):
        self.pixels = pixels

    def at(self, fraction, first):
        colour = (fraction, fraction / 2, 1.0 if first == "most" else 0.0)

        def fill(pixels, removed, indices=None):
            assert (removed.flatten(1).sum(1) == removal.count(fraction, self.pixels)).all()
            return removal.Mean(colour)(pixels, removed)

        return fill


@pytest.mark.parametrize("rows_per_forward", [2, 3, 64])
def test_each_removal_may_have_a_fill_of_its_own(rows_per_forward):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 5 * 6, 4)).eval()
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.random((5, 3, 5, 6), dtype=np.float32))
    ranks = removal.ranks(removal.orders(rng.random((5, 5, 6)), ties="index"), size=(5, 6))
    targets = np.arange(5) % 4
    common = {"normalize": lambda x: x - 0.5, "rows_per_forward": rows_per_forward}
    found = removal.degraded_scores(
        model, pixels, ranks, targets, fractions=(0.1, 0.5, 0.9), fill=ByFraction(30), **common
    )
    for place, first in enumerate(("most", "least")):
        for step, fraction in enumerate((0.1, 0.5, 0.9), 1):
            fill = removal.Mean((fraction, fraction / 2, 1.0 if first == "most" else 0.0))
            alone = removal.degraded_scores(
                model, pixels, ranks, targets, fractions=(fraction,), fill=fill, firsts=(first,), **common
            )
            np.testing.assert_allclose(found.logit[:, place, step], alone.logit[:, 0, 1], rtol=1e-5)
            np.testing.assert_allclose(found.logit[:, place, 0], alone.logit[:, 0, 0], rtol=1e-5)
