"""The policy of threads: what the machine gives, what a network is worth, and what the thread pools are told."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from heatproof import artefacts, cells, cli, config, threads
from heatproof.models import Normalization
from heatproof.models.resnet_cifar import NarrowResNet8, ResNet18
from heatproof.stages import explain, registry
from heatproof.stages.run import Run

CPU = torch.device("cpu")
SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS")


@pytest.fixture
def free(monkeypatch):
    """A process whose user has set nothing, on a machine of 4 CPUs; the number of threads is put back."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "cpus", lambda: 4)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class TestQuotas:
    def of(self, folder, groups, files):
        """The quotas of a process in some groups, where the tree of groups has some files."""
        for name, text in files.items():
            artefacts.write_text(folder / "cgroup" / name, text)
        artefacts.write_text(folder / "membership", groups)
        return list(threads.quotas(folder / "membership", folder / "cgroup"))

    @pytest.mark.parametrize(
        ("groups", "files", "quotas"),
        [
            ("0::/", {"cpu.max": "200000 100000\n"}, [2.0]),
            ("0::/", {"cpu.max": "max 100000\n"}, []),
            ("0::/", {"cpu.max": "50000 100000\n"}, [0.5]),
            ("0::/a/b", {"cpu.max": "max 100000", "a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, [1.5]),
            ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "400000 100000"}, [3.0, 4.0]),
            ("0::/docker/1f", {"cpu.max": "200000 100000"}, [2.0]),  # the container's own group is the root here
            ("0::/../../other", {"cpu.max": "200000 100000"}, [2.0]),
            ("0::/a", {"b/cpu.max": "100000 100000"}, []),  # of another process
            ("0::/a", {"a/cpu.max": "nonsense"}, []),
            ("4:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "150000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, [1.5]),
            ("1:cpu:/s", {"cpu/s/cpu.cfs_quota_us": "50000", "cpu/s/cpu.cfs_period_us": "100000"}, [0.5]),
            ("1:cpu:/s", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
            ("3:cpuset:/s\n2:cpuacct:/s", {"cpuset/s/cpu.cfs_quota_us": "1", "cpuset/s/cpu.cfs_period_us": "1"}, []),
            ("0::/s", {"unified/s/cpu.max": "100000 100000"}, [1.0]),  # version 2 beside version 1
            ("7:name=systemd:/x:y\n0::/x:y", {"x:y/cpu.max": "100000 50000"}, [2.0]),
            ("", {}, []),
        ],
    )  # fmt: skip
    def test_each_group_of_the_process_and_each_above_it_counts(self, tmp_path, groups, files, quotas):
        assert sorted(self.of(tmp_path, groups, files)) == quotas

    def test_without_control_groups_there_are_none(self, tmp_path):
        assert list(threads.quotas(tmp_path / "membership", tmp_path)) == []

    @pytest.mark.parametrize(
        ("affinity", "quotas", "cpus"),
        [(64, [2.0], 2), (64, [8.0, 1.5], 2), (64, [0.5], 1), (1, [4.0], 1), (3, [], 3), (64, [0.01], 1)],
    )
    def test_affinity_and_quotas_limit_the_cpus(self, monkeypatch, affinity, quotas, cpus):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        monkeypatch.setattr(threads, "quotas", lambda: iter(quotas))
        assert threads.cpus() == cpus


class TestNumbers:
    def test_workers_times_threads_never_exceed_the_cpus(self):
        for cpus, count in itertools.product(range(1, 70), range(1, 9)):
            workers = threads.workers_for(count, cpus)
            assert workers == 1 or workers * count <= cpus < (workers + 1) * count

    def test_default_workers_share_the_cpus_that_there_are(self, monkeypatch):
        monkeypatch.setattr(cells, "cpus", lambda: 2)
        assert [cells.default_workers(CPU, count) for count in (1, 2, 3)] == [2, 1, 1]

    def test_a_small_network_has_one_thread_and_a_large_one_all(self, free):
        threads.begin()
        counts = []
        for network, size in ((NarrowResNet8(), (32, 32)), (ResNet18(), (32, 32))):
            threads.raise_for(network, size)
            counts.append(torch.get_num_threads())
        assert counts == [1, 4]

    def test_large_images_make_a_small_network_worth_more(self, free):
        threads.begin()
        threads.raise_for(NarrowResNet8(), (150, 150))  # 14,904 parameters x 22,500 pixels
        assert torch.get_num_threads() == 3

    def test_the_largest_network_decides_whatever_the_order(self, free):
        threads.begin()
        for network in (ResNet18(), NarrowResNet8()):
            threads.raise_for(network, (32, 32))
        assert torch.get_num_threads() == 4

    @pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
    def test_the_users_number_wins(self, free, monkeypatch, name):
        monkeypatch.setenv(name, "3")
        torch.set_num_threads(3)  # what torch makes of it when it is imported
        threads.begin()
        threads.raise_for(ResNet18(), (32, 32))
        assert torch.get_num_threads() == threads.limit() == 3

    def test_one_torch_thread_for_a_small_network_leaves_all_for_decoding(self, free):
        threads.begin()
        assert threads.limit() == 4


class TestEnvironment:
    def test_what_the_user_has_set_stays(self, free, monkeypatch):
        monkeypatch.setenv("OMP_WAIT_POLICY", "active")
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
        threads.settle_environment()
        assert (os.environ["OMP_WAIT_POLICY"], os.environ["OPENBLAS_NUM_THREADS"]) == ("active", "7")

    def test_a_command_settles_it_before_any_library_reads_it(self):
        code = """
import os, sys, json
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("numpy", "torch"):
            print(json.dumps([name, os.environ.get("OMP_WAIT_POLICY"), os.environ.get("OPENBLAS_NUM_THREADS")]), flush=True)
sys.meta_path.insert(0, Watch())
from heatproof.cli import main
main(["explain", "--method", "gradient", "--help"])
"""
        environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment | {"OMP_DISPLAY_ENV": "true"},
            capture_output=True,
            text=True,
            check=True,
        )
        seen = {name: told for name, *told in map(json.loads, done.stdout.splitlines()[:2])}
        assert seen == {"numpy": ["passive", "1"], "torch": ["passive", "1"]}
        if sys.platform == "linux":  # GNU's runtime, which torch's wheels carry, says what it has read
            assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr


def report(path):
    threads.begin()
    threads.raise_for(ResNet18(), (32, 32))
    counts = [torch.get_num_threads(), threads.limit()]
    artefacts.write_json(path, {"threads": counts, "policy": os.environ.get("OMP_WAIT_POLICY")})


class TestStages:
    def test_a_cell_has_the_number_of_its_configuration_whatever_its_network(self, free, tmp_path, monkeypatch):
        monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
        path = tmp_path / "cell.json"
        cells.map_cells(report, [cells.Cell(path, path)], device=CPU, workers=1, threads=2, description="t")
        assert json.loads(path.read_text()) == {"threads": [2, 2], "policy": "passive"}

    def test_more_workers_than_the_cpus_are_enough_for_are_told(self, free, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr(cells, "cpus", lambda: 1)
        monkeypatch.setattr(cells.concurrent.futures, "ProcessPoolExecutor", Immediate)
        jobs = [cells.Cell(tmp_path / str(number), number) for number in range(2)]
        with caplog.at_level("INFO"):
            cells.map_cells(print, jobs, device=CPU, workers=8, threads=3, description="retrain")
        assert "retrain: 2 processes of 3 threads share 1 CPU(s)" in caplog.text

    def test_each_stage_of_a_chain_begins_with_one_thread(self, free, tmp_path, monkeypatch):
        (tmp_path / "c.yml").write_text(f"outdir: {tmp_path}\ndevice: cpu\ndata: {{dataset: Planted}}\n")
        counts = []

        class Stub:
            @staticmethod
            def run(run):
                counts.append(torch.get_num_threads())
                threads.raise_for(ResNet18(), (32, 32))

        monkeypatch.setattr(registry.Stage, "load", lambda self: Stub)
        monkeypatch.setattr(sys, "path", list(sys.path))
        assert cli.main(["roar", "--config", str(tmp_path / "c.yml")]) == 0
        assert counts == [1, 1, 1]

    @pytest.mark.parametrize(("arch", "count"), [("NarrowResNet8", 1), ("ResNet18", 4)])
    def test_the_classifier_that_a_stage_loads_decides(self, free, tmp_path, arch, count):
        model = config.Model(arch=f"heatproof.models.resnet_cifar.{arch}")
        (tmp_path / "c.yml").write_text(f"outdir: {tmp_path}\ndevice: cpu\ndata: {{dataset: Planted}}\n")
        threads.begin()
        Run(config.read(tmp_path / "c.yml")).fresh(model, "t")
        assert torch.get_num_threads() == count

    @pytest.mark.parametrize(("arch", "count"), [("NarrowResNet8", 1), ("ResNet18", 4)])
    def test_explain_follows_the_same_policy(self, free, tmp_path, arch, count):
        picture = tmp_path / "a.png"
        Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(picture)
        request = explain.Request(
            [picture],
            f"heatproof.models.resnet_cifar.{arch}",
            explain.methods_named(["gradient"], {}, "signed_max"),
            weights="random",
            out=tmp_path / "out",
            device="cpu",
            size=(32, 32),
            normalization=Normalization((0.5,) * 3, (0.5,) * 3),
        )
        assert list(explain.run(request))
        assert torch.get_num_threads() == count


class Immediate:
    """A pool without processes."""

    def __init__(self, *arguments, **named):
        self.processes = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def submit(self, function, job):
        future = cells.concurrent.futures.Future()
        future.set_result(None)
        return future
