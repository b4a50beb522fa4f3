"""Writing: kills at every point, several writers at once, full disks, and what earlier runs left behind."""

import errno
import fcntl
import logging
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from heatproof import artefacts
from heatproof.errors import InputError, MapError
from heatproof.store import MapReader, read_state, writer

PREPARED = """
import os, pickle, signal, sys
from pathlib import Path
import numpy as np
from heatproof.errors import MapError
from heatproof.store import MapReader, MapWriter, read_state

os.fsync = lambda _: None
folder, options, blocks = Path(sys.argv[1]), *pickle.load(open(sys.argv[2], "rb"))

def write(path, order=None):
    writer = MapWriter(path, **options)
    missing = writer.missing()
    for block in missing if order is None else [b for b in order(writer.blocks)]:
        writer.write(block, **blocks[block.number])
        sys.stdout.write(f"{block.number}\\n"); sys.stdout.flush()
    writer.finish()

def in_child(function):
    # A process of its own; returns how it ended.
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return child
"""


@pytest.fixture(scope="module")
def arguments(sample, tmp_path_factory):
    """A pickle of what a script needs to write the sample."""
    path = tmp_path_factory.mktemp("arguments") / "sample"
    writer = sample.writer(path.with_suffix(".h5"))
    options = {"rows": 50, "size": (8, 6), "classes": 4, "method": "gradcam", "split": "test", "rows_per_block": 16}
    options["origin"] = {"seed": 0}
    path.write_bytes(pickle.dumps((options, [sample.rows(block) for block in writer.blocks])))
    return path


@pytest.fixture(scope="module")
def uninterrupted(sample, tmp_path_factory):
    """The bytes of a file that nobody disturbed."""
    return sample.write(tmp_path_factory.mktemp("reference") / "test.h5", origin={"seed": 0}).read_bytes()


def run(script, *paths):
    subprocess.run([sys.executable, "-c", PREPARED + script, *map(str, paths)], check=True, stdout=subprocess.DEVNULL)


def test_a_kill_at_any_point_loses_no_finished_block_and_changes_no_byte(tmp_path, arguments, uninterrupted):
    # Python announces every opening, renaming and removing; the child kills itself at the n-th of them, for each n.
    script = """
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "tempfile.mkstemp", "fcntl.flock"}
reference = Path(sys.argv[3]).read_bytes()
options["rows_per_block"] = 32
blocks = [{name: np.concatenate([b[name] for b in blocks[i:i+2]]) for name in blocks[0]} for i in (0, 2)]

def killed_at(step, path):
    count = 0
    def watch(event, arguments):
        nonlocal count
        if event in CHANGES or (event == "open" and set(str(arguments[1])) & set("wax+")):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    write(path)

def check_between(path):
    state = read_state(path)
    if state is None:
        return
    assert not state.damage, state
    reader = MapReader(path)
    reader.verify()
    for block in MapWriter(path, **options).blocks:
        if reader.written[block.start]:
            found = reader.ranks(range(block.start, block.stop))
            assert (found == blocks[block.number]["ranks"]).all()

def checked_and_continued(path):
    check_between(path)
    write(path)

step = 0
while True:
    step += 1
    path = folder / str(step) / "test.h5"
    _, status = os.waitpid(in_child(lambda: killed_at(step, path)), 0)
    if status == 0:
        break
    assert os.WIFSIGNALED(status), (step, status)
    _, status = os.waitpid(in_child(lambda: checked_and_continued(path)), 0)
    assert status == 0, (step, status)
    assert path.read_bytes() == reference, step
    assert os.listdir(path.parent) == ["test.h5"], (step, os.listdir(path.parent))
assert step > 40, step
"""
    (tmp_path / "reference").write_bytes(uninterrupted)
    run(script, tmp_path, arguments, tmp_path / "reference")


def test_writers_killed_at_random_moments_end_in_the_same_bytes(tmp_path, arguments, uninterrupted):
    random.seed(0)
    path = tmp_path / "test.h5"
    for attempt in range(5):
        delay = random.uniform(0.0, 0.02)
        child = subprocess.Popen(
            [sys.executable, "-c", PREPARED + 'write(folder / "test.h5")', str(tmp_path), str(arguments)],
            stdout=subprocess.PIPE,
        )
        child.stdout.readline()  # a block is written
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        state = read_state(path)
        assert state is None or not state.damage, attempt
        if state is not None and state.complete:
            break
    run('write(folder / "test.h5")', tmp_path, arguments)
    assert path.read_bytes() == uninterrupted
    assert list(tmp_path.iterdir()) == [path]


