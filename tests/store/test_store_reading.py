"""Reading: other processes, other layouts, and everything that may be wrong with a file."""

import json
import logging
import multiprocessing
import pickle
import subprocess
import sys

import h5py
import numpy as np
import pytest

from heatproof import store
from heatproof.errors import InputError, MapError
from heatproof.store import Column, MapReader, RowReader, RowWriter, export_archive, reader, seals


@pytest.fixture
def path(sample, tmp_path):
    return sample.write(tmp_path / "test.h5")


def overwrite(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path, offset, bit=0):
    byte = path.read_bytes()[offset]
    overwrite(path, offset, bytes([byte ^ (1 << bit)]))


def place_of(path, name, row):
    """Position of the first byte of a row."""
    with h5py.File(path) as file:
        dataset = file[name]
        return dataset.id.get_offset() + row * dataset[0].nbytes


def set_attribute(path, name, value):
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value


def test_a_reader_can_be_pickled_and_holds_no_open_file(path, sample):
    opened = MapReader(path)
    opened.ranks([1])
    again = pickle.loads(pickle.dumps(opened))
    np.testing.assert_array_equal(again.ranks(), sample.ranks)
    assert len(pickle.dumps(opened)) < 10_000  # places, not values
    assert (again.size, again.origin, again.labels.shape) == (opened.size, opened.origin, (50,))


