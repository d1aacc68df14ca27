"""How much of a sample dropout leaves: the distribution of the length of a prefix, of levels or of tokens."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from vqkit.saving.config import Configured


class PrefixLengths(Configured, ABC):
    """The distribution of how many of its N members or tokens a sample keeps that dropout cuts short."""

    @abstractmethod
    def __call__(self, uniform: Tensor, whole: int) -> Tensor:
        """Lengths from uniform random numbers.

        Args:
            uniform: (B,) in [0, 1), one for each sample.
            whole: N, the length of a whole sample.

        Returns:
            (B,) int64; N and more keep all.
        """

    def __repr__(self) -> str:
        """The class and its arguments."""
        arguments = (f"{name}={value!r}" for name, value in self.recorded_arguments().items())
        return f"{type(self).__name__}({', '.join(arguments)})"


class UniformLengths(PrefixLengths):
    """Every length from the least to N equally often.

    Args:
        least: at least 1; where N is less, nothing is cut.

    Source: SoundStream, Zeghidour et al. 2021 (arXiv:2107.03312), sec. III-C, of levels; One-D-Piece, Miwa et al. 2025
    (arXiv:2501.10064), of tokens. `least` is `start_drop` of XQ-GAN, Li et al. 2024 (arXiv:2412.01762).
    """

    def __init__(self, least: int = 1) -> None:
        if least < 1 or least != int(least):
            raise ValueError(f"least={least}: expected the shortest length, a whole number of at least 1")
        self.least = least

    def __call__(self, uniform: Tensor, whole: int) -> Tensor:
        """The least length, plus floor(u (N - least + 1))."""
        return self.least + (uniform * max(whole - self.least + 1, 1)).long()


class PowerOfTwoLengths(PrefixLengths):
    """The powers of two below N and N itself, each equally often.

    Source: the mode `pow2` of FlexTok, Bachmann et al. 2025 (arXiv:2502.13967).
    Differs: N may be another number than a power of two.
    """

    def __call__(self, uniform: Tensor, whole: int) -> Tensor:
        """min(2^floor(u M), N), with M such lengths."""
        return (2 ** (uniform * (1 + (whole - 1).bit_length())).long()).clamp(max=whole)


class RoundedUpLengths(PrefixLengths):
    """A uniform length, rounded up to the next power of two: half of the time N, where that is one.

    Source: the mode `uniform_pow2` of FlexTok, Bachmann et al. 2025 (arXiv:2502.13967).
    Differs: N may be another number than a power of two, and is what lengths beyond it become.
    """

    def __call__(self, uniform: Tensor, whole: int) -> Tensor:
        """The smallest power of two that reaches 1 + floor(u N), at most N."""
        powers = 2 ** torch.arange((whole - 1).bit_length() + 1, device=uniform.device)
        length = 1 + (uniform * whole).long()
        return powers[torch.searchsorted(powers, length).clamp(max=len(powers) - 1)].clamp(max=whole)


class GeometricLengths(PrefixLengths):
    """Each token is the last one with the same probability: P(n) = (1 - keep) keep^(n - 1), and the rest keep all.

    Args:
        keep: probability that a token is followed by the next, in (0, 1).

    Source: nested dropout, Rippel, Gelbart, Adams 2014 (arXiv:1402.0915), sec. 2.
    """

    def __init__(self, keep: float = 0.99) -> None:
        if not 0 < keep < 1:
            raise ValueError(f"keep={keep}: expected the probability that a token follows, above 0 and below 1")
        self.keep = keep

    def __call__(self, uniform: Tensor, whole: int) -> Tensor:
        """1 + floor(log(1 - u) / log keep), at most N."""
        return 1 + (torch.log1p(-uniform) / math.log(self.keep)).clamp(max=whole - 1).long()


class NestedLengths(PrefixLengths):
    """One number u in [0, 1) for a sample, which leaves out every member whose probability is above u.

    Args:
        probabilities: of each of the N members, the chance that it is left out; none below the one before. The first is
            0 where a sample is to keep something.

    Source: MGVQ, Jia et al. 2025 (arXiv:2507.07997), nested masking of the groups: 0, 0.2, 0.3, 0.4.

    Raises:
        ValueError: no such probabilities, or not one for each of the N.
    """

    def __init__(self, probabilities: Sequence[float] = (0.0, 0.2, 0.3, 0.4)) -> None:
        ordered = list(probabilities) == sorted(probabilities)
        if not probabilities or not ordered or not all(0 <= chance <= 1 for chance in probabilities):
            raise ValueError(
                f"probabilities={probabilities}: expected numbers in [0, 1], none below the one before, at least one"
            )
        self.probabilities = probabilities

    def __call__(self, uniform: Tensor, whole: int) -> Tensor:
        """How many of the probabilities are at most u."""
        if len(self.probabilities) != whole:
            raise ValueError(f"probabilities={self.probabilities}: expected {whole}, one for each that can be left out")
        chances = torch.tensor(self.probabilities, dtype=uniform.dtype, device=uniform.device)
        return torch.searchsorted(chances, uniform, right=True)
