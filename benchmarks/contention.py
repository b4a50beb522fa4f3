"""A training step beside 0, 1, 2 and 6 busy processes, against its fair share: torch's defaults, and our policy of threads.

    python benchmarks/contention.py [--quick] [--repeats 3] [--network heatproof.models.resnet_cifar.ResNet20]

The fair share is the side's own time beside 0 busy processes, times the CPU time per second that the step had then, over
what its threads would have if each had as much as a busy process has. On a machine that does nothing else this is the time
alone x max(1, (busy + threads) / CPUs); elsewhere it allows for the other programs.

Each side is a process of its own, because thread pools read the environment once. The two take turns of a second or of one
step, whichever is longer. A side whose turn takes more than 12 seconds is given up; after a minute no further turn begins.
"""

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from heatproof import threads

DEMO = "heatproof.models.resnet_cifar.NarrowResNet8"  # of configs/demo.yml, whose batches have 64 pictures of 32 x 32
BUSY = (0, 1, 2, 6)
AIM = 1.5  # x fair share
LIMIT = 60.0
PATIENCE = 12.0
SIDES = {"ours": "our policy", "torch": "torch's defaults"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one turn of each side")
    parser.add_argument("--repeats", type=int, help="turns of each side; default: 3")
    parser.add_argument("--network", default=DEMO, help="dotted path")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        serve(asked.side, asked.network)
        return
    with ExitStack() as stack:
        sides = {name: Side(stack.enter_context(started(name, asked.network))) for name in SIDES}
        stack.callback(lambda: [side.process.kill() for side in sides.values()])
        print(f"{asked.network}, 64 pictures of 32 x 32 a step, {threads.cpus()} CPU(s), load {os.getloadavg()[0]:.1f}")
        compare(sides, asked.repeats or (1 if asked.quick else 3))


@dataclass(frozen=True)
class Turn:
    """Steps of a turn.

    Args:
        seconds: of each step.
        threads: of the step.
        share: CPU seconds that the step had in a second.
        fair: CPU seconds that its threads would have had in a second, each as much as a busy process.
    """

    seconds: list[float]
    threads: int
    share: float
    fair: float


@dataclass(frozen=True)
class Side:
    """A process that runs steps when it is asked to."""

    process: "subprocess.Popen[str]"

    def answer(self) -> str:
        """The next line that the process prints; "" where it takes too long, and then it is ended."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            self.process.kill()
        return self.process.stdout.readline()

    def turn(self, busy: Sequence["subprocess.Popen[bytes]"]) -> Turn | None:
        """Steps of one turn; None where the process was given up."""
        assert self.process.stdin is not None
        if self.process.poll() is not None:
            return None
        print(file=self.process.stdin, flush=True)
        before, begun = sum(map(cpu_seconds, busy)), time.monotonic()
        text = self.answer()
        if not text:
            return None
        answer = json.loads(text)
        count = answer["threads"]
        used = sum(map(cpu_seconds, busy)) - before
        each = used / len(busy) / (time.monotonic() - begun) if used else threads.cpus() / (len(busy) + count)
        return Turn(**answer, fair=count * min(1.0, each))


def compare(sides: dict[str, Side], repeats: int) -> None:
    """Prints a line for each number of busy processes and each side."""
    for side in sides.values():
        assert side.process.stdout is not None
        side.process.stdout.readline()  # all libraries are imported
    print("busy  side               threads  ms a step  fair share  step / fair share", flush=True)
    end, worst = time.monotonic() + LIMIT, 0.0
    alone: dict[str, Turn] = {}
    for count in BUSY:
        with ExitStack() as stack:
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
            stack.callback(lambda busy=busy: [(process.kill(), process.wait()) for process in busy])
            turns: dict[str, list[Turn]] = {name: [] for name in sides}
            for _ in range(repeats):
                for name, side in sides.items():
                    if time.monotonic() < end and (turn := side.turn(busy)):
                        turns[name].append(turn)
        for name, some in turns.items():
            if not some:
                print(f"{count:4}  {SIDES[name]:17}  given up")
                continue
            now = pooled(some)
            first = alone.setdefault(name, now)
            fair = first.seconds[0] * (max(1.0, first.share / now.fair) if count else 1.0)
            ratio = now.seconds[0] / fair
            worst = max(worst, ratio if name == "ours" else 0.0)
            ms = f"{1e3 * now.seconds[0]:9.1f}  {1e3 * fair:10.1f}"
            print(f"{count:4}  {SIDES[name]:17}  {now.threads:7}  {ms}  {ratio:17.2f}", flush=True)
    print(f"our policy: at most {worst:.2f} x its fair share (aim <= {AIM})")


def pooled(turns: list[Turn]) -> Turn:
    """Turns as one whose step takes the mean: what is waited for is the sum, and a busy machine gives its CPUs in portions."""
    seconds = statistics.mean(second for turn in turns for second in turn.seconds)
    share, fair = (statistics.mean(getattr(turn, name) for turn in turns) for name in ("share", "fair"))
    return Turn([seconds], turns[0].threads, share, fair)


def started(name: str, network: str) -> "subprocess.Popen[str]":
    """The process of a side, without this one's settings of threads."""
    settings = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(settings)}
    command = [sys.executable, __file__, "--side", name, "--network", network]
    return subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def cpu_seconds(process: "subprocess.Popen[bytes]") -> float:
    """What a process has used; 0 where the system does not have Linux' /proc."""
    stat = Path(f"/proc/{process.pid}/stat")
    if not stat.is_file():
        return 0.0
    user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def serve(name: str, network: str) -> None:
    """Answers each line of the standard input with one turn."""
    if name == "ours":
        threads.settle_environment()
    import torch
    from torch.nn.functional import cross_entropy

    from heatproof import plugins

    torch.manual_seed(0)
    module = plugins.resolve(network)(num_classes=8)
    if name == "ours":
        threads.begin()
        threads.raise_for(module, (32, 32))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    images, labels = torch.rand(64, 3, 32, 32), torch.randint(8, (64,))
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds: list[float] = []
        begun, used = time.perf_counter(), time.process_time()
        while not seconds or time.perf_counter() < begun + 1:
            started_step = time.perf_counter()
            optimizer.zero_grad()
            cross_entropy(module(images), labels).backward()
            optimizer.step()
            seconds.append(time.perf_counter() - started_step)
        share = (time.process_time() - used) / (time.perf_counter() - begun)
        seconds = seconds[1:] or seconds  # the first one of a process also makes its pools and buffers
        print(json.dumps({"seconds": seconds, "threads": torch.get_num_threads(), "share": share}), flush=True)


if __name__ == "__main__":
    main()
