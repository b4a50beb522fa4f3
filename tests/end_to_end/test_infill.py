"""Holes filled once and streamed into every test that removes the same pixels."""

import contextlib
import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from heatproof import config, removal, store
from heatproof.stages.run import Run
from tests.end_to_end.conftest import heatproof, results

STAGES = """
infill:
    infillers: [{name: blurred, infiller: blur, kwargs: {sigma: 0.1}}, {name: counted, infiller: FILL}]
    percentiles: [20, 30]
    orders: [most, least]
    batch_size: 50
insertion_deletion: {step: 0.25, test_samples: 20, insertion_fill: 'infill:blurred', deletion_fill: 'infill:blurred'}
road: {percentiles: [20], test_samples: 20, fill: 'infill:blurred'}
"""
SMOOTHGRAD = "        - {name: smoothgrad, method: heatproof.methods.gradient.SmoothGrad, kwargs: {samples: 3}}\n"
HERE = "tests.end_to_end.test_infill.Counted"


@dataclass(frozen=True)
class Counted:
    """A fill that leaves a line in a file each time that it is asked: also in other processes."""

    mean: tuple[float, ...]

    def __call__(self, pixels, removed, indices=None):
        with Path(os.environ["HEATPROOF_COUNTED"]).open("a") as file:
            file.write(f"{len(pixels)}\n")
        return removal.Mean(self.mean)(pixels, removed, indices)


def counted():
    path = Path(os.environ["HEATPROOF_COUNTED"])
    return sum(map(int, path.read_text().split())) if path.exists() else 0


@pytest.fixture(scope="module")
def base(small, tmp_path_factory):
    """A configuration whose maps and infills are there."""
    os.environ["HEATPROOF_COUNTED"] = str(tmp_path_factory.mktemp("counted") / "lines")
    path = small(
        "infill",
        **{
            "    percentiles: [30]\n": "    percentiles: [30]\n    fill: 'infill:counted'\n",
            "    percentiles: [5, 20]\n": "    percentiles: [20, 30]\n    fill: 'infill:blurred'\n",
            "train_images: 320": "train_images: 160",
            "[random, oracle]": "[random]",
            SMOOTHGRAD: "",
            "seeds: [0, 1]": "seeds: [0]",
        },
    )
    path.write_text(path.read_text() + STAGES.replace("FILL", HERE))
    assert heatproof("train-cls", "--config", path) == 0
    assert heatproof("extract-attribution-maps", "--config", path) == 0
    assert heatproof("infill", "--config", path) == 0
    yield path
    del os.environ["HEATPROOF_COUNTED"]


def folder(base):
    return base.parent / "out" / "infill"


def stored(infills):
    """The bytes of each file of filled images."""
    files = {str(path.relative_to(infills)): path.read_bytes() for path in infills.rglob("*.h5")}
    assert len(files) == 2 * 2 * 2 * 2 * 3  # fills, methods, percentiles, orders, splits
    return files


def test_each_infiller_method_percentile_order_and_split_is_one_file(base):
    found = {str(path.relative_to(folder(base))) for path in folder(base).rglob("*.h5")}
    assert found == {
        f"{infiller}/{method}/{percentile}{order}/{split}.h5"
        for infiller in ("blurred", "counted")
        for method in ("gradcam", "random")
        for percentile in (20, 30)
        for order in ("", "_least")
        for split in ("train", "validation", "test")
    }


def test_a_stored_image_is_the_filled_one_in_bytes_and_kept_pixels_are_the_originals(base):
    run = Run(config.read(base))
    split = run.dataset.split("validation")
    maps = store.MapReader(base.parent / "out" / "extract_cams" / "gradcam" / "validation.h5")
    index = np.array([7, 0, 19])
    pixels = split.pixels(index).float() / 255
    ranks = removal.rank_tensor(maps.ranks(index))
    from heatproof.stages import infilled

    stored = infilled.opened(run, "blurred", "gradcam", "validation", maps.content_id())
    for first in ("most", "least"):
        holes = removal.removed(ranks, 0.2, first)
        filled = stored.at(0.2, first)(pixels, holes, index)
        wanted = removal.Blur(0.1)(pixels, holes).clamp(0, 1)
        assert torch.equal(filled[~holes[:, None].expand_as(filled)], pixels[~holes[:, None].expand_as(filled)])
        assert (filled - wanted).abs().max() <= 0.5 / 255 + 1e-6
        assert torch.equal((filled * 255).round() / 255, filled)
    reader = store.InfillReader(folder(base) / "blurred" / "gradcam" / "20" / "validation.h5")
    assert reader.shape("infill") == (len(split), 3, 204)  # a fifth of the image, and no more


