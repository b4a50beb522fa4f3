"""Lookahead: fast weights that explore, slow weights that follow them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Lookahead:
    """Wraps an optimizer: after every k-th step, slow weights move a share of the way to the fast ones, which go on from there.

    A parameter takes part in a synchronisation only where it has a gradient then; its slow weights begin with the first in which
    it does, which changes nothing. A step counts whether or not there are gradients.

    Args:
        optimizer: torch's, with the parameters.
        steps: k, from one synchronisation to the next.
        rate: how far slow weights move, in (0, 1].

    Reference:
        Zhang et al.: "Lookahead optimizer: k steps forward, 1 step back", NeurIPS 2019, arXiv:1907.08610.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int = 6, rate: float = 0.5):
        self.optimizer, self.steps, self.rate = optimizer, steps, rate
        self.count = 0
        self._slow: dict[int, Tensor] = {}  # by the parameter's number

    def set_rates(self, rates: Iterable[float]) -> None:
        """Sets the learning rate of each group of parameters."""
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    @torch.no_grad()
    def step(self) -> None:
        """One step of the optimizer, and every k-th time a synchronisation."""
        self.optimizer.step()
        self.count += 1
        if self.count % self.steps:
            return
        for number, parameter in enumerate(self._parameters()):
            if parameter.grad is None:
                continue
            if number in self._slow:
                parameter.copy_(self._slow[number].lerp_(parameter, self.rate))
            else:
                self._slow[number] = parameter.detach().clone()

    def zero_grad(self) -> None:
        """Takes the gradients away."""
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on: tensors, numbers and names."""
        return {"optimizer": self.optimizer.state_dict(), "count": self.count, "slow": dict(self._slow)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up such a state."""
        self.optimizer.load_state_dict(state["optimizer"])
        parameters, self.count = self._parameters(), state["count"]
        self._slow = {number: slow.to(parameters[number].device) for number, slow in state["slow"].items()}

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
