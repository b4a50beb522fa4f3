"""The image and the two ways to start it. Needs an engine and the built image; skips say why."""

import filecmp
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IMAGE = os.environ.get("IMAGE", "heatproof:dev")
# Small enough that container and host can each do all stages in a test.
SMALL = (
    "data.options={train_images: 128, test_images: 32}",
    "train_cls.nb_epochs=1",
    "extract_cams.controls=[random, oracle]",
    "retrain_cls.nb_epochs=1",
    "retrain_cls.metrics=roar",
    "retrain_cls.percentiles=[30]",
    "retrain_cls.seeds=[0]",
    "retrain_cls.controls=[random, oracle]",
    "pixel_perturbation_analysis.test_samples=16",
    "pixel_perturbation_analysis.controls=[random, oracle]",
)
KERNELS = ("OPENBLAS_", "OMP_", "MKL_", "GOMP_", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
EPOCHS = 60  # of a few images each: the stage lasts long enough to be interrupted, and not much longer
CALLERS_VARIABLES = ("DATA_DIR", "RUNS_DIR", "DEVICE", "NETWORK", "DATA_READ_ONLY", "HOST_UID", "HOST_GID", "DRY_RUN")


def run(*argv, env=None, **kwargs):
    return subprocess.run(
        argv,
        cwd=ROOT,
        env=environment() | (env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        **kwargs,
    )


def environment():
    kept = {name: value for name, value in os.environ.items() if name not in CALLERS_VARIABLES}
    # One thread on both sides: the last bits of a sum depend on how many share it.
    return kept | {"OMP_NUM_THREADS": "1"}


def in_image(*argv, **env):
    return run("docker/run.sh", *argv, env=env)


if not shutil.which("docker") or run("docker", "image", "inspect", IMAGE).returncode:
    pytest.skip(f"no engine, or no image {IMAGE}: run 'task build-docker'", allow_module_level=True)


def settings(container):
    raw = json.loads(run("docker", "inspect", container, check=True).stdout)[0]
    host = raw["HostConfig"]
    return {
        "user": raw["Config"]["User"],
        "network": host["NetworkMode"],
        "shm": host["ShmSize"],
        "init": host["Init"],
        "read_only": host["ReadonlyRootfs"],
        "caps": host["CapDrop"],
        "options": host["SecurityOpt"],
        "tmpfs": host["Tmpfs"],
        "mounts": sorted((m["Source"], m["Destination"], m["RW"]) for m in raw["Mounts"]),
        # A name alone is a variable to be passed on that the caller does not have.
        "env": {e for e in raw["Config"]["Env"] if e.startswith(("HEATPROOF", *KERNELS)) and "=" in e},
    }


def test_compose_and_run_script_agree():
    env = {"HOST_UID": "1234", "HOST_GID": "1234", "REVISION": "r1", "DEVICE": "cpu", "OPENBLAS_CORETYPE": "Nehalem"}
    argv = shlex.split(run("docker/run.sh", "true", env=env | {"DRY_RUN": "1"}, check=True).stdout)
    script = run("docker", "create", *argv[argv.index("--rm") + 1 :], env=env, check=True).stdout.strip()
    compose = ("docker", "compose", "-f", "docker/compose.yaml", "-p", "heatproof-test")
    try:
        run(*compose, "create", "--no-build", "cpu", env=env, check=True)
        service = run(*compose, "ps", "-aq", "cpu", env=env, check=True).stdout.strip()
        assert settings(script) == settings(service)
    finally:
        run("docker", "rm", script)
        run(*compose, "down", env=env)


def test_nothing_but_runs_and_tmp_can_be_written():
    result = in_image(
        "sh",
        "-c",
        "for d in /workspace data /opt /etc; do ! touch $d/x 2>/dev/null || exit 1; done;"
        " touch runs/.probe /tmp/x && rm runs/.probe",
    )
    assert result.returncode == 0, result.stderr


def test_no_network_no_capabilities():
    status = in_image("sh", "-c", "ls /sys/class/net; grep -E 'CapEff|NoNewPrivs' /proc/self/status").stdout.split()
    assert status == ["lo", "CapEff:", "0000000000000000", "NoNewPrivs:", "1"]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to pretend to be someone else")
def test_outputs_belong_to_the_caller_even_without_a_passwd_entry(tmp_path):
    os.chown(tmp_path, 4321, 4321)
    result = in_image(
        "python",
        "-c",
        "import getpass, pathlib; pathlib.Path('runs/f').write_text(getpass.getuser())",
        HOST_UID="4321",
        HOST_GID="4321",
        RUNS_DIR=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "f").stat().st_uid == 4321


@pytest.mark.parametrize("code", [0, 2])
def test_exit_status_passes_through(code):
    assert in_image("sh", "-c", f"exit {code}").returncode == code


def test_the_mounted_repository_takes_the_place_of_the_images_copy_and_imports_what_the_lock_says():
    asked = "import heatproof, torch, timm, captum, transformers; print(heatproof.__file__, torch.__version__)"
    place, version = in_image("python", "-c", asked).stdout.split()
    assert place == "/workspace/src/heatproof/__init__.py"
    assert f'name = "torch"\nversion = "{version.split("+")[0]}"\n' in (ROOT / "uv.lock").read_text("utf-8")


def test_a_task_inside_the_image_runs_there_and_not_in_another_container():
    result = in_image("task", "--dry", "train-cls")
    assert "/opt/venv/bin/python -m heatproof train-cls" in result.stderr


@pytest.mark.parametrize(("name", "value"), [("DEVICE", "tpu"), ("DATA_READ_ONLY", "no")])
def test_a_wrong_setting_is_refused_in_one_line(name, value):
    result = in_image("true", **{name: value})
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert f"'{value}'" in line


def test_gpu_only_where_there_is_one(tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'GPU 0: pretended'\n")
    fake.chmod(0o755)
    with_gpu = in_image("true", DRY_RUN="1", PATH=f"{tmp_path}:{os.environ['PATH']}").stdout
    assert "--gpus=all" in with_gpu
    assert "--gpus" not in in_image("true", DRY_RUN="1", DEVICE="cpu").stdout


def wait_for(condition, process, timeout_s=120):
    """Waits until `condition()` holds while `process` runs."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, f"ended too early, with {process.returncode}: {process.communicate()[1]}"
        assert time.monotonic() < end, "nothing seen in time"
        time.sleep(0.1)


def same_files(left, right, skipped):
    """Relative paths below both folders; asserts that they are the same ones, with the same bytes."""
    trees = [{p.relative_to(top) for p in top.rglob("*") if p.is_file() and not skipped(p)} for top in (left, right)]
    assert trees[0] == trees[1]
    different = [path for path in sorted(trees[0]) if not filecmp.cmp(left / path, right / path, shallow=False)]
    assert different == []
    return trees[0]


def is_about_this_run(path):
    """Wall times, and TensorBoard's event files, cannot be the same twice."""
    return path.name == "timing.csv" or "tensorboard" in path.parts


@pytest.mark.timeout(900)
def test_an_interrupted_stage_keeps_its_state_and_goes_on_to_the_hosts_bytes(tmp_path):
    stage = ("python", "-m", "heatproof", "train-cls", "--config", "configs/demo.yml")
    stage += ("data.options={train_images: 64, test_images: 16}", f"train_cls.nb_epochs={EPOCHS}")
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    history = inside / "demo" / "train_cls" / "history.csv"
    child = subprocess.Popen(
        ["docker/run.sh", *stage],
        cwd=ROOT,
        env=environment() | {"RUNS_DIR": str(inside)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(history.is_file, child)
    child.send_signal(2)
    messages = child.communicate(timeout=60)[1]
    assert child.returncode == 130, messages
    assert 0 < len(history.read_text("utf-8").splitlines()) - 1 < EPOCHS

    again = in_image(*stage, RUNS_DIR=str(inside))
    assert again.returncode == 0, again.stderr
    assert "goes on" in again.stderr
    host = run(sys.executable, *stage[1:], f"outdir={outside / 'demo'}")
    assert host.returncode == 0, host.stderr
    files = same_files(inside, outside, is_about_this_run)
    assert Path("demo/train_cls/best_model.pth") in files


@pytest.mark.timeout(900)
def test_all_stages_leave_the_same_files_in_the_image_and_on_the_host(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    task = shutil.which("task", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    contained = run(task, "-x", "demo", "WHERE=docker", "--", *SMALL, env={"RUNS_DIR": str(inside)})
    assert contained.returncode == 0, contained.stderr
    host = run(task, "-x", "demo", "--", *SMALL, f"outdir={outside / 'demo'}")
    assert host.returncode == 0, host.stderr
    # The page, and the index beside it, name folders and Python's version; the numbers that it shows are compared.
    files = same_files(inside, outside, lambda path: is_about_this_run(path) or path.stem == "index")
    assert {path.parts[1] for path in files} >= {
        "train_cls",
        "extract_cams",
        "retrain_cls",
        "pixel_perturbation_analysis",
        "report",
    }
