"""Format 1: what stands in an attribution file, seen with plain h5py."""

import json
import zlib
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.errors import InputError, MapError
from heatproof.store import CONSTANT, INVALID, MapReader, rows_per_shard


def test_a_finished_file_is_the_contracts_table(sample, tmp_path):
    path = sample.write(tmp_path / "test.h5")
    expected = {
        "map": ("<f2", (50, 8, 6)),
        "scale": ("<f4", (50,)),
        "rank": ("<u2", (50, 8, 6)),
        "index": ("<i8", (50,)),
        "label": ("<i8", (50,)),
        "target": ("<i8", (50,)),
        "prediction": ("<i8", (50,)),
        "logits": ("<f4", (50, 4)),
        "flag": ("|u1", (50,)),
        "crc": ("<u4", (50, 2)),
    }
    with h5py.File(path, "r") as file:
        assert {name: (file[name].dtype.str, file[name].shape) for name in file} == expected
        assert all(file[name].chunks is None and file[name].compression is None for name in file)
        assert file.attrs["format"] == "heatproof/attribution"
        assert file.attrs["format_version"] == 1
        assert json.loads(file.attrs["origin"])["method"]["name"] == "gradcam"
        assert (file.attrs["method"], file.attrs["split"]) == ("gradcam", "test")
        assert file.attrs["complete"].dtype == bool
        assert file.attrs["complete"]
        assert file.attrs["rows_done"] == 50
        for name in ("rank", "index", "label", "target", "prediction", "logits"):
            np.testing.assert_array_equal(file[name][...], getattr(sample, "ranks" if name == "rank" else name))
        attribution = file["map"][...].astype(np.float32) * file["scale"][...][:, None, None]
        crc = [[zlib.crc32(file[name][row].tobytes()) for name in ("map", "rank")] for row in range(50)]
        np.testing.assert_array_equal(file["crc"][...], crc)
    largest = np.abs(sample.maps).max(axis=(1, 2), keepdims=True)
    assert (np.abs(attribution - sample.maps) / largest).max() < 2.0**-11


def test_float16_keeps_maps_that_it_could_not_hold_unscaled(sample, tmp_path):
    # Gradients of a saturated softmax are 1e-6 of their natural size, and smaller: as plain float16 they are zero.
    maps = sample.maps / np.abs(sample.maps).max(axis=(1, 2), keepdims=True)
    tiny, large = replace(sample, maps=maps * np.float32(1e-30)), replace(sample, maps=maps * np.float32(3e38))
    assert not tiny.maps.astype(np.float16).any()
    for number, scaled in enumerate((tiny, large)):
        stored = MapReader(scaled.write(tmp_path / f"{number}.h5")).maps()
        np.testing.assert_allclose(stored, scaled.maps, rtol=2.0**-11, atol=float(np.abs(scaled.maps).max()) * 2.0**-24)
        distinct = [len(np.unique(m)) for m in stored]
        assert min(distinct) > 40  # of 48


def test_a_subnormal_map_does_not_become_nan(sample, tmp_path):
    maps = np.full_like(sample.maps, 1e-45)
    maps[:, 0, 0] = -3e-45
    stored = MapReader(replace(sample, maps=maps).write(tmp_path / "test.h5")).maps()
    np.testing.assert_array_equal(stored[:, 0, 0], np.float32(-3e-45))
    assert np.isfinite(stored).all()


def test_a_float32_file_holds_the_maps_bit_by_bit(sample, tmp_path):
    reader = MapReader(sample.write(tmp_path / "test.h5", dtype="float32"))
    np.testing.assert_array_equal(reader.maps(), sample.maps)
    np.testing.assert_array_equal(reader.read("map"), sample.maps)
    np.testing.assert_array_equal(reader.scales, 1.0)


def test_constant_maps_are_flagged_and_a_zero_map_has_scale_one(sample, tmp_path):
    maps = sample.maps.copy()
    maps[3], maps[7] = 0.0, -2.5
    reader = MapReader(replace(sample, maps=maps).write(tmp_path / "test.h5"))
    np.testing.assert_array_equal(np.flatnonzero(reader.flags), [3, 7])
    assert reader.flags[3] == reader.flags[7] == CONSTANT
    assert (reader.scales[3], reader.scales[7]) == (1.0, 2.5)
    np.testing.assert_array_equal(reader.maps([3, 7]), maps[[3, 7]])


def test_an_invalid_map_is_kept_as_nan_and_flagged(sample, tmp_path):
    maps = sample.maps.copy()
    maps[5, 0, 0], maps[6] = np.inf, 1.0
    writer = sample.writer(tmp_path / "test.h5", rows_per_block=50)
    (block,) = writer.missing()
    ranks = sample.ranks.copy()
    ranks[5] = -1  # nobody can rank an invalid map
    rows = replace(sample, maps=maps, ranks=ranks).rows(block)
    writer.write(block, **rows, invalid=np.arange(50) == 5)
    reader = MapReader(writer.finish())
    assert np.isnan(reader.maps([5])).all()
    assert (reader.ranks([5]) == 65535).all()
    assert (reader.flags[5], reader.flags[6], reader.scales[5]) == (INVALID, CONSTANT, 1.0)
    np.testing.assert_array_equal(np.flatnonzero(reader.invalid), [5])
    reader.verify()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_with_nan_or_infinity_is_refused_by_image(sample, tmp_path, value):
    maps = sample.maps.copy()
    maps[17, 2, 3] = value
    with pytest.raises(MapError, match=rf"test\.h5: the map of image {sample.index[17]} has NaN .*on_invalid: skip"):
        replace(sample, maps=maps).write(tmp_path / "test.h5")