def test_several_writers_of_one_file_end_in_the_same_bytes_whoever_wins(tmp_path, arguments, uninterrupted):
    # Four processes write all blocks of the same file, each in its own order, and all of them finish it.
    script = """
import random
reference = Path(sys.argv[3]).read_bytes()
for attempt in range(5):
    path = folder / str(attempt) / "test.h5"
    children = [
        in_child(lambda: write(path, lambda blocks: random.Random(number).sample(blocks, len(blocks))))
        for number in range(4)
    ]
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    assert path.read_bytes() == reference
    assert os.listdir(path.parent) == ["test.h5"]
"""
    (tmp_path / "reference").write_bytes(uninterrupted)
    run(script, tmp_path, arguments, tmp_path / "reference")


def test_values_reach_the_disk_before_their_name_does(sample, tmp_path, monkeypatch):
    # The inode that is renamed must have been synced before, and its folder after.
    events = []
    monkeypatch.setattr(writer, "VIEW_INTERVAL_S", 1000.0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(os.fstat(descriptor).st_ino))
    replaced = type(tmp_path).replace
    monkeypatch.setattr(
        type(tmp_path),
        "replace",
        lambda self, target: events.append((self.stat().st_ino, target.name)) or replaced(self, target),
    )
    sample.write(tmp_path / "test.h5")
    renames = [number for number, event in enumerate(events) if isinstance(event, tuple)]
    names = [events[number][1] for number in renames]
    assert names == ["00000.h5", "test.h5", "00001.h5", "00002.h5", "00003.h5", "test.h5"]
    for number in renames:
        assert events[number - 1] == events[number][0]
    assert events[renames[-1] + 1] == tmp_path.stat().st_ino


def test_equal_data_give_equal_bytes_in_any_order_and_any_blocks(sample, tmp_path, uninterrupted):
    backwards = sample.writer(tmp_path / "backwards.h5", origin={"seed": 0})
    for block in reversed(backwards.missing()):
        backwards.write(block, **sample.rows(block))
    assert backwards.finish().read_bytes() == uninterrupted
    path = sample.write(tmp_path / "small.h5", origin={"seed": 0}, rows_per_block=3)
    assert path.read_bytes() == uninterrupted
    never = sample.write(tmp_path / "late.h5", origin={"seed": 0}, consolidate="never")
    assert sample.write(never, origin={"seed": 0}, consolidate="always").read_bytes() == uninterrupted


def test_the_file_exists_from_the_first_block_on_and_plain_h5py_can_read_it(sample, tmp_path):
    path = sample.write(tmp_path / "test.h5", finish=False, numbers=[2])
    with h5py.File(path) as file:
        assert not file.attrs["complete"]
        assert file.attrs["rows_done"] == 16
        np.testing.assert_array_equal(file["rank"][32:48], sample.ranks[32:48])
        assert np.isnan(file["map"][:32]).all()
        assert (file["rank"][:32] == 65535).all()
        assert (file["label"][48:] == -1).all()
    shutil.move(tmp_path, tmp_path.with_name("moved"))  # the shards are found beside the file, wherever it is
    assert MapReader(tmp_path.with_name("moved") / "test.h5").rows_done == 16


def test_the_view_is_written_at_most_once_a_second(sample, tmp_path, monkeypatch):
    views = []
    original = writer.write_views
    monkeypatch.setattr(writer, "write_views", lambda *arguments: views.append(1) or original(*arguments))
    monkeypatch.setattr(writer, "VIEW_INTERVAL_S", 1000.0)
    sample.write(tmp_path / "test.h5", finish=False, rows_per_block=2)
    assert len(views) == 1
    monkeypatch.setattr(writer, "VIEW_INTERVAL_S", 0.0)
    monkeypatch.setattr(writer, "VIEW_SHARE", 0)
    sample.write(tmp_path / "again.h5", finish=False, rows_per_block=2)
    assert len(views) == 1 + 25


def test_a_continued_file_takes_up_only_what_is_missing(sample, tmp_path):
    path = sample.write(tmp_path / "test.h5", finish=False, numbers=[0, 2])
    again = sample.writer(path)
    assert [block.number for block in again.missing()] == [1, 3]
    assert again.rows_done == 32


@pytest.mark.parametrize(
    "other", [{"origin": {"seed": 1}}, {"dtype": "float32"}, {"rows_per_block": 15}], ids=["origin", "dtype", "blocks"]
)
def test_shards_of_something_else_are_never_taken_up(sample, drawn, tmp_path, other):
    path = drawn(seed=7).write(tmp_path / "test.h5", finish=False, **other)
    again = sample.writer(path)
    assert again.rows_done == 0
    assert len(again.missing()) == 4
    sample.write(path)
    assert path.read_bytes() == sample.write(tmp_path / "new" / "test.h5").read_bytes()
    assert not (tmp_path / "test.parts").exists()