@pytest.mark.parametrize("archived", [False, True])
def test_a_reader_made_before_a_fork_works_in_the_children(path, sample, tmp_path, archived):
    script = """
import os, pickle, sys
import numpy as np
reader, ranks = pickle.load(open(sys.argv[1], "rb"))
reader.ranks([0])  # opened before the fork
children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        rows = np.random.default_rng(number).integers(50, size=200)
        os._exit(0 if all((reader.ranks(rows[i:i+20]) == ranks[rows[i:i+20]]).all() for i in range(0, 200, 20)) else 1)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""
    opened = MapReader(path)
    if archived:
        export_archive(opened, tmp_path / "archive.h5")
        opened = MapReader(tmp_path / "archive.h5")
    (tmp_path / "pickled").write_bytes(pickle.dumps((opened, sample.ranks)))
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "pickled")], check=True)


def ranks_of(opened, rows):
    return opened.ranks(rows)


def test_a_reader_can_be_sent_to_a_spawned_process(path, sample):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(ranks_of, (MapReader(path), [3, 1]))
    np.testing.assert_array_equal(found, sample.ranks[[3, 1]])


def test_a_compressed_file_reads_alike_and_the_log_says_so_once(path, sample, tmp_path, caplog):
    export_archive(MapReader(path), tmp_path / "archive.h5")
    caplog.set_level(logging.INFO, logger="heatproof")
    archive = MapReader(tmp_path / "archive.h5")
    rows = [49, 0, 7, 7, 30]
    for opened in (archive, pickle.loads(pickle.dumps(archive))):
        np.testing.assert_array_equal(opened.ranks(rows), sample.ranks[rows])
        np.testing.assert_array_equal(opened.maps(), MapReader(path).maps())
        opened.verify()
    assert archive.content_id() == MapReader(path).content_id()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'archive.h5'} is not contiguous; it is read through HDF5, which is much slower"
    ]


def test_a_file_of_the_other_byte_order_reads_alike(path, sample, tmp_path):
    with h5py.File(path) as source, h5py.File(tmp_path / "big.h5", "w") as target:
        for name in source:
            target.create_dataset(name, data=source[name][...], dtype=source[name].dtype.newbyteorder(">"))
        for name, value in source.attrs.items():
            target.attrs[name] = value
    opened = MapReader(tmp_path / "big.h5")
    assert opened.form == "chunked"
    np.testing.assert_array_equal(opened.ranks(), sample.ranks)
    np.testing.assert_array_equal(opened.maps(), MapReader(path).maps())
    opened.verify()


def test_a_file_that_somebody_edited_with_h5py_is_read_without_its_seal(path, sample):
    assert seals.compared(path) is not None
    with h5py.File(path, "r+") as file:
        file.attrs["note"] = "made on a Sunday"
        file["label"][3] = 0
    assert seals.compared(path) is None
    assert MapReader(path).labels[3] == 0
    MapReader(path).verify()


@pytest.mark.parametrize("offset", [-1, -9, -13, -17, -100])
def test_damage_of_the_seal_itself_is_damage(path, offset):
    flip(path, path.stat().st_size + offset)
    with pytest.raises(MapError, match=r"test\.h5: (truncated or )?damaged .*; delete test\.h5 and run"):
        MapReader(path)


@pytest.mark.parametrize("name", ["map", "rank"])
@pytest.mark.parametrize("consolidate", ["always", "never"])
def test_a_damaged_row_is_named_with_file_row_and_image_and_never_returned(sample, tmp_path, name, consolidate):
    path = sample.write(tmp_path / "test.h5", consolidate=consolidate)
    damaged = path if consolidate == "always" else tmp_path / "test.parts" / "00001.h5"
    row = 20 if consolidate == "always" else 20 - 16
    flip(damaged, place_of(damaged, name, row) + 11, bit=3)
    opened = MapReader(path)
    read = opened.maps if name == "map" else opened.ranks
    assert len(read([19, 21])) == 2
    for _ in range(2):
        message = rf"test\.h5: {name} of row 20 \(image {sample.index[20]}\) is damaged .*delete {damaged} and run"
        with pytest.raises(MapError, match=message):
            read([19, 20])
    with pytest.raises(MapError, match="row 20"):
        opened.verify()
    assert len(list(opened.damage())) == 1
    other = opened.ranks if name == "map" else opened.maps
    assert len(other()) == 50


def test_a_row_is_compared_with_its_checksum_only_once(path, monkeypatch):
    compared, small = [], []
    checksum = reader.checksum
    monkeypatch.setattr(reader, "checksum", lambda values: small.append(len(values)) or checksum(values))
    monkeypatch.setattr(reader, "row_checksums", lambda rows: compared.append(len(rows)) or row_checksums(rows))
    row_checksums = sys.modules["heatproof.store.hdf5"].row_checksums
    opened = MapReader(path)
    for rows in ([1, 2, 3], [3, 2, 1], [3, 4], None, None):
        opened.ranks(rows)
    assert compared == [3, 1, 46]
    for rows in ([1], [2], None):
        opened.read("label", rows)
    assert small == [50, 50]  # crc and label


@pytest.mark.parametrize("name", ["scale", "index", "label", "target", "prediction", "logits", "flag", "crc"])
@pytest.mark.parametrize("consolidate", ["always", "never"])
def test_damage_of_a_small_dataset_is_found(sample, tmp_path, name, consolidate):
    path = sample.write(tmp_path / "test.h5", consolidate=consolidate)
    damaged = path if consolidate == "always" else tmp_path / "test.parts" / "00001.h5"
    flip(damaged, place_of(damaged, name, 5), bit=1)
    opened = MapReader(path)
    with pytest.raises(MapError, match=rf"test\.h5: dataset '{name}', rows \d+ to \d+: damaged \(checksum\)"):
        opened.read(name, [20, 21])
    with pytest.raises(MapError, match=name):
        opened.verify()


@pytest.mark.parametrize("consolidate", ["always", "never"])
def test_no_flipped_bit_goes_unnoticed_or_ends_in_a_traceback(sample, tmp_path, consolidate):
    path = sample.write(tmp_path / "test.h5", consolidate=consolidate)
    expected = {name: MapReader(path).read(name) for name in MapReader(path).names}
    rng = np.random.default_rng(0)
    content = path.read_bytes()
    head = place_of(path, "map", 0) if consolidate == "always" else len(content)
    errors = []
    for offset in [*rng.integers(head, size=150), *rng.integers(len(content), size=50)]:
        flip(path, int(offset), bit=int(rng.integers(8)))
        try:
            opened = MapReader(path)
            found = {name: opened.read(name) for name in expected}
            assert (
                opened.attributes["origin"]
                == '{"data":"planted","method":{"kwargs":{"layer":"layer3"},"name":"gradcam"},"seed":0}'
            )
            assert (opened.complete, opened.rows_done, opened.method, opened.split) == (True, 50, "gradcam", "test")
            for name in expected:
                np.testing.assert_array_equal(found[name], expected[name])
        except MapError as error:
            errors.append(str(error))
        path.write_bytes(content)
    assert len(errors) == 200
    assert all("test" in error and "\n" not in error for error in errors)


@pytest.mark.parametrize("kept", [1, 100, 5000, -1000, -100, -1])
def test_a_truncated_file_is_called_so(path, kept):
    with path.open("r+b") as file:
        file.truncate(kept % path.stat().st_size)
    with pytest.raises(MapError, match=r"test\.h5: (truncated|not an HDF5 file).*; delete test\.h5 and run"):
        MapReader(path)


def test_an_empty_file_is_no_hdf5_file(path):
    path.write_bytes(b"")
    with pytest.raises(MapError, match=r"test\.h5: not an HDF5 file; delete test\.h5 and run"):
        MapReader(path)


def test_what_is_no_attribution_file_is_called_so(path, tmp_path):
    with pytest.raises(MapError, match=r"nowhere\.h5: no such file; run the task"):
        MapReader(tmp_path / "nowhere.h5")
    (tmp_path / "text.h5").write_text("maps\n")
    with pytest.raises(MapError, match=r"text\.h5: not an HDF5 file"):
        MapReader(tmp_path / "text.h5")
    with pytest.raises(MapError, match="not readable as HDF5"):
        MapReader(tmp_path)
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["attribution"] = np.zeros((3, 4))
    with pytest.raises(MapError, match=r"foreign\.h5: not a file of format 'heatproof/attribution': it has no attr"):
        MapReader(tmp_path / "foreign.h5")
    RowWriter(tmp_path / "curve.h5", [], rows=1, origin={}, kind="heatproof/curves", rows_per_shard=1)
    set_attribute(tmp_path / "foreign.h5", "format", "heatproof/curves")
    with pytest.raises(MapError, match="its format is 'heatproof/curves'"):
        MapReader(tmp_path / "foreign.h5")


def test_a_newer_version_asks_for_an_update(path):
    set_attribute(path, "format_version", 2)
    with pytest.raises(MapError, match="format_version 2 is newer than 1, the newest known here; update heatproof"):
        MapReader(path)


def test_a_missing_or_misshapen_dataset_is_named(path):
    with h5py.File(path, "r+") as file:
        del file["target"]
    with pytest.raises(MapError, match="has no dataset 'target'"):
        MapReader(path)
    with h5py.File(path, "r+") as file:
        file["target"] = np.zeros((50, 2), np.int64)
    with pytest.raises(MapError, match=r"dataset 'target' holds int64 \(2,\); expected int64 \(\)"):
        MapReader(path)
    with h5py.File(path, "r+") as file:
        del file["target"]
        file["target"] = np.zeros(49, np.int64)
    with pytest.raises(MapError, match="different numbers of rows"):
        MapReader(path)


def test_a_missing_shard_is_an_error_although_hdf5_reads_fill_values(sample, tmp_path):
    path = sample.write(tmp_path / "test.h5", consolidate="never")
    (tmp_path / "test.parts" / "00002.h5").unlink()
    with h5py.File(path) as file:
        assert (file["rank"][32] == 65535).all()  # what a plain reader would take for ranks
    with pytest.raises(MapError, match=r"its shard test\.parts/00002\.h5 is missing; .* run the same task again"):
        MapReader(path)


@pytest.mark.parametrize("what", ["truncated", "exchanged", "of another origin", "edited"])
def test_a_shard_that_is_not_as_it_was_written_is_an_error(sample, tmp_path, what):
    path = sample.write(tmp_path / "test.h5", consolidate="never")
    shard = tmp_path / "test.parts" / "00001.h5"
    content = shard.read_bytes()
    if what == "truncated":
        shard.write_bytes(content[:3000])
    elif what == "exchanged":
        shard.write_bytes((tmp_path / "test.parts" / "00000.h5").read_bytes())
    elif what == "of another origin":
        sample.write(tmp_path / "other" / "test.h5", consolidate="never", origin={"seed": 1})
        shard.write_bytes((tmp_path / "other" / "test.parts" / "00001.h5").read_bytes())
    else:
        set_attribute(shard, "note", "edited")
    with pytest.raises(
        MapError, match=r"its shard test\.parts/00001\.h5 is truncated, edited, or of another file; delete"
    ):
        MapReader(path)
    assert [block.number for block in sample.writer(path, consolidate="never").missing()] == [1]
    shard.write_bytes(content)
    MapReader(path).verify()


def test_a_view_that_somebody_else_made_is_read_through_hdf5_if_its_sources_are_there(sample, tmp_path):
    path = sample.write(tmp_path / "test.h5")
    with h5py.File(path) as source, h5py.File(tmp_path / "view.h5", "w") as view:
        for name in source:
            layout = h5py.VirtualLayout(source[name].shape, source[name].dtype)
            layout[...] = h5py.VirtualSource("test.h5", name, source[name].shape)
            view.create_virtual_dataset(name, layout)
        for name, value in source.attrs.items():
            view.attrs[name] = value
    np.testing.assert_array_equal(MapReader(tmp_path / "view.h5").ranks([4, 2]), sample.ranks[[4, 2]])
    path.unlink()
    with pytest.raises(MapError, match=r"view\.h5: its shard test\.h5 is missing"):
        MapReader(tmp_path / "view.h5")


def test_a_file_that_changes_under_a_reader_is_not_read_on(sample, drawn, tmp_path):
    path = sample.write(tmp_path / "test.h5")
    opened = MapReader(path)
    opened.ranks([0])
    path.unlink()
    drawn(seed=1).write(path)
    with pytest.raises(MapError, match=r"test\.h5: changed while it was being read"):
        opened.maps([0])


def test_a_file_that_is_joined_while_it_is_opened_is_read_in_its_new_form(sample, tmp_path, monkeypatch):
    path = sample.write(tmp_path / "test.h5", consolidate="never")
    original = reader.layout._Shards.extents

    def joined_meanwhile(*arguments):
        monkeypatch.undo()
        sample.writer(path, consolidate="always").finish()
        return original(*arguments)

    monkeypatch.setattr(reader.layout._Shards, "extents", joined_meanwhile)
    np.testing.assert_array_equal(MapReader(path).ranks(), sample.ranks)


def test_an_unfinished_file_says_how_far_it_got(sample, tmp_path):
    opened = MapReader(sample.write(tmp_path / "test.h5", finish=False, numbers=[0]))
    assert not opened.complete
    assert opened.rows_done == 16
    np.testing.assert_array_equal(opened.written, np.arange(50) < 16)
    np.testing.assert_array_equal(opened.ranks(range(16)), sample.ranks[:16])
    np.testing.assert_array_equal(opened.labels, np.where(opened.written, sample.label, -1))
    assert np.isnan(opened.logits[16:]).all()
    opened.verify()
    with pytest.raises(MapError, match=r"test\.h5: row 16 is not written yet; run the same task again to go on"):
        opened.ranks([3, 16])
    with pytest.raises(MapError, match=r"test\.h5: 16 of 50 rows written; run the same task again to go on"):
        opened.require_complete()
    sample.write(opened.path)
    MapReader(opened.path).require_complete()


def test_a_file_made_from_something_else_is_named_with_what_differs(path):
    opened = MapReader(path)
    opened.expect({})
    opened.expect({"data": "planted"})
    opened.expect({"method": {"name": "gradcam", "kwargs": {"layer": "layer3"}}, "seed": 0})
    with pytest.raises(MapError, match=r"made from something else: method\.kwargs\.layer: .layer3. -> .layer4.; run"):
        opened.expect({"method": {"name": "gradcam", "kwargs": {"layer": "layer4"}}})
    with pytest.raises(MapError, match="weights: null -> 1"):
        opened.expect({"weights": 1})


@pytest.mark.parametrize("rows", [[50], [-1], [[0]], [0.5], [True]])
def test_rows_that_a_file_does_not_have_are_refused(path, rows):
    with pytest.raises(InputError, match="rows: "):
        MapReader(path).ranks(rows)


def test_a_file_that_the_same_process_has_open_with_h5py_can_be_read(path, sample):
    with h5py.File(path):
        np.testing.assert_array_equal(MapReader(path).ranks(), sample.ranks)


def test_no_rows_give_empty_arrays(path):
    assert MapReader(path).maps([]).shape == (0, 8, 6)


def test_curves_are_stored_with_the_same_care(tmp_path):
    columns = [Column("probability", "float64", (2, 3), fill=float("nan")), Column("index", "int64", fill=-1)]
    writer = RowWriter(
        tmp_path / "gradcam.h5",
        columns,
        rows=5,
        origin={"maps": "abc"},
        kind="heatproof/curves",
        attributes={"method": "gradcam", "steps": 3},
        rows_per_shard=2,
    )
    probability = np.arange(30.0).reshape(5, 2, 3)
    for block in writer.missing():
        values = {"probability": probability[block.start : block.stop], "index": np.arange(block.start, block.stop)}
        writer.write(block, values)
    opened = RowReader(writer.finish(), "heatproof/curves")
    np.testing.assert_array_equal(opened.read("probability", [4, 0]), probability[[4, 0]])
    assert opened.attributes["steps"] == 3
    assert list(tmp_path.iterdir()) == [opened.path]
    flip(opened.path, place_of(opened.path, "probability", 3))
    with pytest.raises(MapError, match="dataset 'probability', rows 0 to 4: damaged"):
        RowReader(opened.path).read("probability", [0])


def test_json_in_attributes_is_what_was_given(path):
    with h5py.File(path) as file:
        assert list(json.loads(file.attrs["origin"])) == ["data", "method", "seed"]


def written_elsewhere(path, libver):
    """A process that has an HDF5 file open for writing, in the middle of its work."""
    code = (
        "import h5py, sys, numpy as np\n"
        f"file = h5py.File({str(path)!r}, 'w', libver={libver!r})\n"
        "file['map'] = np.zeros(4)\n"
        f"file.flush() if {libver!r} == 'latest' else None\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"open\n"
    return process


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("read", [MapReader, RowReader, store.inspect, store.read_state])
def test_a_file_that_another_program_is_writing_is_not_called_damaged(tmp_path, libver, read):
    process = written_elsewhere(tmp_path / "test.h5", libver)
    try:
        with pytest.raises(MapError) as error:
            read(tmp_path / "test.h5")
        assert "test.h5: another program has it open for writing; close it there" in str(error.value)
        assert "delete" not in str(error.value)
    finally:
        process.communicate(b"")


def test_a_file_that_was_never_closed_is_not_called_damaged(tmp_path):
    process = written_elsewhere(tmp_path / "test.h5", "latest")
    process.kill()
    process.communicate()
    with pytest.raises(
        MapError, match=r"test\.h5: the program that writes it has not closed it; .*h5clear -s"
    ) as error:
        MapReader(tmp_path / "test.h5")
    assert "delete" not in str(error.value)


def test_labels_of_other_classes_than_the_outputs_have_no_accuracy(sample, tmp_path):
    path = sample.write(tmp_path / "own.h5")
    assert "of the images right" in store.render(store.inspect(path))
    path = sample.write(tmp_path / "other.h5", label_classes=3)
    assert MapReader(path).label_classes == 3
    shown = store.render(store.inspect(path))
    assert "its outputs and the labels are of different sets of classes, so it has no accuracy here" in shown
    assert "right" not in shown.split("classifier")[1].split("origin")[0]
