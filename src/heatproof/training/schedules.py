"""Learning rates over the steps of a training."""

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from heatproof import checks
from heatproof.errors import InputError


class WarmUpLinearDecay(LRScheduler):
    """The optimizer's rate times a factor that rises from 0 to 1, and falls to 0 at the end.

    At step t of T, with w steps of warm-up: t / w while t < w, then (T - t) / (T - w); both straight lines. Meant for
    `scheduler_per_batch`, where a step is a batch.

    Args:
        optimizer: with the rates that are reached after the warm-up.
        total_steps: T; a training tells it.
        warmup_steps: w; 0 begins at the full rate.

    Raises:
        InputError: the warm-up has no end before the training's.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = WarmUpLinearDecay(optimizer, total_steps=6, warmup_steps=2)
    >>> rates = []
    >>> for _ in range(6):
    ...     rates.append(optimizer.param_groups[0]["lr"])
    ...     optimizer.step()
    ...     schedule.step()
    >>> rates
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup_steps: int = 0):
        checks.integer("total_steps", total_steps, 1, 10**12)
        checks.integer("warmup_steps", warmup_steps, 0, 10**12)
        if warmup_steps >= total_steps:
            raise InputError(
                f"warmup_steps: {warmup_steps} must be less than the {total_steps} steps of the training; "
                "train longer, or set scheduler_per_batch, which makes each batch a step"
            )
        self.total_steps, self.warmup_steps = total_steps, warmup_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each group of parameters at this step."""
        step = self.last_epoch
        if step < self.warmup_steps:
            factor = step / self.warmup_steps
        else:
            factor = max(0, self.total_steps - step) / (self.total_steps - self.warmup_steps)
        return [rate * factor for rate in self.base_lrs]