def test_a_file_of_another_origin_is_made_again_and_an_equal_one_is_left_alone(sample, drawn, tmp_path):
    path = drawn(seed=7, rows=200).write(tmp_path / "test.h5", origin={"seed": 1}, consolidate="never")
    sample.write(path, consolidate="never")
    assert sorted(p.name for p in (tmp_path / "test.parts").glob("*.h5")) == [f"{n:05d}.h5" for n in range(4)]
    np.testing.assert_array_equal(MapReader(path).ranks(), sample.ranks)
    before = path.stat()
    again = sample.writer(path, consolidate="never")
    assert again.missing() == []
    assert again.rows_done == 50
    again.finish()
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_file_whose_shard_was_lost_gets_it_again(sample, tmp_path):
    path = sample.write(tmp_path / "test.h5", consolidate="never")
    (tmp_path / "test.parts" / "00001.h5").unlink()
    assert "missing" in read_state(path).damage
    assert [block.number for block in sample.writer(path, consolidate="never").missing()] == [1]
    sample.write(path, consolidate="never")
    MapReader(path).verify()


def test_a_damaged_file_is_made_again(sample, tmp_path):
    path = sample.write(tmp_path / "test.h5")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert len(sample.writer(path).missing()) == 4
    assert sample.write(path).read_bytes() == content


