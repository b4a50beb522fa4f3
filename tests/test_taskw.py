"""The bootstrap, with a pretended uv: when it makes the environment, when it does not, and what it says when it cannot."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Makes an environment whose `task` prints its arguments; notes every call.
UV = """#!/bin/sh
echo "$*" >>"$CALLS"
[ "$1" != sync ] || [ -z "${UV_FAILS:-}" ] || exit 1
mkdir -p .venv/bin
printf '#!/bin/sh\\nprintf "<%%s>" "$@"\\nexit "${STATUS:-0}"\\n' >.venv/bin/task
chmod 755 .venv/bin/task
"""
SYNC = "sync --frozen --quiet --compile-bytecode"
TOOLS = ("sh", "cat", "cksum", "dirname", "env", "mkdir", "sed", "chmod", "printf")


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    path.chmod(0o755)


class Checkout:
    """A copy of the bootstrap in a folder with a blank, and a PATH with nothing but what POSIX has, and uv."""

    def __init__(self, folder):
        self.root, self.tools, self.calls_file = folder / "a checkout", folder / "tools", folder / "calls"
        self.root.mkdir()
        shutil.copy(ROOT / "taskw", self.root)
        (self.root / "pyproject.toml").write_text("[project]\n")
        (self.root / "uv.lock").write_text("version = 1\n")
        self.tools.mkdir()
        for name in TOOLS:
            (self.tools / name).symlink_to(shutil.which(name))
        script(self.tools / "uv", UV)

    def start(self, *arguments, cwd=None, **variables):
        return subprocess.run(
            [self.root / "taskw", *arguments],
            cwd=cwd or self.root.parent,
            env={"PATH": str(self.tools), "CALLS": str(self.calls_file), **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self):
        """What uv was asked since the last time."""
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_the_environment_is_made_once_and_the_arguments_pass_unchanged(checkout):
    for calls in ([SYNC], []):
        done = checkout.start("demo", "--", "a b", "c=[1, 2]", "")
        assert (done.returncode, done.stdout) == (0, "<-x><demo><--><a b><c=[1, 2]><>"), done.stderr
        assert checkout.calls() == calls


@pytest.mark.parametrize("name", ["uv.lock", "pyproject.toml"])
def test_a_changed_lock_or_project_makes_it_anew(checkout, name):
    checkout.start()
    checkout.calls()
    (checkout.root / name).write_text("changed\n")
    checkout.start()
    assert checkout.calls() == [SYNC]


def test_a_checkout_that_was_moved_gets_an_environment_of_its_new_place(checkout):
    checkout.start()
    checkout.calls()
    checkout.root = checkout.root.rename(checkout.root.parent / "moved")
    checkout.start()
    assert checkout.calls() == [f"venv --quiet --clear {checkout.root}/.venv", SYNC]


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_the_status_of_a_task_passes_through(checkout, status):
    assert checkout.start("train-cls", STATUS=str(status)).returncode == status


def test_it_starts_from_any_folder_whatever_cdpath_says(checkout):
    (checkout.root / "below").mkdir()
    done = subprocess.run(
        ["../taskw", "lint"],
        cwd=checkout.root / "below",
        env={"PATH": str(checkout.tools), "CALLS": str(checkout.calls_file), "CDPATH": str(checkout.root.parent)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "<-x><lint>"), done.stderr


def test_a_failed_sync_is_said_and_tried_again(checkout):
    failed = checkout.start(UV_FAILS="1")
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1] == (
        f"taskw: uv could not make {checkout.root}/.venv (see above); the same command tries again"
    )
    checkout.calls()
    assert checkout.start().returncode == 0
    assert checkout.calls() == [SYNC]


def test_without_uv_and_python_it_says_what_it_needs(checkout):
    (checkout.tools / "uv").unlink()
    failed = checkout.start()
    assert failed.returncode == 2
    assert failed.stderr == ("taskw: needs Python 3.11 or newer with pip on PATH, or uv (https://docs.astral.sh/uv)\n")


def test_without_uv_it_is_installed_with_pip_into_the_checkout(checkout):
    (checkout.tools / "uv").rename(checkout.tools / "given")
    # Answers "I am new enough and have pip", then does what "pip install --target .uv" does.
    script(
        checkout.tools / "python3",
        '#!/bin/sh\necho "$*" >>"$CALLS"\n[ "$1" = -c ] || { mkdir -p .uv/bin; cat "$0/../given" >.uv/bin/uv; }\n'.replace(
            "$0/../given", str(checkout.tools / "given")
        )
        + "[ ! -e .uv/bin/uv ] || chmod 755 .uv/bin/uv\n",
    )
    done = checkout.start("lint")
    assert (done.returncode, done.stdout) == (0, "<-x><lint>"), done.stderr
    asked, installed, synced = checkout.calls()
    assert asked.startswith("-c import sys, pip")
    assert installed.startswith("-m pip install ")
    assert " --target .uv uv==" in installed
    assert synced == SYNC


def test_an_environment_that_cannot_be_written_is_named(checkout):
    failed = checkout.start(UV_PROJECT_ENVIRONMENT="/proc/env")  # not even root may
    assert failed.returncode == 2
    assert failed.stderr == (
        "taskw: /proc/env cannot be written; make it writable, or name another folder in UV_PROJECT_ENVIRONMENT\n"
    )
