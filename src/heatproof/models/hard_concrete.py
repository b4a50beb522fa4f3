"""Gates between 0 and 1 that can be exactly 0 and still learn by gradients: the rectified stretched binary concrete distribution.

With logit a, temperature t, stretch (l, r) and u uniform in (0, 1), sigma the logistic function:

    s  = sigma((ln(u / (1 - u)) + a) / t)      binary concrete, in (0, 1)
    s' = l + (r - l) s                         stretched, in (l, r)
    z  = min(1, max(0, s'))                    the gate; P(z > 0) = sigma(a - t ln(-l / r))
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_EDGE = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class HardConcrete:
    """The distribution of gates with given logits; one independent gate for each.

    Args:
        logits: a, of any shape.
        temperature: t > 0; the smaller, the nearer to a coin.
        low: l < 0.
        high: r >= 1; at 1 a gate is practically never exactly 1.
        compat: as published: sigma(a) is kept off 0 and 1 by 1.2e-7 before it is used in a sample, so that samples do not
            depend on logits beyond 15.9 or so.

    Reference:
        Louizos, Welling, Kingma: "Learning sparse neural networks through L0 regularization", ICLR 2018, arXiv:1712.01312,
        section 2.3; with r = 1 De Cao et al., EMNLP 2020, arXiv:2004.14992.

    >>> gate = HardConcrete(torch.tensor([-9.0, 9.0]))
    >>> gate.sample(torch.tensor([0.5, 0.5])), gate.log_probability_open().exp()
    (tensor([0., 1.]), tensor([1.7024e-04, 9.9991e-01]))
    """

    logits: Tensor
    temperature: float = 0.2
    low: float = -0.2
    high: float = 1.0
    compat: bool = False

    def sample(self, u: Tensor) -> Tensor:
        """The gates z, in [0, 1], that belong to `u`, uniform in (0, 1) and of the logits' shape."""
        return self.stretched(u).clamp(0, 1)

    def stretched(self, u: Tensor) -> Tensor:
        """s', in (l, r)."""
        return self.low + (self.high - self.low) * self.binary_concrete(u)

    def binary_concrete(self, u: Tensor) -> Tensor:
        """s, in (0, 1)."""
        u = u.clamp(_EDGE, 1 - _EDGE)
        return ((torch.logit(u) + self._logits()) / self.temperature).sigmoid()

    def log_probability_open(self) -> Tensor:
        """Ln P(z > 0), the logarithm of the expected number of open gates ("log expected L0" in the published code)."""
        return functional.logsigmoid(self.logits - self._threshold)

    def log_probability_closed(self) -> Tensor:
        """Ln P(z = 0)."""
        return functional.logsigmoid(self._threshold - self.logits)

    def cdf(self, x: Tensor) -> Tensor:
        """P(s <= x) for x in (0, 1): sigma(t logit(x) - a)."""
        return self._shifted(x).sigmoid()

    def log_survival(self, x: Tensor) -> Tensor:
        """Ln P(s > x) for x in (0, 1)."""
        return functional.logsigmoid(-self._shifted(x))

    def log_density(self, x: Tensor) -> Tensor:
        """Logarithm of the density of s at x; -inf outside (0, 1)."""
        inside = (x > 0) & (x < 1)
        x = torch.where(inside, x, 0.5)
        q = self._shifted(x)
        density = math.log(self.temperature) + q - 2 * functional.softplus(q) - x.log() - (-x).log1p()
        return torch.where(inside, density, -math.inf)

    @property
    def _threshold(self) -> float:
        """The logit at which a gate is open with probability 1/2."""
        return self.temperature * math.log(-self.low / self.high)

    def _shifted(self, x: Tensor) -> Tensor:
        return self.temperature * torch.logit(x) - self.logits

    def _logits(self) -> Tensor:
        return torch.logit(self.logits.sigmoid().clamp(_EDGE, 1 - _EDGE)) if self.compat else self.logits


def log_complement(log_probability: Tensor) -> Tensor:
    """ln(1 - p) for ln p < 0, exact at both ends.

    >>> log_complement(torch.tensor([-1e-6, -30.0]))
    tensor([-1.3816e+01, -9.3576e-14])
    """
    below = log_probability.clamp(max=-torch.finfo(log_probability.dtype).tiny)
    # Each form is inexact where the other is not; the one not taken must not give infinite gradients either.
    small = below > -math.log(2)
    near_one = (-torch.expm1(torch.where(small, below, -1.0))).log()
    return torch.where(small, near_one, torch.log1p(-torch.exp(torch.where(small, -1.0, below))))
