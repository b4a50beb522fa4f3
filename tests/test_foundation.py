"""Small modules that everything stands on."""

import multiprocessing
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from heatproof import artefacts, cells, checks, plugins, runtime, seeding
from heatproof.errors import CellsFailedError, ConfigError, InputError, MapError, PluginError


class TestArtefacts:
    def test_a_file_appears_whole_or_not_at_all(self, tmp_path):
        path = tmp_path / "a" / "b.txt"
        artefacts.write_text(path, "old")

        def fail():
            with artefacts.whole_file(path) as temporary:
                temporary.write_text("half")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert path.read_text() == "old"
        assert [file.name for file in path.parent.iterdir()] == ["b.txt"]

    def test_a_file_is_readable_as_the_umask_says(self, tmp_path):
        artefacts.write_text(tmp_path / "x", "")
        (tmp_path / "y").write_text("")
        assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode

    def test_differences_name_the_place_and_both_values(self):
        old = {"method": {"steps": 20, "path": "a"}, "seed": 0}
        assert artefacts.differences(old, {"method": {"steps": 50, "path": "a"}, "seed": 0}) == [
            "method.steps: 20 -> 50"
        ]
        assert artefacts.differences(old, dict(old)) == []

    def test_a_file_that_an_option_names_counts_by_its_content_wherever_it_lies(self, tmp_path):
        here, there = tmp_path / "weights.pth", tmp_path / "moved" / "weights.pth"
        options = {"checkpoint": str(here), "steps": 3, "word": "mean", "of": {"kwargs": {"checkpoint": str(here)}}}
        assert artefacts.with_content(options) == options
        here.write_bytes(b"one")
        first = artefacts.with_content(options)
        digest = artefacts.sha256(here)
        assert first == options | {"checkpoint": digest, "of": {"kwargs": {"checkpoint": digest}}}
        there.parent.mkdir()
        shutil.move(here, there)
        assert artefacts.with_content({"checkpoint": str(there)}) == {"checkpoint": digest}
        there.write_bytes(b"two")
        assert artefacts.with_content({"checkpoint": str(there)}) != {"checkpoint": digest}

    def test_an_unreadable_json_file_counts_as_missing(self, tmp_path):
        (tmp_path / "x.json").write_text('{"a": ')
        assert artefacts.read_json(tmp_path / "x.json") is None
        assert artefacts.read_json(tmp_path / "y.json") is None

    def test_rows_are_added_below_one_header(self, tmp_path):
        for value in (1, 2):
            artefacts.append_row(tmp_path / "t.csv", ("a", "b"), (value, "x,y"))
        assert (tmp_path / "t.csv").read_text() == 'a,b\n1,"x,y"\n2,"x,y"\n'

    def test_leftovers_of_killed_writers_are_removed(self, tmp_path):
        (tmp_path / ".x.json.abc.tmp").write_text("")
        (tmp_path / "x.json").write_text("")
        artefacts.remove_leftovers(tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


class TestSeeding:
    def test_streams_differ_by_seed_purpose_and_index_and_repeat(self):
        draws = {
            name: seeding.generator(*name).integers(2**60)
            for name in [(0, "a", 0), (0, "a", 1), (1, "a", 0), (0, "b", 0), (0, "a")]
        }
        assert len(set(draws.values())) == len(draws)
        assert seeding.generator(0, "a", 0).integers(2**60) == draws[0, "a", 0]

    def test_the_stream_is_the_same_on_every_machine(self):
        assert seeding.derive(0, "ties", 7) == 3056707607508228166
        assert seeding.generator(0, "ties", 7).permutation(5).tolist() == [4, 1, 2, 3, 0]


class TestChecks:
    def test_an_axis_of_another_size_is_named(self):
        with pytest.raises(InputError, match=r"regions: shape \(2, 3, 5\); axis W must have size 4, not 5"):
            checks.shapes("N H W", maps=np.zeros((2, 3, 4)), regions=np.zeros((2, 3, 5)))

    def test_a_missing_axis_is_named(self):
        with pytest.raises(InputError, match=r"maps: shape \(3, 4\) has 2 axes; expected \(N, H, W\)"):
            checks.shapes("N H W", maps=np.zeros((3, 4)))


def target(model, steps, *, seed=0, layer=None):
    return model, steps, seed, layer


class TestPlugins:
    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("nowhere.Thing", "there is no module 'nowhere'"),
            ("heatproof.methodz.cam", "heatproof has no 'methodz'; did you mean 'methods'?"),
            ("torch.optim.Adamm", "torch.optim has no 'Adamm'; did you mean 'Adam'?"),
            ("broken_plugin.Thing", "importing broken_plugin failed: ZeroDivisionError"),
            ("needy_plugin.Thing", "importing needy_plugin failed: no module named 'not_installed_anywhere'"),
        ],
    )
    def test_a_path_that_leads_nowhere_says_where_it_ends(self, tmp_path, monkeypatch, path, message):
        (tmp_path / "broken_plugin.py").write_text("1 / 0")
        (tmp_path / "needy_plugin.py").write_text("import not_installed_anywhere")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(PluginError) as caught:
            plugins.resolve(path)
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": 1, "laier": 2}, "unknown option 'laier'; did you mean 'layer'?"),
            ({}, "option 'steps' is missing"),
            ({"steps": 1, "seed": 3}, "unknown option 'seed'"),
        ],
    )
    def test_options_are_held_against_the_signature(self, options, message):
        with pytest.raises(PluginError) as caught:
            plugins.check_options("x.target", target, options, positional=1, provided=("seed",))
        assert message in str(caught.value)
        assert "takes (model, steps, seed, layer)" in str(caught.value)

    def test_fitting_options_pass(self):
        plugins.check_options("x.target", target, {"steps": 1, "layer": 2}, positional=1, provided=("seed",))

    def test_what_the_signature_names_is_given_and_nothing_else(self):
        def returned(model, steps, seed=0, **others):
            return model, steps, seed, others

        provided = {"seed": 7, "mean": 0.5}
        assert plugins.build("x.returned", returned, {"steps": 1}, "model", provided=provided) == ("model", 1, 7, {})
        for name in provided:
            with pytest.raises(PluginError, match=f"unknown option '{name}'"):
                plugins.build("x.returned", returned, {"steps": 1, name: 3}, "model", provided=provided)

    def test_what_is_no_class_or_function_is_refused(self):
        with pytest.raises(PluginError, match="is not callable"):
            plugins.check_options("math.pi", 3.14, {})

    def test_an_edited_user_module_has_another_version(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)
        versions = []
        for text in ("def f(model): return 1", "def f(model): return 2"):
            (tmp_path / "edited.py").write_text(text)
            sys.modules.pop("edited", None)
            versions.append(plugins.code_version(plugins.resolve("edited.f")))
        assert versions[0] != versions[1]