def test_a_shard_damaged_on_disk_is_computed_again_before_it_is_joined(sample, tmp_path, uninterrupted):
    path = sample.write(tmp_path / "test.h5", origin={"seed": 0}, finish=False)
    shard = tmp_path / "test.parts" / "00002.h5"
    with h5py.File(shard) as file:
        offset = file["map"].id.get_offset()
    content = bytearray(shard.read_bytes())
    content[offset + 5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(MapError, match=r"00002\.h5: 'map' was damaged on disk .* run the same task again"):
        sample.write(path, origin={"seed": 0})
    assert sample.write(path, origin={"seed": 0}).read_bytes() == uninterrupted


def test_finishing_too_early_says_how_far_it_got(sample, tmp_path):
    path = sample.write(tmp_path / "test.h5", finish=False, numbers=[1])
    with pytest.raises(MapError, match=r"test\.h5: 16 of 50 rows written; run the same task again to go on"):
        sample.writer(path).finish()
    assert read_state(path).rows_done == 16


def test_finishing_twice_does_no_harm(sample, tmp_path, uninterrupted):
    first, second = (sample.writer(tmp_path / "test.h5", origin={"seed": 0}) for _ in range(2))
    for block in first.missing():
        first.write(block, **sample.rows(block))
    first.finish()
    second.write(second.blocks[1], **sample.rows(second.blocks[1]))  # it had not noticed
    second.finish()
    second.finish()
    assert second.path.read_bytes() == uninterrupted
    assert list(tmp_path.iterdir()) == [second.path]


def test_a_late_view_never_replaces_the_finished_file(sample, tmp_path, uninterrupted, monkeypatch):
    # The slow writer is about to replace the view when the fast one finishes the file and removes the shards.
    slow, fast = (sample.writer(tmp_path / "test.h5", origin={"seed": 0}) for _ in range(2))
    for block in slow.blocks:
        slow.write(block, **sample.rows(block))
    slow._next_view = 0.0
    original = writer.write_contiguous

    def finished_meanwhile(*arguments):
        original(*arguments)
        monkeypatch.undo()
        fast.finish()

    monkeypatch.setattr(writer, "write_contiguous", finished_meanwhile)
    slow.write(slow.blocks[0], **sample.rows(slow.blocks[0]))
    assert slow.path.read_bytes() == uninterrupted
    assert list(tmp_path.iterdir()) == [slow.path]


def test_half_written_files_of_a_killed_writer_are_removed(sample, tmp_path):
    path = tmp_path / "test.h5"
    parts = tmp_path / "test.parts"
    parts.mkdir()
    leftovers = [tmp_path / ".test.h5.abc.tmp", parts / ".00001.h5.def.tmp"]
    foreign = tmp_path / ".train.h5.abc.tmp"  # another split may be being written right now
    for leftover in [*leftovers, foreign]:
        leftover.write_bytes(b"half")
    sample.write(path, finish=False)
    assert not any(leftover.exists() for leftover in leftovers)
    sample.write(path)
    assert sorted(tmp_path.iterdir()) == [foreign, path]


def test_the_shards_of_a_writer_killed_while_removing_them_are_removed_by_the_next(sample, tmp_path):
    path = sample.write(tmp_path / "test.h5", finish=False)
    shutil.copytree(tmp_path / "test.parts", tmp_path / "copy")
    sample.write(path)
    (tmp_path / "copy").rename(tmp_path / "test.parts")
    (tmp_path / "test.parts" / "00000.h5").unlink()
    assert read_state(path).complete
    assert sample.writer(path).missing() == []
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("block", [0, 2])
def test_a_full_disk_loses_nothing_and_the_same_run_goes_on_later(sample, tmp_path, monkeypatch, block, uninterrupted):
    path = sample.write(tmp_path / "test.h5", origin={"seed": 0}, finish=False, numbers=range(block))
    before = sorted(p for p in tmp_path.rglob("*") if p.name != "lock")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            sample.write(path, origin={"seed": 0})
    assert sorted(p for p in tmp_path.rglob("*") if p.name not in ("lock", "test.parts")) == [
        p for p in before if p.name != "test.parts"
    ]
    assert sample.write(path, origin={"seed": 0}).read_bytes() == uninterrupted


def test_a_disk_that_fills_up_while_values_are_written_is_an_ordinary_error(tmp_path, arguments, uninterrupted):
    # A limit on the size of files is as good as a full disk: the write stops in the middle.
    script = """
import resource
for size in (1000, 3000, 5000, 7000, 9000, 15000):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            write(folder / "test.h5")
        except OSError as error:
            assert error.errno == 27, error
            os._exit(7)
    status = os.waitstatus_to_exitcode(os.waitpid(in_child(limited), 0)[1])
    assert status == 7, (size, status)
    assert not list(folder.rglob("*.tmp"))
write(folder / "test.h5")
"""
    run(script, tmp_path, arguments)
    assert (tmp_path / "test.h5").read_bytes() == uninterrupted


def test_too_little_room_is_noticed_before_the_first_byte(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(OSError, match=r"No space left on device: \d+\.\d MB are needed"):
        sample.write(tmp_path / "test.h5")
    assert not list(tmp_path.rglob("*.h5"))


def test_auto_keeps_the_shards_where_one_file_has_no_room(sample, tmp_path, monkeypatch, caplog):
    path = sample.write(tmp_path / "test.h5", finish=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    sample.write(path)
    assert MapReader(path).form == "shards"
    assert read_state(path).complete
    assert "no room for one file" in caplog.text


def test_auto_keeps_the_shards_of_what_is_too_large(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "AUTO_BYTES", 1000)
    assert MapReader(sample.write(tmp_path / "a" / "test.h5")).form == "shards"
    assert MapReader(sample.write(tmp_path / "b" / "test.h5", consolidate="always")).form == "contiguous"


def test_without_file_locks_everything_works_but_nothing_is_removed(sample, tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    caplog.set_level(logging.INFO, logger="heatproof")
    path = sample.write(tmp_path / "test.h5")
    np.testing.assert_array_equal(MapReader(path).ranks(), sample.ranks)
    assert len(list((tmp_path / "test.parts").glob("*.h5"))) == 4
    assert "no file locks here" in caplog.text


def test_a_lock_that_was_removed_while_waiting_for_it_is_taken_anew(sample, tmp_path, monkeypatch):
    rows = sample.writer(tmp_path / "test.h5")._rows

    def removed_meanwhile(*arguments):
        monkeypatch.undo()
        shutil.rmtree(rows.parts)  # as the process does that held it and has finished the file
        fcntl.flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with writer._locked(rows.parts, wait=True) as lock:
        assert lock.is_exclusive
        with writer._locked(rows.parts, wait=False) as other:
            assert other.is_busy


def test_wrong_blocks_and_columns_are_named(sample, tmp_path):
    rows = sample.writer(tmp_path / "test.h5")._rows
    with pytest.raises(InputError, match="is not one of its blocks"):
        rows.write(rows.blocks[0]._replace(stop=15), {})
    with pytest.raises(InputError, match="unknown column 'lable'; did you mean 'label'"):
        rows.write(rows.blocks[0], {"lable": []})
    with pytest.raises(InputError, match="column 'map' is missing from block 0"):
        rows.write(rows.blocks[0], {})


def test_files_get_the_permissions_that_the_user_gives_new_files(sample, tmp_path):
    path = sample.write(tmp_path / "test.h5", consolidate="never")
    artefacts.write_text(tmp_path / "plain", "")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "test.parts" / "00000.h5").stat().st_mode == path.stat().st_mode
