"""Maps derived from stored maps: known truths on a small file."""

import numpy as np
import pytest

from heatproof import config, removal, store
from heatproof.errors import MapError
from heatproof.methods.explainer import Explainer
from heatproof.stages import extract, twins

SIZE = (6, 5)
INVALID = (3, 11)


def drawn(count, seed=0):
    # Rounded, so that there are ties.
    return np.random.default_rng(seed).normal(size=(count, *SIZE)).round(1).astype(np.float32)


def written(path, maps, invalid=INVALID, index=None, rows_per_block=4, **options):
    count = len(maps)
    index = np.arange(count) if index is None else np.asarray(index)
    skipped = np.isin(np.arange(count), invalid)
    ranks = removal.ranks(removal.orders(maps, keys=removal.tie_keys(0, index, maps[0].size)), size=SIZE)
    writer = store.MapWriter(
        path, rows=count, size=SIZE, classes=2, origin={}, method="m", split="test", dtype="float32",
        rows_per_block=rows_per_block, **options,
    )  # fmt: skip
    everything = {
        "maps": maps,
        "ranks": ranks,
        "index": index,
        "label": index % 2,
        "target": index % 2,
        "prediction": index % 2,
        "logits": np.zeros((count, 2)),
        "invalid": skipped,
    }
    for block in writer.missing():
        writer.write(block, **{name: values[block.start : block.stop] for name, values in everything.items()})
    return store.MapReader(writer.finish())


@pytest.fixture
def source(tmp_path):
    return written(tmp_path / "test.h5", drawn(20))


def test_the_average_is_that_of_all_other_valid_maps(source):
    found = twins.Twin("average", source).maps(np.arange(20))
    valid = [row for row in range(20) if row not in INVALID]
    for row in valid:
        others = [other for other in valid if other != row]
        np.testing.assert_allclose(found[row], drawn(20)[others].astype(np.float64).mean(axis=0), rtol=1e-6, atol=1e-7)
    assert np.isnan(found[list(INVALID)]).all()


def test_the_average_does_not_move_with_the_images_own_map(tmp_path):
    changed = drawn(20)
    changed[7] *= -100
    before, after = (
        twins.Twin("average", written(tmp_path / name, maps)).maps(np.array([7, 8]))
        for name, maps in (("a.h5", drawn(20)), ("b.h5", changed))
    )
    np.testing.assert_allclose(after[0], before[0], rtol=1e-6, atol=1e-7)
    assert not np.allclose(after[1], before[1])


def test_the_average_of_a_file_of_two_is_the_other_one(tmp_path):
    reader = written(tmp_path / "two.h5", drawn(2), invalid=())
    np.testing.assert_allclose(twins.Twin("average", reader).maps(np.array([1, 0])), drawn(2), rtol=1e-6)


def test_the_average_of_a_single_valid_map_is_refused(tmp_path):
    reader = written(tmp_path / "one.h5", drawn(2), invalid=(0,))
    with pytest.raises(MapError, match="1 valid maps; the average of all others needs two"):
        twins.Twin("average", reader).maps(np.array([1]))


def test_the_inverse_removes_last_what_the_source_removes_first(source):
    rows = np.array([5, 0, 3, 19])
    twin = twins.Twin("inverse", source)
    np.testing.assert_array_equal(twin.maps(rows)[[0, 1, 3]], -source.maps(rows)[[0, 1, 3]])
    ranks = twin.ranks(rows)
    valid = [0, 1, 3]
    np.testing.assert_array_equal(ranks[valid] + source.ranks(rows)[valid], SIZE[0] * SIZE[1] - 1)
    for fraction in (0.1, 0.5):
        np.testing.assert_array_equal(
            removal.removed(ranks[valid], fraction, "most"),
            removal.removed(source.ranks(rows)[valid].astype(np.int64), fraction, "least"),
        )


def test_a_single_pixel_becomes_a_gaussian_or_a_square(tmp_path):
    maps = np.zeros((2, *SIZE), dtype=np.float32)
    maps[0, 2, 2] = 1
    reader = written(tmp_path / "one.h5", maps, invalid=())
    blurred, widest = (twins.Twin(kind, reader).maps(np.array([0]))[0] for kind in ("blurred", "max3"))
    # Known truth: exp(-d^2 / 2), normalised over the plane; the edge repeated changes little two pixels away.
    np.testing.assert_allclose(blurred[2, 2], 1 / np.exp(-(np.arange(-4, 5) ** 2) / 2).sum() ** 2, rtol=1e-5)
    np.testing.assert_allclose(blurred[2, 3] / blurred[2, 2], np.exp(-0.5), rtol=2e-2)
    expected = np.zeros(SIZE)
    expected[1:4, 1:4] = 1
    np.testing.assert_array_equal(widest, expected)


@pytest.mark.parametrize("kind", ["blurred", "max3", "inverse"])
def test_a_plateau_stays_a_plateau(tmp_path, kind):
    maps = np.full((2, *SIZE), 0.3, dtype=np.float32)
    found = twins.Twin(kind, written(tmp_path / "flat.h5", maps, invalid=())).maps(np.arange(2))
    assert len(np.unique(found)) == 1


@pytest.mark.parametrize("kind", ["blurred", "max3", "inverse", "average"])
def test_rows_are_derived_alone_and_in_any_order(source, kind):
    twin = twins.Twin(kind, source)
    rows = np.random.default_rng(1).permutation(20)
    together = twin.maps(rows)
    alone = np.concatenate([twins.Twin(kind, source).maps(rows[i : i + 1]) for i in range(20)])
    np.testing.assert_array_equal(together, alone)


def test_rows_of_a_sample_are_found_by_index(tmp_path):
    reader = written(tmp_path / "sample.h5", drawn(4), invalid=(), index=[30, 4, 17, 8])
    np.testing.assert_array_equal(reader.rows_of(np.array([8, 30])), [3, 0])
    with pytest.raises(MapError, match="holds no map of image 9"):
        reader.rows_of(np.array([8, 9]))
    with pytest.raises(MapError, match="holds no map of image 99"):
        reader.rows_of(np.array([99]))


def test_twins_stand_behind_the_methods_and_controls_have_none():
    section = config.ExtractCams.model_validate(
        {
            "model": {"arch": "x"},
            "controls": ["random"],
            "twins": ["blurred", "inverse"],
            "attribution_methods": [
                {"name": "grad", "method": "a.b", "kwargs": {"k": 1}, "channel_reduction": "sum"},
                {"name": "base", "method": "a.c", "control": True},
            ],
        }
    )
    listed = section.methods()
    assert [m.name for m in listed] == ["grad", "base", "random", "grad+blurred", "grad+inverse"]
    assert [m.control for m in listed] == [False, True, True, True, True]
    source = twins.source_of(extract.explainer(listed[3]))
    assert source == Explainer("grad", "a.b", {"k": 1}, "sum", "error")
