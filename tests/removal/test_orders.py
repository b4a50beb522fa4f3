import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from heatproof import removal
from heatproof.errors import InputError, MapError
from heatproof.removal import orders as order_function

ENDS = ("most", "least")
# Few different values, so that most maps have ties; both zeros, because they are equal but differ in their bits.
TIED = st.sampled_from([-2.5, -1e-40, -0.0, 0.0, 1e-40, 1.0, 3e38])
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
TIED_MAPS = hnp.arrays(np.float32, SIZES, elements=TIED)
FRACTIONS = st.floats(0, 1)


def by_definition(values, keys):
    """Sorted by (value descending, tie key ascending), one image, in plain Python."""
    return sorted(range(len(values)), key=lambda pixel: (-float(values[pixel]), int(keys[pixel])))


@given(TIED_MAPS, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_an_order_is_sorted_by_value_then_tie_key(maps, seed):
    keys = removal.tie_keys(seed, range(len(maps)), maps[0].size)
    expected = [by_definition(m.ravel(), k) for m, k in zip(maps, keys, strict=True)]
    for dtype in (np.float32, np.float64):  # two algorithms: packed bits, and a stable sort
        np.testing.assert_array_equal(removal.orders(maps.astype(dtype), keys=keys), expected)
    by_index = [by_definition(m.ravel(), range(m.size)) for m in maps]
    np.testing.assert_array_equal(removal.orders(maps, ties="index"), by_index)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int16, np.float16, np.float32, np.int64, np.float64])
def test_every_type_of_map_is_ranked_by_its_values(dtype):
    values = np.array([[[0, 1], [1, 0]]]) if dtype == np.bool_ else np.array([[[3, 7], [7, 0]]])
    expected = [[1, 2, 0, 3]]
    np.testing.assert_array_equal(removal.orders(values.astype(dtype), ties="index"), expected)


def test_wide_types_are_not_rounded_before_they_are_ranked():
    np.testing.assert_array_equal(removal.orders(np.array([[[1.0, 1.0 + 1e-12]]]), ties="index"), [[1, 0]])
    np.testing.assert_array_equal(removal.orders(np.array([[[2**53, 2**53 + 1]]]), ties="index"), [[1, 0]])


def test_large_maps_are_ranked_like_small_ones():
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 50, (2, 300, 300)).astype(np.float32)
    keys = removal.tie_keys(1, [4, 5], 90_000)
    assert keys.dtype == np.uint32
    orders = removal.orders(maps, keys=keys)
    expected = [np.lexsort((key, -m.ravel())) for m, key in zip(maps, keys, strict=True)]
    np.testing.assert_array_equal(orders, expected)
    assert removal.ranks(orders).dtype == np.uint32


def test_65536_pixels_still_fit_16_bits():
    maps = np.random.default_rng(0).integers(-5, 5, (2, 256, 256)).astype(np.float32)
    keys = removal.tie_keys(0, [0, 1], 65_536)
    assert keys.dtype == np.uint16
    orders = removal.orders(maps, keys=keys)
    np.testing.assert_array_equal(orders, removal.orders(maps.astype(np.float64), keys=keys))
    ranks = removal.ranks(orders, (256, 256))
    assert ranks.dtype == np.uint16
    assert removal.removed(ranks, 1.0).all()
    assert not removal.removed(ranks, 0.0, "least").any()


def test_a_tie_key_depends_on_seed_and_index_alone():
    together = removal.tie_keys(3, [5, 9, 5], 64)
    np.testing.assert_array_equal(together[1], removal.tie_keys(3, [9], 64)[0])
    np.testing.assert_array_equal(together[0], together[2])
    assert (together[0] != together[1]).any()
    assert (together[0] != removal.tie_keys(4, [5], 64)[0]).any()


def test_without_keys_a_batch_is_ordered_like_its_images():
    maps = np.zeros((3, 4, 4))
    np.testing.assert_array_equal(removal.orders(maps), np.repeat(removal.orders(maps[:1]), 3, axis=0))
    np.testing.assert_array_equal(removal.orders(maps)[0], np.argsort(removal.tie_keys(0, [0], 16)[0]))


def test_a_constant_map_gets_its_tie_keys_order():
    keys = removal.tie_keys(0, [1], 36)
    np.testing.assert_array_equal(removal.ranks(removal.orders(np.full((1, 6, 6), 0.3), keys=keys)), keys)


