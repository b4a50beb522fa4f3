"""The tasks are the ones that users were promised, and each runs what it says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from heatproof import cli

ROOT = Path(__file__).parent.parent
TASK = shutil.which("task", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
STAGES = {
    "demo": "configs/demo.yml",
    "train-cls": "configs/roar_cifar10_resnet8.yml",
    "evaluate-cls": "configs/roar_cifar10_resnet8.yml",
    "train-diffmask": "configs/counting_vit.yml",
    "train-masker": "configs/masker_planted.yml",
    "extract-attribution-maps": "configs/roar_cifar10_resnet8.yml",
    "train-infiller": "configs/infill_planted.yml",
    "infill": "configs/infill_planted.yml",
    "evaluate-attribution-maps-roar": "configs/roar_cifar10_resnet8.yml",
    "roar": "configs/roar_cifar10_resnet8.yml",
    "lerf": "configs/lerf_imagenet_resnet50.yml",
    "insertion-deletion": "configs/roar_cifar10_resnet8.yml",
    "road": "configs/roar_cifar10_resnet8.yml",
    "faithfulness": "configs/roar_cifar10_resnet8.yml",
    "localise": "configs/photographs_pets.yml",
    "complexity": "configs/roar_cifar10_resnet8.yml",
    "robustness": "configs/roar_cifar10_resnet8.yml",
    "map-tests": "configs/roar_cifar10_resnet8.yml",
    "agreement": "configs/roar_cifar10_resnet8.yml",
    "sanity-checks": "configs/roar_cifar10_resnet8.yml",
    "report": "configs/roar_cifar10_resnet8.yml",
}
OTHERS = {"explain", "prepare-data", "diffmask-experiments", "build-docker", "bash-docker"}
OTHERS |= {"test", "test-portable", "lint", "bench"}
CALLERS_VARIABLES = ("CONFIG", "WHERE", "UV_PROJECT_ENVIRONMENT")

if TASK is None:
    pytest.skip("no go-task beside this Python or on PATH", allow_module_level=True)


def task(*arguments, **variables):
    environment = {k: v for k, v in os.environ.items() if k not in CALLERS_VARIABLES}
    environment["NO_COLOR"] = "1"  # go-task colours its output where CI=true, terminal or not
    return subprocess.run(
        [TASK, "-x", *arguments],
        cwd=ROOT,
        env=environment | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def commands(*arguments, **variables):
    """What a task would run."""
    dry = task("--dry", *arguments, **variables)
    assert dry.returncode == 0, dry.stderr
    return [line.split("] ", 1)[1].strip() for line in dry.stderr.splitlines() if line.startswith("task: [")]


def listed(*options):
    return {entry["name"]: entry["desc"] for entry in json.loads(task("--json", *options).stdout)["tasks"]}


def test_the_promised_tasks_are_listed():
    assert STAGES.keys() | OTHERS <= listed("--list").keys()


def test_every_task_that_can_be_called_says_what_it_does():
    assert [name for name, description in listed("--list-all").items() if not description] == []


def test_the_summary_of_a_stage_is_the_same_everywhere():
    summaries = {name: stage.summary for name, stage in cli.STAGES.items()} | {"roar": cli.CHAINS["roar"][1]}
    tasks, readme = listed("--list"), (ROOT / "README.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `task ([a-z-]+)` \| ([^|]*) \|", readme, re.MULTILINE))
    for name, summary in summaries.items():
        assert tasks[name] == summary[0].upper() + summary[1:]
        assert rows[name] == summary
    for name, stage in cli.STAGES.items():
        assert stage.load().__doc__.splitlines()[0] == f"{name}: {stage.summary}."


def test_task_alone_lists_the_tasks():
    assert task().stdout == task("--list").stdout


def test_every_stage_of_the_command_has_a_task():
    assert cli.STAGES.keys() | cli.CHAINS.keys() == STAGES.keys()


@pytest.mark.parametrize(("name", "config"), STAGES.items(), ids=STAGES)
def test_a_stage_runs_in_the_projects_environment_with_its_own_configuration(name, config):
    assert commands(name) == [f".venv/bin/python -m heatproof {name} --config {config}"]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_runs_in_the_image_on_request(name):
    assert commands(name, "WHERE=docker") == [f"docker/run.sh python -m heatproof {name} --config {STAGES[name]}"]


def test_the_image_runs_stages_in_its_own_environment():
    [command] = commands("train-cls", WHERE="local", UV_PROJECT_ENVIRONMENT="/opt/venv")
    assert command.startswith("/opt/venv/bin/python -m heatproof ")


def test_the_callers_configuration_and_arguments_arrive_word_by_word():
    [command] = commands("lerf", "CONFIG=my experiments/a.yml", "--", "seed=1", "retrain_cls.percentiles=[10, 90]")
    words = shlex.split(command)[3:]
    assert words == ["lerf", "--config", "my experiments/a.yml", "seed=1", "retrain_cls.percentiles=[10, 90]"]


def test_explain_gets_pictures_and_options_word_by_word():
    [command] = commands("explain", "--", "my cat.jpg", "--method", "gradient")
    assert shlex.split(command) == [
        ".venv/bin/python",
        "-m",
        "heatproof",
        "explain",
        "my cat.jpg",
        "--method",
        "gradient",
    ]


@pytest.mark.parametrize("name", ["train-cls", "explain", "test", "test-portable", "lint", "bench"])
def test_an_unknown_place_is_refused_before_anything_runs(name):
    refused = task(name, "WHERE=dockr")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[0] == "WHERE must be local or docker, not dockr"
    assert "python" not in refused.stderr


@pytest.mark.parametrize("page", ["README.md", "data/README.md"])
def test_the_tasks_that_a_page_names_exist(page):
    # "./taskw NAME" anywhere; "task NAME" where code begins, settings before it left aside
    named = re.findall(
        r"(?:\./taskw|(?:^|`) *(?:[A-Z_]+=\S+ +)*task) +([a-z][a-z-]*)", (ROOT / page).read_text("utf-8"), re.MULTILINE
    )
    assert set(named) <= listed("--list").keys()


def test_bootstrap_and_image_use_the_same_uv():
    versions = [
        re.search(r"^(?:ARG )?UV_VERSION=(\S+)$", (ROOT / name).read_text("utf-8"), re.MULTILINE)[1]
        for name in ("taskw", "docker/Dockerfile")
    ]
    assert versions[0] == versions[1]


@pytest.mark.parametrize(("largest", "sets"), [("default", 1), ("avx2", 2), ("avx512", 3)])
def test_kernels_that_the_cpu_lacks_are_named_and_never_forced_on_it(tmp_path, largest, sets):
    """torch itself believes `ATEN_CPU_CAPABILITY`: forced on a CPU without it, a set of kernels ends in an illegal instruction."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then echo "${{ATEN_CPU_CAPABILITY:-{largest}}}"; else echo "ran $ATEN_CPU_CAPABILITY $*"; fi\n'
    )
    python.chmod(0o755)
    result = task("test-portable", UV_PROJECT_ENVIRONMENT=str(tmp_path), ATEN_CPU_CAPABILITY="avx512")
    assert result.returncode == 0, result.stderr
    ran = re.findall(r"^ran (\w+) -m pytest", result.stdout, re.M)
    lacking = re.findall(rf"^test-portable: (\w+) not run, this CPU's largest set is {largest}$", result.stdout, re.M)
    assert (ran, ran + lacking) == (["default", "avx2", "avx512"][:sets], ["default", "avx2", "avx512"])