@pytest.mark.parametrize("wrong", [0, 48, -1])
def test_ranks_that_are_no_permutation_are_refused_by_image(sample, tmp_path, wrong):
    ranks = sample.ranks.copy()
    ranks[17][ranks[17] == 9] = wrong
    with pytest.raises(MapError, match=rf"ranks of image {sample.index[17]} are no permutation of 0 to 47"):
        replace(sample, ranks=ranks).write(tmp_path / "test.h5")


def test_ranks_of_exactly_65536_pixels_fit_uint16_and_more_need_uint32(drawn, tmp_path):
    for width, dtype in ((256, np.uint16), (257, np.uint32)):
        large = drawn(rows=2, size=(256, width))
        reader = MapReader(large.write(tmp_path / f"{width}.h5"))
        assert reader.ranks().dtype == dtype
        np.testing.assert_array_equal(reader.ranks(), large.ranks)


def test_wrong_shapes_and_types_are_named(sample, tmp_path):
    writer = sample.writer(tmp_path / "test.h5")
    block = writer.blocks[0]
    rows = sample.rows(block)
    wrong = {
        "maps": rows["maps"][:, :4],
        "ranks": rows["ranks"].astype(np.float32),
        "index": rows["index"][:-1],
        "label": rows["label"] + 0.5,
        "logits": rows["logits"][:, :3],
    }
    for name, array in wrong.items():
        with pytest.raises(InputError, match=name):
            writer.write(block, **(rows | {name: array}))
    assert not writer.path.exists()


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (64, 64), (224, 224), (384, 384), (512, 700)])
def test_a_shard_holds_8_to_32_megabytes_of_float16(size):
    megabytes = rows_per_shard(size) * size[0] * size[1] * 2 / 2**20
    assert 8 <= megabytes < 32


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.integers(0, 49), max_size=80))
def test_any_rows_in_any_order_come_back(readers, sample, rows):
    for reader in readers.values():
        np.testing.assert_array_equal(reader.ranks(rows), sample.ranks[np.array(rows, dtype=np.int64)])
        np.testing.assert_array_equal(reader.read("index", rows), sample.index[np.array(rows, dtype=np.int64)])


@pytest.fixture(scope="module")
def readers(sample, tmp_path_factory):
    """The same file in one piece and in shards."""
    folder = tmp_path_factory.mktemp("forms")
    return {
        form: MapReader(sample.write(folder / form / "test.h5", consolidate=consolidate))
        for form, consolidate in (("contiguous", "always"), ("shards", "never"))
    }


def test_both_forms_are_what_they_say_and_read_alike(readers, sample):
    assert [reader.form for reader in readers.values()] == list(readers)
    whole, shards = readers.values()
    for name in whole.names:
        np.testing.assert_array_equal(whole.read(name), shards.read(name))
    np.testing.assert_array_equal(whole.maps(), shards.maps())
    assert whole.content_id() == shards.content_id()
    assert (whole.size, whole.classes, whole.rows, whole.method, whole.split) == ((8, 6), 4, 50, "gradcam", "test")
    np.testing.assert_array_equal(whole.labels, sample.label)
    np.testing.assert_array_equal(whole.targets, sample.target)
    np.testing.assert_array_equal(whole.predictions, sample.prediction)
    np.testing.assert_array_equal(whole.logits, sample.logits)


def test_the_content_id_notices_another_origin_and_another_row(sample, tmp_path):
    maps = sample.maps.copy()
    maps[9, 0, 0] *= 2
    ids = {
        MapReader(sample.write(tmp_path / "0.h5")).content_id(),
        MapReader(sample.write(tmp_path / "1.h5", origin={"seed": 1})).content_id(),
        MapReader(replace(sample, maps=maps).write(tmp_path / "2.h5")).content_id(),
        MapReader(sample.write(tmp_path / "3.h5", dtype="float32")).content_id(),
    }
    assert len(ids) == 4
    assert MapReader(sample.write(tmp_path / "again.h5", rows_per_block=7)).content_id() in ids


@pytest.mark.parametrize("name", ["index", "label", "target", "prediction"])
def test_the_content_id_notices_another_value_of_one_image(sample, tmp_path, name):
    changed = getattr(sample, name).copy()
    changed[30] += 1000
    first = MapReader(sample.write(tmp_path / "0.h5"))
    second = MapReader(replace(sample, **{name: changed}).write(tmp_path / "1.h5"))
    assert first.content_id() != second.content_id()
