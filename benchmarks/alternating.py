"""What the benchmarks share: sides of a comparison that take turns, and the options that say where, how and how often."""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Sides = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Turns:
    """How sides are measured.

    Args:
        device: is waited for at the end of each turn.
        repeats: turns of each side that count.
        clock: tells seconds.
    """

    device: torch.device
    repeats: int
    clock: Callable[[], float]

    def __str__(self) -> str:
        return f"{self.device}, {torch.get_num_threads()} thread(s), medians of {self.repeats}, {self.clock.__name__}"

    def seconds(self, sides: Sides, *, warm_ups: int = 1, repeats: int | None = None) -> dict[str, float]:
        """Median seconds of each side. They alternate, so that what else the machine does hits all.

        Args:
            sides: what is measured, by name.
            warm_ups: turns of each side beforehand that do not count.
            repeats: instead of the common number.
        """
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(warm_ups + (repeats or self.repeats)):
            for name, run in sides.items():
                started = self.clock()
                run()
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                if turn >= warm_ups:
                    taken[name].append(self.clock() - started)
        return {name: statistics.median(seconds) for name, seconds in taken.items()}


def parser_for(text: str, quick: str) -> argparse.ArgumentParser:
    """A parser of the common options.

    Args:
        text: the script's docstring.
        quick: what --quick does.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, help="turns of each side")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="CPU time of the process instead of wall time: the better measure on a machine with other work, with one thread",
    )
    return parser


def turns_of(options: argparse.Namespace, *, quick: int, full: int) -> Turns:
    """Sets the number of threads, and says how the sides are measured.

    Args:
        options: of `parser_for`.
        quick: repeats with --quick.
        full: repeats without.
    """
    torch.set_num_threads(options.threads)
    repeats = options.repeats or (quick if options.quick else full)
    return Turns(torch.device(options.device), repeats, time.process_time if options.cpu_time else time.perf_counter)