def test_many_images_are_sorted_in_blocks_without_a_seam():
    maps = np.random.default_rng(0).normal(size=(3000, 20, 20)).astype(np.float32)
    expected = np.argsort(-maps.reshape(3000, 400), axis=1, kind="stable")
    np.testing.assert_array_equal(removal.orders(maps, ties="index"), expected)
    keys = removal.tie_keys(0, np.arange(3000), 400)
    np.testing.assert_array_equal(removal.orders(np.zeros_like(maps), keys=keys), np.argsort(keys, axis=1))


def test_the_functions_module_is_still_found_by_its_path():
    # The package has a function of the module's name.
    assert removal.orders is order_function
    from heatproof.removal.orders import ranks

    assert removal.ranks is ranks


@given(TIED_MAPS)
@settings(max_examples=30, deadline=None)
def test_ranks_say_where_each_pixel_stands_in_the_order(maps):
    orders = removal.orders(maps)
    ranks = removal.ranks(orders, maps.shape[1:])
    assert ranks.shape == maps.shape
    places = np.broadcast_to(np.arange(orders.shape[1]), orders.shape)
    np.testing.assert_array_equal(np.take_along_axis(ranks.reshape(orders.shape), orders, axis=1), places)


@given(TIED_MAPS, FRACTIONS, st.sampled_from(ENDS))
@settings(max_examples=60, deadline=None)
def test_arrays_and_tensors_orders_and_ranks_remove_the_same(maps, fraction, first):
    orders = removal.orders(maps)
    ranks = removal.ranks(orders, maps.shape[1:])
    expected = removal.removed(ranks, fraction, first)
    assert (expected.sum(axis=(1, 2)) == removal.count(fraction, maps[0].size)).all()
    flat = expected.reshape(orders.shape)
    np.testing.assert_array_equal(removal.removed(orders, fraction, first), flat)
    np.testing.assert_array_equal(removal.removed(removal.ranks(orders), fraction, first), flat)
    np.testing.assert_array_equal(removal.removed(torch.from_numpy(orders), fraction, first), flat)
    for tensor in (removal.rank_tensor(ranks), torch.from_numpy(ranks), torch.from_numpy(ranks.astype(np.int64))):
        result = removal.removed(tensor, fraction, first)
        assert isinstance(result, torch.Tensor)
        np.testing.assert_array_equal(result, expected)


@given(TIED_MAPS, FRACTIONS, FRACTIONS, st.sampled_from(ENDS))
@settings(max_examples=60, deadline=None)
def test_masks_are_nested(maps, one, other, first):
    ranks = removal.ranks(removal.orders(maps), maps.shape[1:])
    smaller, larger = (removal.removed(ranks, fraction, first) for fraction in sorted((one, other)))
    assert not (smaller & ~larger).any()


@given(TIED_MAPS, st.integers(0, 25))
@settings(max_examples=60, deadline=None)
def test_what_one_end_keeps_the_other_removes(maps, number):
    pixels = maps[0].size
    number = min(number, pixels)
    ranks = removal.ranks(removal.orders(maps), maps.shape[1:])
    kept = ~removal.removed(ranks, number / pixels, "most")
    np.testing.assert_array_equal(kept, removal.removed(ranks, (pixels - number) / pixels, "least"))


@given(st.integers(2, 40), st.integers(0, 999), FRACTIONS)
@settings(max_examples=40, deadline=None)
def test_lerf_on_a_map_without_ties_is_morf_on_its_negative(pixels, seed, fraction):
    maps = np.random.default_rng(seed).permutation(pixels).astype(np.float32)[None, None] - 7
    ranks, negative = (removal.ranks(removal.orders(m), (1, pixels)) for m in (maps, -maps))
    np.testing.assert_array_equal(removal.removed(ranks, fraction, "least"), removal.removed(negative, fraction))
    np.testing.assert_array_equal(removal.inverse(ranks), negative)
    np.testing.assert_array_equal(removal.inverse(removal.rank_tensor(ranks)), negative)


@given(TIED_MAPS, st.sampled_from([0.125, 3.0, 1e-3]))
@settings(max_examples=30, deadline=None)
def test_only_the_order_of_values_counts(maps, factor):
    doubled = maps.astype(np.float64)
    expected = removal.orders(doubled)
    np.testing.assert_array_equal(removal.orders(doubled * factor), expected)
    np.testing.assert_array_equal(removal.orders(np.cbrt(doubled)), expected)  # rising and odd, not linear


