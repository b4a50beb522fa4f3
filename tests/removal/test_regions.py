import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from heatproof import removal
from heatproof.errors import InputError
from heatproof.metrics import faithfulness, perturbation
from heatproof.removal import regions
from heatproof.removal.scores import subset_scores


class Linear(nn.Module):
    """Logit 0 is the sum of weight times pixel, so the right map is known; logit 1 is 0. Remembers its rows."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.rows = []

    def forward(self, images):
        self.rows.append(len(images))
        assert not torch.is_grad_enabled()
        score = (images * self.weights).sum(dim=(1, 2, 3))
        return torch.stack((score, torch.zeros_like(score)), dim=1)


def identity(pixels):
    return pixels


def linear(size=(6, 8), images=4, seed=0):
    rng = np.random.default_rng(seed)
    model = Linear(torch.from_numpy(rng.normal(size=(3, *size)).astype(np.float32))).eval()
    pixels = torch.from_numpy(rng.random((images, 3, *size), dtype=np.float32))
    return model, pixels, (pixels * model.weights.detach()).sum(dim=1).numpy()  # the right maps, for a black fill


def scored(model, pixels, subsets, **changes):
    options = {"normalize": identity, "fill": removal.Black(), "rows_per_forward": 16} | changes
    return subset_scores(model, pixels, subsets, np.zeros(len(pixels), np.int64), **options)


# --- squares


@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_squares_cover_the_image_once(height, width, side):
    side = min(side, height, width)
    patches = regions.square_patches((height, width), side)
    numbers, sizes = np.unique(patches, return_counts=True)
    np.testing.assert_array_equal(numbers, np.arange(-(-height // side) * -(-width // side)))
    assert sizes.max() <= side * side
    for number in numbers:
        rows, columns = np.nonzero(patches == number)
        extent = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert extent[0] * extent[1] == (patches == number).sum()
        inside = rows.min() > 0 and columns.min() > 0 and rows.max() < height - 1 and columns.max() < width - 1
        assert not inside or extent == (side, side)


def test_a_grid_that_does_not_fit_reaches_over_both_borders():
    rows = regions.square_patches((32, 32), 5)[:, 16] // 7
    assert np.bincount(rows).tolist() == [4, 5, 5, 5, 5, 5, 3]  # 35 places: one before, two behind


@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 9), st.integers(0, 2**16))
@settings(max_examples=100, deadline=None)
def test_a_fraction_of_the_patches_is_a_cut_between_patches(height, width, side, seed):
    patches = regions.square_patches((height, width), min(side, height, width))
    number = patches.max() + 1
    order = np.random.default_rng(seed).permutation(number)
    ranks = regions.patch_ranks(order[None], patches)
    for step in range(number + 1):
        gone = removal.removed(ranks, step / number, "most")[0]
        np.testing.assert_array_equal(gone, np.isin(patches, order[:step]))
        gone = removal.removed(ranks, step / number, "least")[0]
        np.testing.assert_array_equal(gone, np.isin(patches, order[number - step :]))


def test_the_squares_of_a_right_map_fall_by_what_it_says():
    model, pixels, maps = linear()
    patches = regions.square_patches((6, 8), 2)
    sums = faithfulness.sum_in_patches(maps, patches)
    order = removal.orders(sums)
    fractions = np.arange(1, 13) / 12
    scores = removal.degraded_scores(
        model, pixels, regions.patch_ranks(order, patches), np.zeros(4, np.int64),
        normalize=identity, fractions=fractions, fill=removal.Black(),
    )  # fmt: skip
    fallen = perturbation.drop(scores.logit[:, 0, 0], scores.logit[:, 0, 1:])
    np.testing.assert_allclose(fallen, np.take_along_axis(sums, order, axis=1).cumsum(axis=1), atol=1e-4)
    assert (perturbation.abpc(scores.logit[:, 0], scores.logit[:, 1]) > 0).all()


# --- subsets


def test_steps_are_the_ranks_between_two_cuts():
    ranks = torch.from_numpy(np.random.default_rng(0).permuted(np.tile(np.arange(12), (3, 1)), axis=1)).view(3, 3, 4)
    steps = regions.step_subsets(ranks, [0, 1, 5, 12])
    assert steps.shape == (3, 3, 3, 4)
    assert steps.sum(dim=(2, 3)).tolist() == [[1, 4, 7]] * 3
    assert (steps.sum(dim=1) == 1).all()
    assert (ranks[steps[:, 1]].view(3, 4).sort(dim=1).values == torch.arange(1, 5)).all()


def test_random_subsets_depend_on_seed_purpose_and_image_alone():
    draw = regions.random_subsets
    first = draw(3, "a", 7, pixels=100, number=20, members=10)
    assert (first.sum(axis=1) == 10).all()
    assert len(np.unique(first, axis=0)) == 20
    np.testing.assert_array_equal(first, draw(3, "a", 7, pixels=100, number=20, members=10))
    for other in (draw(4, "a", 7, 100, 20, 10), draw(3, "b", 7, 100, 20, 10), draw(3, "a", 8, 100, 20, 10)):
        assert (first != other).any()
    many = draw(0, "a", 0, pixels=10, number=3000, members=3)
    np.testing.assert_allclose(many.mean(axis=0), 0.3, atol=0.04)  # no pixel is preferred


def test_the_right_map_of_a_linear_classifier_is_perfect():
    model, pixels, maps = linear()
    subsets = np.stack([regions.random_subsets(0, "t", i, 48, 25, 9) for i in range(4)]).reshape(4, 25, 6, 8)
    scores = scored(model, pixels, torch.from_numpy(subsets))
    drops = scores.logit[:, :1] - scores.logit[:, 1:]
    claims = faithfulness.sum_in_subsets(maps, subsets)
    np.testing.assert_allclose(drops, claims, atol=1e-4)
    np.testing.assert_allclose(faithfulness.correlation(claims, drops), 1, atol=1e-6)
    np.testing.assert_allclose(faithfulness.correlation(-claims, drops), -1, atol=1e-6)
    np.testing.assert_allclose(faithfulness.infidelity(claims, drops, scaled=False), 0, atol=1e-8)


FILLS = {
    name: removal.build_fill(name, mean=(0.2, 0.5, 0.7), normalization_mean=(0.4, 0.1, 0.9), seed=3)
    for name in ("mean", "blur", "noise", "noisy_linear", "image_mean")
}


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
@pytest.mark.parametrize("rows", [1, 3, 7, 16, 1000])
def test_every_subset_is_scored_as_alone(fill, rows):
    model, pixels, _ = linear()
    indices = np.array([7, 2, 9, 4])
    subsets = torch.from_numpy(np.random.default_rng(0).random((4, 5, 6, 8)) < 0.4)
    scores = scored(
        model, pixels, subsets, fill=fill, rows_per_forward=rows, indices=indices, normalize=lambda p: 3 * p
    )
    assert max(model.rows) <= rows
    assert sum(model.rows) == 4 * 6
    with torch.no_grad():
        np.testing.assert_allclose(scores.logit[:, 0], model(3 * pixels)[:, 0], rtol=1e-4, atol=1e-4)
        for subset in range(5):
            expected = model(3 * fill(pixels, subsets[:, subset], indices))
            np.testing.assert_allclose(scores.logit[:, 1 + subset], expected[:, 0], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(scores.logit_margin[:, 1 + subset], expected[:, 0], rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(scores.prediction[:, 1 + subset], expected.argmax(dim=1))


@pytest.mark.parametrize("name", ["mean", "noise", "noisy_linear"])
def test_single_channels_of_a_pixel_may_go(name):
    model, pixels, _ = linear()
    fill = FILLS[name]
    subsets = torch.from_numpy(np.random.default_rng(0).random((4, 5, 3, 6, 8)) < 0.4)
    scores = scored(model, pixels, subsets, fill=fill)
    with torch.no_grad():
        expected = model(fill(pixels, subsets[:, 2]))
    np.testing.assert_allclose(scores.logit[:, 3], expected[:, 0], rtol=1e-4, atol=1e-4)


def test_no_image_and_no_subset_give_no_score():
    model, pixels, _ = linear()
    subsets = torch.zeros(4, 5, 6, 8, dtype=torch.bool)
    assert scored(model, pixels[:0], subsets[:0]).logit.shape == (0, 6)
    assert scored(model, pixels, subsets[:, :0]).logit.shape == (4, 1)


# --- messages


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: regions.square_patches((6, 8), 7), "side: 7 must lie between 1 and 6"),
        (lambda: regions.square_patches((6, 8), 0), "side: 0 must lie between"),
        (
            lambda: regions.patch_ranks(np.array([[0, 1]]), np.array([[0, 1, 2]])),
            "orders: 2 patches; the image has 3",
        ),
        (lambda: regions.random_subsets(0, "a", 0, 10, 2, 11), "members: 11 must lie between 1 and 10"),
        (
            lambda: scored(*linear()[:2], torch.zeros(4, 5, 8, 6, dtype=torch.bool)),
            r"subsets: torch.bool of shape \(4, 5, 8, 6\); expected bool, \(N, R, H, W\)",
        ),
        (lambda: scored(*linear()[:2], torch.zeros(4, 5, 6, 8)), "subsets: torch.float32"),
        (lambda: scored(*linear()[:2], torch.zeros(3, 5, 6, 8, dtype=torch.bool)), r"subsets: shape \(3, 5, 6, 8\)"),
        (
            lambda: scored(linear()[0].train(), linear()[1], torch.zeros(4, 1, 6, 8, dtype=torch.bool)),
            "model: is in training mode",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises(InputError, match=message):
        call()