def test_all_tests_read_them_and_a_second_run_fills_nothing(base, caplog):
    before = counted()
    rows = 160 + 96  # of the three splits
    assert before == 2 * 2 * 2 * rows  # methods, percentiles, orders
    caplog.set_level("INFO")
    for stage in ("infill", "evaluate-attribution-maps-roar", "lerf", "road"):
        assert heatproof(stage, "--config", base) == 0, caplog.text
    assert counted() == before
    outdir = base.parent / "out"
    cell = json.loads((outdir / "retrain_cls" / "kar" / "random" / "30" / "seed0.json").read_text())
    assert cell["fill"] == "infill:counted"
    reader = store.InfillReader(outdir / "infill" / "counted" / "random" / "30_least" / "test.h5")
    assert cell["origin"]["infill"]["test"] == {"30_least": reader.content_id()}
    curves = store.RowReader(outdir / "pixel_perturbation_analysis" / "random.h5")
    assert set(curves.origin["infills"]["fill"]) == {"20", "30", "20_least", "30_least"}


def test_a_stored_mean_scores_as_the_mean(base):
    # The mean is not a number of bytes: the stored one lies within half a 255th of it.
    for fill, outdir in (("mean", "plain"), ("infill:counted", "stored")):
        target = base.parent / outdir
        if not target.exists():
            shutil.copytree(base.parent / "out", target, ignore=shutil.ignore_patterns("pixel_*", "retrain_cls"))
        arguments = [f"outdir={target}", f"pixel_perturbation_analysis.fill={fill}"]
        assert heatproof("lerf", "--config", base, *arguments) == 0
    plain, stored = (
        store.RowReader(base.parent / outdir / "pixel_perturbation_analysis" / "random.h5").read("probability")
        for outdir in ("plain", "stored")
    )
    np.testing.assert_allclose(stored, plain, atol=0.02)
    assert not np.array_equal(stored, plain)
    np.testing.assert_array_equal(stored[:, :, 0], plain[:, :, 0])  # untouched


def test_what_is_not_stored_is_named_with_the_task(base, capsys):
    assert heatproof("lerf", "--config", base, "pixel_perturbation_analysis.percentiles=[20,40,60]") == 2
    assert (
        "holds no images of test with 40, 60 percent (most important first) and 40, 60 percent (least important first) "
        "removed; add them to infill.percentiles and infill.orders, and run infill" in capsys.readouterr().err
    )
    assert heatproof("insertion-deletion", "--config", base) == 2
    wanted = "25, 50, 75, 100 percent"
    assert f"{wanted} (most important first) and {wanted} (least important first)" in capsys.readouterr().err