class TestRuntime:
    def test_a_device_that_is_not_there_is_an_error_not_a_fall_back(self):
        if torch.cuda.is_available():
            pytest.skip("has CUDA")
        with pytest.raises(ConfigError, match=r"torch sees 0 CUDA device\(s\)"):
            runtime.resolve_device("cuda")
        with pytest.raises(ConfigError, match="'gpu' is not a device"):
            runtime.resolve_device("gpu")


def square(job):
    number, path = job
    if number == 3:
        raise ValueError("three")
    if number == 5:
        raise MapError("five is no map")
    artefacts.write_text(path, str(number**2))


def wait_long(path):
    path.write_text(str(os.getpid()))
    time.sleep(600)


CPU = torch.device("cpu")


def wait_until(condition, limit_s=120):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_running(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


class TestCells:
    def jobs(self, folder, numbers):
        return [cells.Cell(folder / f"{n}.json", (n, folder / f"{n}.json")) for n in numbers]

    def test_cells_run_in_other_processes(self, tmp_path):
        cells.map_cells(square, self.jobs(tmp_path, [1, 2]), device=CPU, workers=2, threads=1, description="t")
        assert sorted(p.read_text() for p in tmp_path.iterdir()) == ["1", "4"]
        assert not multiprocessing.active_children()

    def test_a_bug_in_one_cell_leaves_a_traceback_and_the_rest_goes_on(self, tmp_path):
        with pytest.raises(CellsFailedError, match="1 of 3 cells failed"):
            cells.map_cells(square, self.jobs(tmp_path, [3, 1, 2]), device=CPU, workers=1, threads=1, description="t")
        assert "ValueError: three" in (tmp_path / "3.error").read_text()
        assert (tmp_path / "2.json").exists()

    def test_workers_end_with_the_process_that_started_them(self, tmp_path):
        code = f"""
import pathlib, torch
from heatproof import cells
from tests.test_foundation import wait_long
path = pathlib.Path({str(tmp_path / "pid")!r})
if __name__ == "__main__":
    device = torch.device("cpu")
    cells.map_cells(wait_long, [cells.Cell(path, path)], device=device, workers=1, threads=1, description="t")
"""
        (tmp_path / "driver.py").write_text(code)
        environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parent.parent)}
        driver = subprocess.Popen([sys.executable, tmp_path / "driver.py"], env=environment, stderr=subprocess.DEVNULL)
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        worker = int((tmp_path / "pid").read_text())
        driver.kill()
        driver.wait()
        wait_until(lambda: not is_running(worker))

    def test_what_a_user_can_mend_stops_the_grid(self, tmp_path):
        with pytest.raises(MapError, match="five is no map"):
            cells.map_cells(square, self.jobs(tmp_path, [5]), device=CPU, workers=1, threads=1, description="t")
