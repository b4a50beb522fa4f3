"""Files in and out: what a stage asks, what `inspect` says, imports, exports."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import yaml

from heatproof.errors import InputError, MapError
from heatproof.store import (
    Column,
    MapReader,
    RowWriter,
    State,
    export_archive,
    export_npz,
    export_virelay,
    imported_maps,
    inspect,
    read_state,
    render,
)

NAMES = ["cat", "dog", "möwe", "ship"]


@pytest.fixture
def path(sample, tmp_path):
    return sample.write(tmp_path / "test.h5")


# What a stage asks before it decides.


def test_the_state_of_a_file_is_none_partial_or_complete(sample, tmp_path):
    path = tmp_path / "test.h5"
    origin = {"seed": 1}
    assert read_state(path) is None
    sample.write(path, origin=origin, finish=False, numbers=[0])
    assert read_state(path) == State(origin, complete=False, rows_done=16, rows=50)
    assert not read_state(path).is_done(origin)
    sample.write(path, origin=origin)
    assert read_state(path) == State(origin, complete=True, rows_done=50, rows=50)
    assert read_state(path).is_done(origin)
    assert not read_state(path).is_done({"seed": 2})
    assert read_state(path).differences({"seed": 2}) == ["seed: 1 -> 2"]


def test_the_state_of_a_damaged_file_says_why_and_raises_nothing(path):
    content = path.read_bytes()
    path.write_bytes(content[:9000])
    state = read_state(path)
    assert (state.origin, state.complete) == (None, False)
    assert state.damage.startswith(f"{path}: truncated")
    assert not state.is_done({})
    path.write_text("no HDF5")
    assert "not an HDF5 file" in read_state(path).damage
    path.unlink()
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "heatproof/attribution"
        file.attrs["format_version"] = 1
        file["map"] = np.zeros((2, 3, 3))
    assert "attribute missing" in read_state(path).damage
    assert "not a file of format 'heatproof/curves'" in read_state(path, "heatproof/curves").damage


# What `inspect` says.


def test_inspect_counts_zeros_constant_and_invalid_maps_and_ties(sample, tmp_path):
    maps = np.zeros((6, 2, 4), np.float32)
    maps[0] = [[8, 7, 6, 5], [4, 3, 2, 1]]  # no tie
    maps[1] = [[8, 4, 4, 4], [4, 3, 2, 1]]  # 4 of 8 pixels tie, on both sides of the cut at 50 %
    maps[2] = 2.0
    maps[3] = 0.0
    maps[4] = [[-8, 1, 1, 1], [1, 1, 1, 1]]  # 7 of 8 tie; also at the cuts
    small = replace(sample.drawn(rows=6, size=(2, 4)), maps=maps)
    writer = small.writer(tmp_path / "test.h5")
    (block,) = writer.missing()
    writer.write(block, **small.rows(block), invalid=np.arange(6) == 5)
    found = inspect(writer.finish()).maps
    assert (found.minimum, found.maximum) == (-8.0, 8.0)
    assert found.mean == pytest.approx((36 + 30 + 16 + 0 - 1) / 40)
    assert found.zero_pixels == pytest.approx(8 / 40)
    assert (found.zero_maps, found.constant_maps, found.invalid_maps) == (1, 2, 1)
    assert found.correct == (small.label == small.prediction).mean()
    assert found.ties.maps == 5
    assert found.ties.share == pytest.approx((0 + 4 / 8 + 1 + 1 + 7 / 8) / 5)
    # 10 % of 8 pixels is none; 50 % cuts behind the 4th, 90 % behind the 7th.
    expected = {0.1: 0.0, 0.5: (0 + 4 / 8 + 1 + 1 + 7 / 8) / 5, 0.9: (0 + 0 + 1 + 1 + 0) / 5}
    assert found.ties.at_cut == pytest.approx(expected)


def test_the_rendered_report_can_be_read(path):
    text = render(inspect(path))
    lines = text.splitlines()
    assert lines[0] == str(path)
    assert all(len(line) < 140 for line in lines)
    for expected in (
        "heatproof/attribution 1; one file;",
        "method     gradcam",
        "rows       50 of 50 written, complete",
        "datasets   crc: uint32 2",
        "           rank: uint16 8 x 6",
        "checksums  all right",
        "constant   0 maps (0.00%)",
        "origin     data: planted",
        "           method.kwargs.layer: layer3",
    ):
        assert expected in text


def test_inspect_lists_what_is_damaged_and_how_far_a_file_got(sample, path, tmp_path):
    with h5py.File(path) as file:
        offset = file["rank"].id.get_offset()
    content = bytearray(path.read_bytes())
    for row in (3, 40):
        content[offset + row * 96] ^= 1
    path.write_bytes(content)
    report = inspect(path)
    assert report.maps is None
    assert [
        f"rank of row {row} (image {sample.index[row]})" in d for row, d in zip((3, 40), report.damage, strict=True)
    ]
    assert "checksums  2 damaged:" in render(report)
    partial = sample.write(tmp_path / "partial.h5", finish=False, numbers=[1])
    text = render(inspect(partial))
    assert "rows       16 of 50 written, not complete: run the same task again to go on" in text
    assert "heatproof/attribution 1; shards;" in text


def test_inspect_tells_its_progress_and_refuses_foreign_files(path, tmp_path):
    done = []
    inspect(path, done.append)
    assert sum(done) == 50
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(MapError, match=r"text\.h5: not an HDF5 file"):
        inspect(tmp_path / "text.h5")


def test_inspect_reports_files_of_curves(tmp_path):
    columns = [Column("probability", "float64", (2,))]
    writer = RowWriter(
        tmp_path / "a.h5", columns, rows=3, origin={"maps": "abc"}, kind="heatproof/curves", rows_per_shard=2
    )
    for block in writer.missing():
        writer.write(block, {"probability": np.arange(6.0).reshape(3, 2)[block.start : block.stop]})
    text = render(inspect(writer.finish()))
    assert "heatproof/curves 1" in text
    assert "probability: float64 2; 0 to 5, mean 2.5" in text


def test_inspect_copes_with_a_file_without_valid_maps(sample, tmp_path):
    writer = sample.writer(tmp_path / "test.h5", rows_per_block=50)
    (block,) = writer.missing()
    writer.write(block, **sample.rows(block), invalid=np.ones(50, bool))
    assert "invalid    50 maps (100.00%)" in render(inspect(writer.finish()))


# Maps from elsewhere.


def test_maps_of_every_usual_shape_are_imported(sample, tmp_path):
    channels = np.stack([sample.maps, -sample.maps], axis=1)
    for maps, expected in (
        (sample.maps, sample.maps),
        (sample.maps[:, None], sample.maps),
        (sample.maps[..., None], sample.maps),
        (channels, channels),
        (np.moveaxis(channels, 1, -1), channels),
        (sample.maps.astype(np.float64), sample.maps),
    ):
        np.savez(tmp_path / "maps.npz", maps=maps)
        np.testing.assert_array_equal(imported_maps(tmp_path / "maps.npz", (8, 6)).maps, expected)
        np.save(tmp_path / "maps.npy", maps)
        np.testing.assert_array_equal(imported_maps(tmp_path / "maps.npy", (8, 6)).maps, expected)
        with h5py.File(tmp_path / "maps.h5", "w") as file:
            file["maps"] = maps
        np.testing.assert_array_equal(imported_maps(tmp_path / "maps.h5", (8, 6)).maps, expected)


def test_what_else_a_file_of_maps_says_is_imported_with_its_type(sample, tmp_path):
    np.savez(
        tmp_path / "maps.npz",
        maps=sample.maps,
        index=sample.index.astype(np.uint16),
        label=sample.label.astype(np.int32),
        logits=sample.logits.astype(np.float64),
    )
    found = imported_maps(tmp_path / "maps.npz")
    np.testing.assert_array_equal(found.index, sample.index)
    assert (found.index.dtype, found.label.dtype, found.logits.dtype) == (np.int64, np.int64, np.float32)
    assert found.target is None
    assert found.prediction is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "has no array 'maps'; it has label"),
        ({"maps": np.zeros((2, 3))}, r"maps: shape \(2, 3\); expected \(N, H, W\)"),
        ({"maps": np.zeros((0, 8, 6))}, r"maps: shape \(0, 8, 6\)"),
        ({"maps": np.zeros((2, 6, 8))}, r"maps: shape \(2, 6, 8\); the images are 8 x 6"),
        ({"maps": np.zeros((2, 8, 6), complex)}, "maps: complex128 values; expected real numbers"),
        ({"maps": np.array([[["a"]]])}, "maps: <U1 values"),
        ({"maps": np.zeros((2, 8, 6)), "lable": np.zeros(2)}, "unknown array 'lable'; did you mean 'label'"),
        ({"maps": np.zeros((3, 8, 6))}, r"label: shape \(2,\); expected \(3,\), as there are 3 maps"),
        ({"maps": np.zeros((2, 8, 6)), "target": np.zeros(2)}, "target: float64 values; expected integers"),
        ({"maps": np.zeros((2, 8, 6)), "index": np.array([5, 5])}, "index: image 5 occurs more than once"),
        ({"maps": np.zeros((2, 8, 6)), "index": np.array([5, -1])}, r"index\[1\]: -1 must not be negative"),
        ({"maps": np.zeros((2, 8, 6)), "logits": np.zeros(2)}, r"logits: shape \(2,\); expected \(2, K\)"),
        ({"maps": np.zeros((2, 8, 6)), "logits": np.full((2, 3), np.nan)}, "logits: float64 values; expected finite"),
        ({"maps": np.array([None, None])}, "which are never loaded"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "maps.npz", **({"label": np.zeros(2, int)} | arrays))
    with pytest.raises(MapError, match=rf"maps\.npz: .*{message}") as caught:
        imported_maps(tmp_path / "maps.npz", (8, 6))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_imported_are_named(path, tmp_path):
    with pytest.raises(MapError, match=r"maps\.pt: maps are imported from \.npz, \.npy, \.h5, \.hdf5, not from '\.pt'"):
        imported_maps(tmp_path / "maps.pt")
    with pytest.raises(MapError, match=r"maps\.npz: no such file"):
        imported_maps(tmp_path / "maps.npz")
    with pytest.raises(MapError, match=r"test\.h5: cannot be read: it is an attribution file already"):
        imported_maps(path)
    np.save(tmp_path / "array.npy", np.zeros((2, 8, 6)))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with pytest.raises(MapError, match=r"not an archive of arrays; save it with numpy\.savez"):
        imported_maps(tmp_path / "array.npz")
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    with pytest.raises(MapError, match=r"objects\.npy: .*pickled objects, which are never loaded"):
        imported_maps(tmp_path / "objects.npy")
    for content in (b"", b"PK\x03\x04 no archive", b"\x93NUMPY no array", b"text"):
        for name in ("broken.npz", "broken.npy", "broken.h5"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(MapError, match=rf"{name}: cannot be read"):
                imported_maps(tmp_path / name)


# Exports.


def test_an_exported_archive_of_arrays_holds_everything_and_can_be_imported(sample, path, tmp_path):
    reader = MapReader(path)
    export_npz(reader, tmp_path / "maps.npz")
    with np.load(tmp_path / "maps.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["maps"], reader.maps())
        np.testing.assert_array_equal(found["ranks"], sample.ranks)
        np.testing.assert_array_equal(found["flag"], reader.flags)
        assert json.loads(str(found["origin"])) == reader.origin
        assert (str(found["method"]), str(found["split"])) == ("gradcam", "test")
    again = imported_maps(tmp_path / "maps.npz", (8, 6))
    np.testing.assert_array_equal(again.maps, reader.maps())
    for name in ("index", "label", "target", "prediction", "logits"):
        np.testing.assert_array_equal(getattr(again, name), getattr(sample, name))
    export_npz(reader, tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "maps.npz").read_bytes()


def test_an_archive_is_compressed_standard_hdf5_with_the_same_content(drawn, tmp_path):
    smooth = drawn(rows=200, size=(16, 16))
    smooth = replace(smooth, maps=np.floor(smooth.maps * 0) + 1.0)  # compresses well
    reader = MapReader(smooth.write(tmp_path / "test.h5"))
    export_archive(reader, tmp_path / "archive.h5")
    export_archive(reader, tmp_path / "again.h5")
    assert (tmp_path / "archive.h5").read_bytes() == (tmp_path / "again.h5").read_bytes()
    assert (tmp_path / "archive.h5").stat().st_size < 0.8 * (tmp_path / "test.h5").stat().st_size
    with h5py.File(tmp_path / "archive.h5") as file:
        for name in ("map", "rank"):
            dataset = file[name]
            assert (dataset.chunks, dataset.shuffle, dataset.compression, dataset.compression_opts) == (
                (64, 16, 16),
                True,
                "gzip",
                1,
            )
    archive = MapReader(tmp_path / "archive.h5")
    for name in reader.names:
        np.testing.assert_array_equal(archive.read(name), reader.read(name))
    assert archive.attributes == reader.attributes


def test_damage_in_an_archive_is_found(path, tmp_path):
    export_archive(MapReader(path), tmp_path / "archive.h5")
    content = (tmp_path / "archive.h5").read_bytes()
    original = MapReader(path)
    rng = np.random.default_rng(0)
    for offset in rng.integers(len(content), size=60):
        damaged = bytearray(content)
        damaged[offset] ^= 4
        (tmp_path / "archive.h5").write_bytes(damaged)
        try:
            archive = MapReader(tmp_path / "archive.h5")
            archive.verify()
        except MapError:
            continue
        for name in original.names:
            np.testing.assert_array_equal(archive.read(name), original.read(name))


@pytest.mark.parametrize("form", ["contiguous", "shards", "chunked", "copy"])
def test_a_virelay_project_has_the_files_and_shapes_that_virelay_reads(sample, tmp_path, form):
    reader = MapReader(
        sample.write(tmp_path / "maps" / "test.h5", consolidate="never" if form == "shards" else "always")
    )
    if form == "chunked":
        export_archive(reader, tmp_path / "maps" / "archive.h5")
        reader = MapReader(tmp_path / "maps" / "archive.h5")
    grey = np.random.default_rng(0).integers(256, size=(1000, 1, 8, 6), dtype=np.uint8)
    project = export_virelay(reader, tmp_path / "virelay", lambda i: grey[i], NAMES, copy=form == "copy")
    described = yaml.safe_load(project.read_text())["project"]
    assert described["dataset"]["type"] == "hdf5"
    assert (described["dataset"]["input_width"], described["dataset"]["input_height"]) == (6, 8)
    assert described["attributions"]["attribution_strategy"] == "predicted_label"
    labels = json.loads((project.parent / described["label_map"]).read_text())
    assert labels[2] == {"index": 2, "word_net_id": "n00000002", "name": "möwe"}
    with h5py.File(project.parent / described["dataset"]["path"]) as data:
        np.testing.assert_array_equal(data["data"], np.repeat(grey[sample.index], 3, axis=1))
        np.testing.assert_array_equal(data["label"], sample.label)
        assert data["label"].dtype == np.uint16
    expected = reader.read("map")
    del reader  # HDF5 keeps a compressed file open, and refuses to open it otherwise in the same process
    (source,) = described["attributions"]["sources"]
    with h5py.File(project.parent / source) as file:
        assert file["attribution"].shape == (50, 3, 8, 6)
        for channel in range(3):
            np.testing.assert_array_equal(file["attribution"][:, channel], expected)
        np.testing.assert_array_equal(file["prediction"], sample.logits)
        np.testing.assert_array_equal(file["label"], sample.target)
        np.testing.assert_array_equal(file["index"], np.arange(50))
    if form == "contiguous":
        assert (project.parent / source).stat().st_size < 16_000


def test_pixels_in_0_to_1_become_bytes(sample, path, tmp_path):
    project = export_virelay(
        MapReader(path), tmp_path / "virelay", lambda i: np.full((len(i), 3, 8, 6), 0.5, np.float32), NAMES
    )
    with h5py.File(project.parent / "data.h5") as data:
        assert (data["data"][...] == 128).all()


def test_exports_want_a_complete_file_fitting_images_and_all_names(sample, path, tmp_path):
    with pytest.raises(InputError, match=r"class_names: 2 names; .* has 4 classes"):
        export_virelay(MapReader(path), tmp_path / "virelay", lambda i: i, NAMES[:2])
    with pytest.raises(InputError, match=r"pixels: shape \(50, 2, 8, 6\); expected \(B, 1 or 3, 8, 6\)"):
        export_virelay(MapReader(path), tmp_path / "virelay", lambda i: np.zeros((len(i), 2, 8, 6)), NAMES)
    partial = MapReader(sample.write(tmp_path / "partial.h5", finish=False, numbers=[0]))
    for export in (export_npz, export_archive):
        with pytest.raises(MapError, match="16 of 50 rows written"):
            export(partial, tmp_path / "out")
    with pytest.raises(MapError, match="16 of 50 rows written"):
        export_virelay(partial, tmp_path / "out", lambda i: i, NAMES)