MESSAGES = {
    "an infiller that is none": (
        "lerf", ["pixel_perturbation_analysis.fill='infill:blured'"],
        "infill:blured: infill.infillers has no 'blured'; did you mean 'blurred'?",
    ),
    "a test of other pixels": (
        "faithfulness", ["faithfulness={fill: 'infill:blurred', test_samples: 5}"],
        "faithfulness.fill: this test removes other pixels than the first of a map's order",
    ),
    "squares": (
        "insertion-deletion", ["insertion_deletion.patch=8"],
        "insertion_deletion.patch: whole squares go, stored images have holes of pixels; set it to null",
    ),
    "maps made on the way": (
        "evaluate-attribution-maps-roar", ["retrain_cls.recursive=true"], "retrain_cls.recursive: its maps are not known",
    ),
    "another infiller since": (
        "lerf", ["infill.infillers.0.kwargs.sigma=0.2"],
        "infiller.kwargs.sigma: 0.1 -> 0.2: infilled images of something else; run infill again",
    ),
    "no pixel at all": (
        "infill", ["infill.percentiles=[0.01]"], "infill.percentiles: 0.01 percent of 32 x 32 pixels is none",
    ),
    "the same name twice": (
        "infill", ["infill.infillers.1.name=blurred"], "infill.infillers: ",
    ),
    "an option of the wrong type": (
        "infill", ["infill.infillers.0.kwargs.sigma=wide"], "blur: option 'sigma': 'wide' should be a number",
    ),
    "an option that the run sets": (
        "infill", ["infill.infillers.0.kwargs.seed=3"], "blur: option 'seed' is set by the run, not by its configuration",
    ),
    "an option that is a name": (
        "infill", ["infill.infillers.0.kwargs.name=x"], "infill.infillers: blurred: blur has no option 'name'",
    ),
    "an infiller that is no fill": (
        "infill", ["infill.infillers.0={name: blurred, infiller: math.sqrt}"], "math.sqrt: ",
    ),
    "no weights": (
        "infill", ["infill.infillers.0={name: blurred, infiller: DfNet, kwargs: {weights: nowhere.pth}}"],
        "weights: nowhere.pth: no such file of weights; correct the path, or get it from github.com/hughplay/DFNet (CC BY-NC 4.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("stage", "changes", "message"), MESSAGES.values(), ids=MESSAGES)
def test_mistakes_are_one_line(stage, changes, message, base, capsys):
    before = results(base)
    assert heatproof(stage, "--config", base, *changes) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("heatproof: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert results(base) == before


def test_without_infills_the_task_is_named(base, capsys, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(base.parent / "out", out, ignore=shutil.ignore_patterns("infill", "retrain_cls", "pixel_*", "road"))
    for stage in ("lerf", "road", "insertion-deletion", "evaluate-attribution-maps-roar"):
        assert heatproof(stage, "--config", base, f"outdir={out}") == 2
        assert "no infilled images of t" in (line := capsys.readouterr().err)
        assert "run infill first" in line
    assert heatproof("lerf", "--config", base, f"outdir={out}", "--dry-run") == 0


def test_damage_is_found_and_named(base, tmp_path):
    path = tmp_path / "test.h5"
    shutil.copy(folder(base) / "blurred" / "random" / "30" / "test.h5", path)
    reader = store.InfillReader(path)
    (extent,) = reader.extents("infill")
    with path.open("r+b") as file:
        file.seek(extent.offset + 5 * 3 * 307)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    reader = store.InfillReader(path)
    reader.infill(np.array([4, 6]))
    with pytest.raises(
        Exception, match=r"the infill of row 5 is damaged \(checksum\); delete the file and run infill again"
    ):
        reader.infill(np.array([4, 5]))


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(base, capsys, monkeypatch, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(base.parent / "out", out)
    shutil.rmtree(out / "infill")
    write, calls = store.writer.write_contiguous, []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, "No space left on device", "somewhere")
        write(*arguments)

    monkeypatch.setattr(store.writer, "write_contiguous", full)
    assert heatproof("infill", "--config", base, f"outdir={out}") == 2
    assert (
        "No space left on device; completed work is kept, and the same command resumes there" in capsys.readouterr().err
    )
    monkeypatch.undo()
    done = counted()
    assert heatproof("infill", "--config", base, f"outdir={out}") == 0
    assert counted() - done < done  # what was written was not filled again
    assert stored(out / "infill") == stored(folder(base))


def test_killed_and_continued_gives_the_same_bytes(base, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(base.parent / "out", out)
    shutil.rmtree(out / "infill")
    command = [sys.executable, "-m", "heatproof", "infill", "--config", str(base), f"outdir={out}"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not any(out.glob("infill/blurred/gradcam/*/train.h5")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert child.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert heatproof("infill", "--config", base, f"outdir={out}") == 0
    assert stored(out / "infill") == stored(folder(base))


def test_results_follow_the_infill(base, caplog, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(base.parent / "out", out)
    assert heatproof("lerf", "--config", base, f"outdir={out}") == 0
    change = "infill.infillers.0.kwargs.sigma=0.2"
    assert heatproof("infill", "--config", base, f"outdir={out}", change) == 0
    caplog.set_level("INFO")
    assert heatproof("lerf", "--config", base, f"outdir={out}", change) == 0
    stale = [line for line in caplog.text.splitlines() if ".h5: stale, to be computed again" in line]
    assert len(stale) == 2
    assert all("infills.fill.20" in line for line in stale)
    with (out / "pixel_perturbation_analysis" / "results.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) > 0