@pytest.mark.parametrize(
    ("fraction", "pixels", "number"),
    [(0, 1024, 0), (1, 1024, 1024), (0.1, 6, 0), (0.29, 100, 29), (0.57, 100, 57), (1 / 3, 3, 1), (0.999, 1000, 999)],
)
def test_counts_do_not_lose_a_pixel_to_rounding(fraction, pixels, number):
    assert removal.count(fraction, pixels) == number


def test_every_whole_number_of_pixels_is_reached():
    for pixels in (7, 96, 1024, 50_176):
        numbers = np.unique(np.linspace(0, pixels, 97).astype(int)).tolist()
        assert [removal.count(number / pixels, pixels) for number in numbers] == numbers


@pytest.mark.parametrize("ranks", [np.arange(4, dtype=np.uint16).reshape(1, 2, 2), np.array([[0, 1, 2, 3]])])
def test_removing_nothing_removes_nothing(ranks):
    # The ROAR code slices with a negative zero there and removes everything.
    for first in ENDS:
        assert not removal.removed(ranks, 0.2, first).any()
        assert removal.removed(ranks, 1.0, first).all()


def test_ranks_of_a_split_stay_small_on_the_device():
    assert removal.rank_tensor(np.zeros((2, 32, 32), np.uint16)).dtype == torch.int16
    assert removal.rank_tensor(np.zeros((1, 181, 181), np.uint16)).dtype == torch.int16
    large = removal.rank_tensor(np.full((1, 224, 224), 50_175, np.uint16))
    assert large.dtype == torch.int32
    assert int(large.max()) == 50_175


def test_tied_share_counts_the_pixels_between_which_the_map_does_not_decide():
    maps = np.array([[[9.0, 5.0, 5.0, 5.0, 1.0]], [[1.0, 2.0, 3.0, 4.0, 5.0]], [[0.0, -0.0, 0.0, 0.0, 0.0]]])
    cuts = {0.0: [0, 0, 0], 0.2: [0, 0, 1], 0.4: [0.6, 0, 1], 0.6: [0.6, 0, 1], 0.8: [0, 0, 1], 1.0: [0, 0, 0]}
    for fraction, shares in cuts.items():
        np.testing.assert_allclose(removal.tied_share(maps, fraction), shares)
    np.testing.assert_allclose(removal.tied_share(maps, 0.2, "least"), [0, 0, 1])
    np.testing.assert_allclose(removal.tied_share(maps, 0.4, "least"), [0.6, 0, 1])
    maps[1, 0, 0] = np.nan
    np.testing.assert_allclose(removal.tied_share(maps, 0.4), [0.6, np.nan, 1])


def test_tied_cuts_are_those_of_the_golden_maps(golden):
    data = golden("lerf_morf")
    for method, maps in enumerate(data["maps"]):
        for step, percentile in enumerate(data["percentiles"]):
            for first, name in (("most", "cut_is_tied_top"), ("least", "cut_is_tied_bottom")):
                tied = removal.tied_share(maps, percentile / 100, first) > 0
                np.testing.assert_array_equal(tied, data[name][method, :, step])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_invalid_map_is_named(value):
    maps = np.zeros((3, 4, 5), dtype=np.float32)
    maps[2, 1, 3] = value
    with pytest.raises(MapError, match=rf"maps\[2\]: {value} at pixel \(1, 3\)"):
        removal.orders(maps)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: removal.orders(np.zeros(4)), r"maps: shape \(4,\); expected \(N, H, W\)"),
        (lambda: removal.orders(np.zeros((2, 0, 3))), "at least one pixel"),
        (lambda: removal.orders(np.zeros((1, 2), complex)), "complex128; expected real numbers"),
        (lambda: removal.orders(np.zeros((1, 2)), "indx"), "ties: 'indx'; did you mean 'index'"),
        (lambda: removal.orders(np.zeros((1, 2)), "index", np.zeros((1, 2), int)), "keys: given, but"),
        (lambda: removal.orders(np.zeros((2, 2)), keys=np.zeros((1, 2), int)), r"keys: shape \(1, 2\)"),
        (lambda: removal.orders(np.zeros((1, 2)), keys=np.array([[1, 2]])), "expected permutations of 0 to 1"),
        (lambda: removal.ranks(np.array([[0, 1]]), (2, 2)), r"size: \(2, 2\) has 4 pixels; the orders have 2"),
        (lambda: removal.removed(np.array([[0, 1]]), 30), "fraction: 30 must lie between 0 and 1"),
        (lambda: removal.removed(np.array([[0, 1]]), 0.5, "last"), "first: 'last'; did you mean 'least'"),
    ],
)
def test_messages(call, message):
    with pytest.raises(InputError, match=message):
        call()
