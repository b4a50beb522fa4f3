"""How many threads and processes compute: one policy for all stages and `explain`.

Results depend on the number of threads in their last bits. It therefore follows from the network, the size of its images and
the CPUs that this process may use, never from the load of the moment: the same configuration on the same machine gives the
same bytes, also after an interruption. Each stage begins with one thread (`begin`); a network that is large enough raises
the number when it is loaded (`raise_for`), before anything is computed. A cell of a grid has the number that its
configuration states (`fix`), whatever its network, so that the number of workers changes nothing.

A user's own OMP_NUM_THREADS or MKL_NUM_THREADS decides instead of this policy.

This module imports torch only where it sets the number: the environment must be complete before.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# Both are read when the library is loaded, and a value that the user has set stays. Threads of a pool that spin while their
# partner is not scheduled cost a hundred times the work itself on a busy machine: OMP_WAIT_POLICY is the standard's name for
# that, which GNU's runtime (in torch's wheels for Linux) and LLVM's (macOS) both read. NumPy and SciPy carry an OpenBLAS each,
# with threads of their own that spin as well; our matrices there are too small for more than one.
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"}
SET_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

# Work for one thread: parameters x pixels of an image, an upper bound of a network's multiplications for it. Below, a second
# thread costs 30 to 60 % more CPU time (NarrowResNet8 at 32 x 32, 1.5e7, batches of 64 and 16); ResNet20 (2.8e8): 6 %.
WORK_PER_THREAD = 100_000_000


def settle_environment() -> None:
    """Sets what thread pools read when they are loaded; call it before NumPy or torch is imported. Child processes inherit it."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def begin() -> None:
    """One thread, until a network asks for more; the environment's number where the user has set one."""
    _use(1)


def raise_for(network: "nn.Module", size: tuple[int, int]) -> None:
    """As many threads as a network is worth; never fewer than before, so that of several networks the largest decides.

    Args:
        network: what computes from now on.
        size: height and width of its images.
    """
    import torch

    work = sum(parameter.numel() for parameter in network.parameters()) * math.prod(size)
    _use(max(torch.get_num_threads(), threads_for(work, cpus())))


def fix(count: int) -> None:
    """Gives this process a number of threads that no network changes."""
    import torch

    os.environ["OMP_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)


def limit() -> int:
    """The most threads that this process may use at once, for work whose result does not depend on their number."""
    import torch

    return torch.get_num_threads() if _is_fixed() else cpus()


def threads_for(work: int, cpus: int) -> int:
    """One thread for each `WORK_PER_THREAD`, at least one, at most one for each CPU.

    >>> [threads_for(work, cpus=8) for work in (15_000_000, 350_000_000, 10**12)]
    [1, 3, 8]
    """
    return max(1, min(cpus, work // WORK_PER_THREAD))


def workers_for(threads: int, cpus: int) -> int:
    """How many processes of so many threads each the CPUs are enough for; at least one.

    >>> workers_for(threads=3, cpus=8)
    2
    """
    return max(1, cpus // threads)


def cpus() -> int:
    """How many CPUs this process may use: the least of its affinity and of every quota, rounded up; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, math.ceil(min([affinity, *quotas()])))


def quotas(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[float]:
    """The CPU quotas that bind this process, in CPUs: of its own control group and of each one above, of both versions.

    Args:
        membership: the kernel's list of the groups of this process; where there is none, there are no quotas.
        root: where the groups are mounted. Inside a container this may be the container's own group, whose path in the list
            does not exist here; then the groups that do exist are read.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts = {root, root / "unified"}
        elif "cpu" in controllers.split(","):
            mounts = {root / controllers, root / "cpu"}
        else:
            continue
        # ".." stands before a group outside of the container's name space: only its mount can be read.
        parts = [] if ".." in Path(path).parts else Path(path).parts[1:]
        for depth in range(len(parts) + 1):
            for mount in mounts:
                yield from _quota(mount.joinpath(*parts[:depth]))


def _quota(group: Path) -> Iterator[float]:
    """A group's own quota, where it has one."""
    # Version 1 writes -1 for no quota and version 2 "max"; a group may also vanish while it is read.
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        yield int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            yield int(quota) / int(period)


def _is_fixed() -> bool:
    return any(os.environ.get(name) for name in SET_BY_USER)


def _use(count: int) -> None:
    import torch

    if not _is_fixed():
        torch.set_num_threads(count)
