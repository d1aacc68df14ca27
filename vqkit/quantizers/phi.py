"""The convolutions by which a multi-scale quantizer smoothes what it has enlarged."""

from fractions import Fraction

import torch
from torch import Tensor, nn


class PhiConvolutions(nn.Module):
    """phi_k(h) = (1 - ratio) h + ratio conv_k(h), with kernels of 3 positions an axis; scales share a few of them.

    Args:
        dim: D.
        axes: of the maps: 1, 2 or 3.
        scale_map: which convolution each scale has, numbered from 0 without a gap.
        ratio: of the convolution in the sum.

    Source: VAR, Tian et al. 2024 (arXiv:2404.02905), sec. 3.2 and algorithm 1.
    """

    def __init__(self, dim: int, axes: int, scale_map: list[int], ratio: float) -> None:
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        made = (convolution(dim, dim, 3, padding=1, dtype=torch.float32) for _ in range(max(scale_map) + 1))
        self.convolutions = nn.ModuleList(made)
        self.scale_map = scale_map
        self.ratio = ratio

    def forward(self, number: int, maps: Tensor) -> Tensor:
        """What scale `number` adds: (B, *S, D) -> (B, *S, D)."""
        smooth = self.convolutions[self.scale_map[number]](maps.movedim(-1, 1)).movedim(1, -1)
        return (1 - self.ratio) * maps + self.ratio * smooth

    def extra_repr(self) -> str:
        """Which scale has which."""
        return f"scale_map={self.scale_map}, ratio={self.ratio}"


def scale_map(num_scales: int, num_phis: int) -> list[int]:
    """Which of the convolutions each scale has: the one whose tick is nearest to s / (num_scales - 1).

    The ticks are evenly spaced, from 1/12 to 11/12 for four convolutions and from 1/2K to 1 - 1/2K for K others. Of two
    that are equally near, the later one counts: in floating point, as published, the last bit decides, and it does so
    for 10 scales and 4 convolutions, which are 0, 0, 1, 1, 1, 2, 2, 3, 3, 3.
    """
    margin = Fraction(1, 12) if num_phis == 4 else Fraction(1, 2 * num_phis)
    gap = (1 - 2 * margin) / max(num_phis - 1, 1)
    ticks = [margin + number * gap for number in range(num_phis)]
    places = [Fraction(number, max(num_scales - 1, 1)) for number in range(num_scales)]
    return [min(range(num_phis), key=lambda tick: (abs(ticks[tick] - place), -tick)) for place in places]
